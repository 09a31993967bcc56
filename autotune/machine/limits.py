"""What an environment leaves of its machine, in words: for the notes of results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from autotune.config.profile import Topology
from autotune.machine.cgroups import Cgroups
from autotune.machine.memory import PROC, SYSFS, MemoryNodes, memory_limits
from autotune.machine.processors import Processors
from autotune.machine.sysfs import numbered, parse_cpu_list, read_text
from autotune.units import format_bytes, plural


def limits(topology: Topology, sysfs: Path = SYSFS, proc: Path = PROC, environ: Mapping[str, str] = os.environ) -> str:
    """One line: cpuset, CPU quota, memory limit, nodes whose memory does not count, and huge pages, as far as they limit this process."""
    parts = [
        *_cpus(topology, sysfs, proc),
        *([] if topology.cpu_quota is None else [f"CPU quota {topology.cpu_quota:g} CPUs"]),
        *_memory(topology, sysfs, proc, environ),
        *(["huge pages off"] if topology.huge_pages == "never" else []),
    ]
    whole = f"none ({plural(topology.physical_cores, 'core')}, {format_bytes(topology.memory_bytes)} of memory)"
    return f"limits of this environment: {'; '.join(parts) or whole}"


def remarks(topology: Topology) -> tuple[str, ...]:
    """What is unusual about a machine: cores of several kinds, a memory-side cache."""
    notes = []
    if topology.core_kinds:
        fast = topology.core_kinds.count(min(topology.core_kinds))
        slow = topology.physical_cores - fast
        notes.append(f"{fast} fast and {slow} slow cores: threads take the fast ones first, and work is parted as if all were equal")
    if topology.memory_side_cache_bytes:
        size = format_bytes(topology.memory_side_cache_bytes)
        notes.append(f"a memory-side cache of {size} lies before memory: working sets below it run faster than the memory ceilings say")
    return tuple(notes)


def thread_notes(topology: Topology, threads: int) -> tuple[str, ...]:
    """What the CPU quota does to a team of `threads`."""
    quota, cores = topology.cpu_quota, topology.physical_cores
    if quota is None or quota >= cores:
        return ()
    granted = f"the CPU quota grants {quota:g} CPUs' worth of time"
    if threads <= topology.default_threads():
        return (f"{plural(threads, 'thread')} on {plural(cores, 'core')}: {granted}",)
    within = plural(topology.default_threads(), "thread")
    return (f"{granted}, and {threads} threads are stopped whenever it is used up; {within} would not be",)


def _cpus(topology: Topology, sysfs: Path, proc: Path) -> list[str]:
    folder = sysfs / "devices/system/cpu"
    online = parse_cpu_list(read_text(folder / "online")) or tuple(number for number, _ in numbered(folder, "cpu"))
    if len(topology.allowed_cpus) >= len(online):
        return []
    processors, instances, seen = Processors(sysfs, proc), 0, set[int]()
    for cpu in online:
        if cpu not in seen:
            shared = [cache.shared for cache in processors.caches((cpu,)) if cache.level == 3]
            seen.update(*shared)
            instances += len(shared)
    inside = f", all on one of {instances} L3 caches" if topology.l3_instances == 1 < instances else ""
    return [f"cpuset {len(topology.allowed_cpus)} of {len(online)} CPUs{inside}"]


def _memory(topology: Topology, sysfs: Path, proc: Path, environ: Mapping[str, str]) -> list[str]:
    cgroups, parts = Cgroups(sysfs, proc), []
    least = min(memory_limits(cgroups, proc, environ), key=lambda limit: limit.limit_bytes, default=None)
    if least is not None and least.limit_bytes < topology.memory_bytes:
        parts.append(f"memory limit {format_bytes(least.limit_bytes)} of {format_bytes(topology.memory_bytes)} ({least.source})")
    memory_nodes = MemoryNodes.read(sysfs, proc, cgroups)
    counted = {node.number for node in memory_nodes.counted}
    for words, left_out in (
        ("without CPUs", [node for node in memory_nodes.every if not node.cpus]),
        ("outside the memory policy or cpuset", [node for node in memory_nodes.every if node.cpus]),
    ):
        numbers = [str(node.number) for node in left_out if node.number not in counted and node.memory_bytes]
        if numbers:
            parts.append(f"memory of NUMA {'node' if len(numbers) == 1 else 'nodes'} {', '.join(numbers)} left out ({words})")
    return parts
