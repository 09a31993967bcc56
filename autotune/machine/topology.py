"""What this process may use of the machine: cores, caches, NUMA nodes, limits; and how two machines differ.

Everything is read from `/sys` and `/proc`, both of which can be given, so any machine can be described by a folder. Whatever is missing
there (containers, virtual machines, boards) falls back to something smaller, never to an exception.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal, cast

from autotune.config.profile import Fingerprint, Topology
from autotune.config.words import OPENMP_BINDING
from autotune.errors import InputError, MachineError
from autotune.machine.cgroups import Cgroups
from autotune.machine.memory import PROC, SYSFS, MemoryNodes, cpu_nodes, meminfo, memory_limits
from autotune.machine.processors import Processors
from autotune.machine.sysfs import read_text

# The smallest L1D and L2 among the AVX2 machines (Haswell, 2013), for machines that do not tell: blockings that fit them fit any other.
_FALLBACK_L1D_BYTES = 32 * 1024
_FALLBACK_L2_BYTES = 256 * 1024
_LINE_BYTES = 64
_MEMORY_TOLERANCE = 0.10
_HARDWARE_FIELDS = (
    "cpu_model",
    "vendor",
    "sockets",
    "physical_cores",
    "logical_cpus",
    "l1d_bytes",
    "l2_bytes",
    "l3_bytes",
    "l3_instances",
    "line_bytes",
    "cpu_quota",
)


def vector_lanes(machine: Topology | None = None) -> int:
    """Floats in a vector of the widest kernels that run on a machine; None takes this one."""
    return 16 if "avx512f" in (_isa_here() if machine is None else machine.isa) else 8


@functools.cache
def _isa_here() -> tuple[str, ...]:
    return Processors(SYSFS, PROC).isa(tuple(os.sched_getaffinity(0)))


def detect(
    sysfs: Path = SYSFS, proc: Path = PROC, allowed: Iterable[int] | None = None, environ: Mapping[str, str] = os.environ
) -> Topology:
    """Describe the machine as far as this process may use it.

    Args:
        sysfs: Root of sysfs.
        proc: Root of procfs.
        allowed: CPUs this process may use, before the cgroup's cpuset; default its affinity.
        environ: Where limits of a job are looked up.

    Raises:
        InputError: `allowed` is empty, or a limit of a job is no number.
    """
    processors, cgroups = Processors(sysfs, proc), Cgroups(sysfs, proc)
    cpus = _usable(frozenset(_affinity(proc) if allowed is None else allowed), processors, cgroups)
    memory_nodes, kinds = MemoryNodes.read(sysfs, proc, cgroups), processors.kinds(cpus)
    numa_nodes = cpu_nodes(list(memory_nodes.every), cpus)
    node_of = {cpu: node for node, here in numa_nodes.items() for cpu in here}
    package_of = {cpu: processors.package(cpu) for cpu in cpus}
    packages = sorted(set(package_of.values()))

    def place(core: tuple[int, ...]) -> tuple[tuple[int, int], int, int, int]:
        return package_of[core[0]], node_of.get(core[0], -1), kinds.get(core[0], 0), core[0]

    cores = sorted({tuple(sorted(processors.siblings(cpu) & set(cpus))) for cpu in cpus}, key=place)
    caches = processors.caches(cpus)
    l3 = {cache.shared: cache.size_bytes for cache in caches if cache.level == 3}
    memory_bytes = _memory_bytes(proc, memory_nodes)
    limit_bytes = min((limit.limit_bytes for limit in memory_limits(cgroups, proc, environ)), default=memory_bytes)
    cpu_model, vendor = processors.name(cpus)
    return Topology(
        cpu_model=cpu_model,
        vendor=vendor,
        sockets=len(packages),
        physical_cores=len(cores),
        logical_cpus=len(cpus),
        allowed_cpus=cpus,
        core_cpus=tuple(cores),
        socket_of_core=tuple(packages.index(package_of[core[0]]) for core in cores),
        core_kinds=tuple(kinds[core[0]] for core in cores) if kinds else (),
        numa_nodes=numa_nodes,
        l1d_bytes=processors.bytes_per_core(caches, 1) or _FALLBACK_L1D_BYTES,
        l2_bytes=processors.bytes_per_core(caches, 2) or _FALLBACK_L2_BYTES,
        l3_bytes=max(l3.values(), default=0),
        l3_instances=len(l3),
        memory_side_cache_bytes=sum(node.cache_bytes for node in memory_nodes.counted),
        line_bytes=max((cache.line_bytes for cache in caches), default=0) or _LINE_BYTES,
        isa=processors.isa(cpus),
        cpu_quota=cgroups.cpu_quota,
        memory_bytes=memory_bytes,
        memory_limit_bytes=limit_bytes if limit_bytes < memory_bytes else None,
        huge_pages=_huge_pages(sysfs),
    )


def _memory_bytes(proc: Path, memory_nodes: MemoryNodes) -> int:
    """Memory of the machine, without nodes that do not count."""
    told = [size for size in (meminfo(proc).get("MemTotal"), memory_nodes.memory_bytes) if size]
    return min(told, default=0) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def core_binding(topology: Topology, threads: int, oversubscribe: bool = False) -> tuple[int, ...]:
    """Logical CPUs to bind `threads` threads to: one a physical core, the first socket first, in it fast cores before slow ones.

    Args:
        oversubscribe: Allow more threads than cores: the other hyperthreads are used next, then all again.

    Raises:
        InputError: `threads` is below 1.
        MachineError: more threads than allowed physical cores.
    """
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}; ask for 1 to {topology.physical_cores}")
    if threads > topology.physical_cores and not oversubscribe:
        raise MachineError(
            f"threads must not exceed the {topology.physical_cores} physical cores that this process may use, got {threads}; "
            f"use {topology.physical_cores} or fewer, or widen the cpuset"
        )
    widest = max(len(core) for core in topology.core_cpus)
    order = [core[sibling] for sibling in range(widest) for core in topology.core_cpus if sibling < len(core)]
    return tuple(order[thread % len(order)] for thread in range(threads))


def fingerprint(topology: Topology, target: str) -> Fingerprint:
    """What a result measured here depends on, `target` being the kernel target chosen by CPUID."""
    versions = {"python": platform.python_version()}
    for name, distribution in (("torch", "torch"), ("numpy", "numpy"), ("autotune", "dlrm-autotune")):
        try:
            versions[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return Fingerprint(topology=topology, kernel=platform.release(), versions=versions, target=target)


def fingerprint_differences(config: Fingerprint, here: Fingerprint) -> list[str]:
    """Differences of the hardware, in words such as ``l2_bytes: config 1048576, here 2097152``; empty when results may be compared.

    CPU numbers, cgroup memory limits and settings of the system do not count; memory counts from 10 % on.
    """
    a, b = config.topology, here.topology
    pairs: list[tuple[str, object, object]] = [(name, getattr(a, name), getattr(b, name)) for name in _HARDWARE_FIELDS]
    pairs.append(("numa_nodes", len(a.numa_nodes), len(b.numa_nodes)))
    only_a, only_b = (" ".join(sorted(only)) or "without" for only in (set(a.isa) - set(b.isa), set(b.isa) - set(a.isa)))
    pairs.append(("isa", only_a, only_b))
    if abs(a.memory_bytes - b.memory_bytes) > _MEMORY_TOLERANCE * max(a.memory_bytes, b.memory_bytes):
        pairs.append(("memory_bytes", a.memory_bytes, b.memory_bytes))
    return _differences([*pairs, ("target", config.target, here.target)])


def software_differences(config: Fingerprint, here: Fingerprint) -> list[str]:
    """Differences of the software and its settings: kernel, versions, huge pages; in the words of `fingerprint_differences`."""
    versions = sorted(config.versions.keys() | here.versions.keys())
    return _differences(
        [
            ("kernel", config.kernel, here.kernel),
            ("huge_pages", config.topology.huge_pages, here.topology.huge_pages),
            *((name, config.versions.get(name, "none"), here.versions.get(name, "none")) for name in versions),
        ]
    )


def hardware_id(fingerprint: Fingerprint) -> str:
    """Twelve hexadecimal digits that name the hardware in file names of the cache. Memory counts in steps of the square root of 2."""
    topology = fingerprint.topology
    parts = {name: getattr(topology, name) for name in _HARDWARE_FIELDS} | {
        "numa_nodes": len(topology.numa_nodes),
        "isa": sorted(topology.isa),
        "target": fingerprint.target,
        "memory_step": round(2 * math.log2(max(1, topology.memory_bytes))),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _differences(values: Iterable[tuple[str, object, object]]) -> list[str]:
    return [f"{name}: config {config}, here {here}" for name, config, here in values if config != here]


def _affinity(proc: Path) -> set[int]:
    """The affinity of this process, or what it was before OpenMP bound the first thread to its place.

    OpenMP binds when torch loads it, and its places may be fewer than the CPUs that are allowed: what was seen when this module was
    imported counts too, which the command line does before it imports torch.
    """
    try:
        cpus = set(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return set(range(os.cpu_count() or 1))
    library = re.search(r"/\S*/lib[gi]?omp[\w.-]*\.so[.\d]*$", read_text(proc / "self/maps"), re.MULTILINE)
    if library and any(name in os.environ for name in OPENMP_BINDING):
        cpus |= _SEEN_AT_IMPORT
        try:
            openmp = ctypes.CDLL(library.group())
            for place in range(openmp.omp_get_num_places()):
                ids = (ctypes.c_int * openmp.omp_get_place_num_procs(place))()
                openmp.omp_get_place_proc_ids(place, ids)
                cpus.update(ids)
        except (OSError, AttributeError):
            return cpus
    return cpus


_SEEN_AT_IMPORT = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def _usable(allowed: frozenset[int], processors: Processors, cgroups: Cgroups) -> tuple[int, ...]:
    if not allowed:
        raise InputError("allowed must name at least one CPU, got none; leave it out to use the affinity of this process")
    online = {cpu for cpu in allowed if read_text(processors.folder(cpu) / "online") != "0"} or set(allowed)
    # A container may number its cpuset otherwise than the host: an intersection that is empty tells nothing.
    return tuple(sorted((online & cgroups.cpuset) or online))


def _huge_pages(sysfs: Path) -> Literal["always", "madvise", "never", "unknown"]:
    chosen = re.search(r"\[(always|madvise|never)\]", read_text(sysfs / "kernel/mm/transparent_hugepage/enabled"))
    return cast(Literal["always", "madvise", "never"], chosen.group(1)) if chosen else "unknown"
