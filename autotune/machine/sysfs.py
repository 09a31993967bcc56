"""Files of sysfs and procfs."""

from __future__ import annotations

import functools
import re
from pathlib import Path


def read_text(path: Path) -> str:
    """Contents of a file of sysfs or procfs; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


@functools.lru_cache(maxsize=1024)
def parse_cpu_list(text: str) -> tuple[int, ...]:
    """``0-3,8,10-11`` as numbers, ascending; what is no number is skipped.

    ``0-15:2/4`` are the first 2 of every 4 from 0 to 15, as the kernel writes a list with a stride.
    """
    cpus: set[int] = set()
    for first, last, used, of in re.findall(r"(\d+)(?:-(\d+)(?::(\d+)/(\d+))?)?", text):
        span = range(int(first), int(last or first) + 1)
        cpus.update(cpu for cpu in span if not of or (cpu - span.start) % max(1, int(of)) < int(used))
    return tuple(sorted(cpus))


@functools.lru_cache(maxsize=1024)
def parse_cpu_mask(text: str) -> tuple[int, ...]:
    """``00000001,0000000f`` as numbers, ascending: hexadecimal words of 32 bits, the highest first; empty for any other text."""
    if not re.fullmatch(r"[0-9a-fA-F]{1,8}(,[0-9a-fA-F]{8})*", text):
        return ()
    bits = f"{int(text.replace(',', ''), 16):b}"
    return tuple(number for number, bit in enumerate(reversed(bits)) if bit == "1")


def read_cpus(folder: Path, *names: str) -> tuple[int, ...]:
    """CPUs in the first file that holds any. Old kernels, and recorded machines, have masks alone; where both are there they are equal.

    Args:
        names: Files; one that ends in ``list`` holds a list, any other a mask.
    """
    for name in names:
        text = read_text(folder / name)
        if cpus := parse_cpu_list(text) if name.endswith("list") else parse_cpu_mask(text):
            return cpus
    return ()


def numbered(folder: Path, stem: str) -> list[tuple[int, Path]]:
    """Folders ``node0``, ``node8``, ... with their numbers, ascending."""
    found = ((path.name.removeprefix(stem), path) for path in folder.glob(f"{stem}*"))
    return sorted((int(number), path) for number, path in found if number.isdecimal())
