"""Memory that this process may use: of which NUMA nodes, and below which limits.

Source: Linux kernel documentation, ABI/stable/sysfs-devices-node and admin-guide/mm/numaperf; proc(5); numa(7); sbatch(1) of Slurm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import InputError
from autotune.machine.cgroups import Cgroups
from autotune.machine.sysfs import numbered, parse_cpu_list, parse_cpu_mask, read_cpus, read_text

if TYPE_CHECKING:
    from autotune.config.profile import Topology

SYSFS = Path("/sys")
PROC = Path("/proc")

# Memory policies that name nodes, as numa_maps spells them.
_POLICIES = r"bind|(?:weighted )?interleave|prefer(?: \(many\))?"
# Of a node: what is free, and what the kernel gives back on demand.
_FREE = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")


@dataclass(frozen=True)
class Node:
    """One NUMA node."""

    number: int
    cpus: tuple[int, ...]
    """Its logical CPUs; none for memory of an accelerator, a high-bandwidth stack or an expander."""
    memory_bytes: int | None
    """Its memory; None where it is not told."""
    free_bytes: int | None
    """What is free, and what the kernel gives back on demand; None where it is not told."""
    cache_bytes: int
    """Memory-side cache, such as fast memory in cache mode; 0 without one."""


@dataclass(frozen=True)
class MemoryLimit:
    """A limit on the memory of this process and what shares the limit with it."""

    limit_bytes: int
    used_bytes: int
    """What counts to it now, file cache left out."""
    source: str
    """Who set it: ``cgroup``, ``SLURM_MEM_PER_NODE``, ``ulimit -v``."""


def nodes(sysfs: Path) -> list[Node]:
    """NUMA nodes by number, those without CPUs too."""
    result = []
    for number, folder in numbered(sysfs / "devices/system/node", "node"):
        lines = re.findall(r"^Node \d+ (\S+):\s+(\d+) kB", read_text(folder / "meminfo"), re.MULTILINE)
        sizes = {name: int(value) * 1024 for name, value in lines}
        free = sum(sizes.get(name, 0) for name in _FREE) if "MemFree" in sizes else None
        caches = (read_text(cache / "size") for _, cache in numbered(folder / "memory_side_cache", "index"))
        cache_bytes = sum(int(size) for size in caches if size.isdecimal())
        result.append(Node(number, read_cpus(folder, "cpumap", "cpulist"), sizes.get("MemTotal"), free, cache_bytes))
    return result


def cpu_nodes(every: list[Node], cpus: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Node -> those of `cpus` that it holds. Nodes without any are left out, and one that claims CPUs of a node before it."""
    result: dict[int, tuple[int, ...]] = {}
    claimed: set[int] = set()
    wanted = frozenset(cpus)
    for node in every:
        here = tuple(cpu for cpu in node.cpus if cpu in wanted)
        if here and claimed.isdisjoint(node.cpus):
            result[node.number] = here
            claimed.update(node.cpus)
    return result or {0: cpus}


@dataclass(frozen=True)
class MemoryNodes:
    """Which nodes' memory counts for this process: that of nodes with CPUs, and of nodes that its memory policy names."""

    every: tuple[Node, ...]
    allowed: frozenset[int]
    """Nodes that the cpuset allows, or that the policy binds to."""
    named: frozenset[int]
    """Nodes that the policy names."""

    @classmethod
    def read(cls, sysfs: Path, proc: Path, cgroups: Cgroups) -> MemoryNodes:
        every = tuple(nodes(sysfs))
        numbers = frozenset(node.number for node in every if node.memory_bytes != 0)
        status = read_text(proc / "self/status")
        listed, masked = (re.search(rf"^{name}:\s+(\S+)$", status, re.MULTILINE) for name in ("Mems_allowed_list", "Mems_allowed"))
        told = parse_cpu_list(listed[1]) if listed else parse_cpu_mask(masked[1]) if masked else ()
        allowed = numbers
        for bound in (frozenset(told), frozenset(cgroups.memory_nodes)):
            allowed = allowed & bound or allowed
        # The first mapping of a process has no policy of its own, and shows the process's.
        policy = re.match(rf"\S+ ({_POLICIES})(?:=[\w|]+)?:([\d,-]+)", _first_line(proc / "self/numa_maps"))
        named = frozenset(parse_cpu_list(policy[2])) & allowed if policy else frozenset()
        return cls(every, named if policy and policy[1] == "bind" and named else allowed, named)

    @property
    def counted(self) -> tuple[Node, ...]:
        usable = [node for node in self.every if node.number in self.allowed]
        return tuple(node for node in usable if node.cpus or node.number in self.named) or tuple(usable)

    @property
    def memory_bytes(self) -> int | None:
        """Memory of every node with CPUs, allowed or not, and of nodes that are named; None where that is all, or not told.

        All is the system's own figure: while a kernel is still setting pages up, as in a restored virtual machine, nodes tell less.
        """
        usable = [node for node in self.every if node.cpus or node.number in self.named]
        return None if len(usable) == len(self.every) else _total(node.memory_bytes for node in usable) or None

    @property
    def free_bytes(self) -> int | None:
        """Of the nodes that count; None where every node does, or it is not told."""
        return None if len(self.counted) == len(self.every) else _total(node.free_bytes for node in self.counted)


def memory_limits(cgroups: Cgroups, proc: Path, environ: Mapping[str, str]) -> list[MemoryLimit]:
    """Every limit that binds this process: of control groups, of its job, of its shell.

    Raises:
        InputError: a variable of Slurm is no number.
    """
    limits = [MemoryLimit(limit, used, "cgroup") for limit, used in cgroups.memory]
    per_node, per_cpu, cpus = (_megabytes(environ, f"SLURM_{name}") for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"))
    # What the rest of a job uses is not to be seen from here; 0 is all of the node.
    for mebibytes, source in ((per_node, "SLURM_MEM_PER_NODE"), (per_cpu * cpus, "SLURM_MEM_PER_CPU")):
        if mebibytes:
            limits.append(MemoryLimit(mebibytes << 20, 0, source))
    status, shell = read_text(proc / "self/status"), read_text(proc / "self/limits")
    for name, used_name, source in (("Max address space", "VmSize", "ulimit -v"), ("Max data size", "VmData", "ulimit -d")):
        limit, used = re.search(rf"^{name} +(\d+) ", shell, re.MULTILINE), re.search(rf"^{used_name}:\s+(\d+) kB", status, re.MULTILINE)
        if limit:
            limits.append(MemoryLimit(int(limit[1]), int(used[1]) * 1024 if used else 0, source))
    return limits


def available_memory_bytes(topology: Topology, sysfs: Path = SYSFS, proc: Path = PROC, environ: Mapping[str, str] = os.environ) -> int:
    """Bytes that can be allocated now: the least of what the system has available, what the nodes whose memory counts have free, and what
    every limit above this process leaves.

    A control group leaves its limit, minus its usage, plus its file cache, which the kernel gives back on demand.

    Raises:
        InputError: as `memory_limits`.
    """
    sizes, cgroups = meminfo(proc), Cgroups(sysfs, proc)
    free_bytes = sum(sizes.get(key, 0) for key in ("MemFree", "Buffers", "Cached"))
    left = [topology.memory_bytes, sizes.get("MemAvailable", free_bytes) if sizes else topology.memory_bytes]
    if topology.memory_limit_bytes is not None:
        left.append(topology.memory_limit_bytes)
    left += [limit.limit_bytes - limit.used_bytes for limit in memory_limits(cgroups, proc, environ)]
    of_nodes = MemoryNodes.read(sysfs, proc, cgroups).free_bytes
    return max(0, min(left if of_nodes is None else [*left, of_nodes]))


def meminfo(proc: Path) -> dict[str, int]:
    """Bytes by name."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB", read_text(proc / "meminfo"), re.MULTILINE)
    return {name: int(value) * 1024 for name, value in lines}


def _total(sizes: Iterable[int | None]) -> int | None:
    """The sum; None of nothing, or where a size is not known."""
    known = list(sizes)
    return sum(size for size in known if size is not None) if known and None not in known else None


def _megabytes(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "").strip()
    if text and not (text.isdecimal() and len(text) <= 18):
        raise InputError(f"Slurm's {name} must be a whole number, got {text!r}; unset it, or start anew")
    return int(text or 0)


def _first_line(file: Path) -> str:
    """Without the rest: the kernel walks the pages of every mapping that is read."""
    try:
        with file.open("rb", buffering=0) as stream:
            return stream.read(512).decode(errors="replace").partition("\n")[0]
    except OSError:
        return ""
