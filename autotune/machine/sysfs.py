"""Files of sysfs and procfs."""

from __future__ import annotations

import re
from pathlib import Path


def read_text(path: Path) -> str:
    """Contents of a file of sysfs or procfs; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """``0-3,8,10-11`` as numbers, ascending; what is no number is skipped."""
    cpus: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        cpus.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cpus))
