"""What this process may use of the machine: cores, caches, NUMA nodes, limits; and how two machines differ.

Everything is read from `/sys` and `/proc`, both of which can be given, so any machine can be described by a folder. Whatever is missing
there (containers, virtual machines, boards) falls back to something smaller, never to an exception.

Source: Linux kernel documentation, ABI/stable/sysfs-devices-system-cpu; proc(5).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, cast

from autotune.config.profile import Fingerprint, Topology
from autotune.errors import InputError, MachineError
from autotune.machine.cgroups import Cgroups
from autotune.machine.sysfs import parse_cpu_list, read_text

SYSFS = Path("/sys")
PROC = Path("/proc")

# The smallest L1D and L2 among the AVX2 machines (Haswell, 2013), for machines that do not tell: blockings that fit them fit any other.
_FALLBACK_L1D_BYTES = 32 * 1024
_FALLBACK_L2_BYTES = 256 * 1024
_LINE_BYTES = 64
_ISA = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx_vnni", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2", "svebf16"),
)
# Main ID register values: implementer, then part. Source: Arm architecture reference manual, MIDR_EL1; parts from the cores' manuals.
_ARM_VENDORS = {"0x41": "ARM", "0x42": "Broadcom", "0x46": "Fujitsu", "0x48": "HiSilicon", "0x61": "Apple", "0xc0": "Ampere"}
_ARM_PARTS = {
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x46", "0x001"): "A64FX",
}
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


def detect(sysfs: Path = SYSFS, proc: Path = PROC, allowed: Iterable[int] | None = None) -> Topology:
    """Describe the machine as far as this process may use it.

    Args:
        sysfs: Root of sysfs.
        proc: Root of procfs.
        allowed: CPUs this process may use, before the cgroup's cpuset; default its affinity.

    Raises:
        InputError: `allowed` is empty.
    """
    blocks = _cpuinfo(proc)
    cgroups = Cgroups(sysfs, proc)
    cpus = _usable(frozenset(_affinity(proc) if allowed is None else allowed), sysfs, cgroups)
    core_of = {cpu: _siblings(sysfs, blocks, cpu) & set(cpus) for cpu in cpus}
    package_of = {cpu: _package(sysfs, blocks, cpu) for cpu in cpus}
    packages = sorted(set(package_of.values()))
    cores = sorted({tuple(sorted(core)) for core in core_of.values()}, key=lambda core: (package_of[core[0]], core))
    caches = _caches(sysfs, cpus)
    l3 = {cache.shared: cache.size_bytes for cache in caches if cache.level == 3}
    memory_bytes = _meminfo(proc).get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit_bytes = min((limit for limit, _ in cgroups.memory), default=None)
    cpu_model, vendor = _name(blocks, cpus)
    return Topology(
        cpu_model=cpu_model,
        vendor=vendor,
        sockets=len(packages),
        physical_cores=len(cores),
        logical_cpus=len(cpus),
        allowed_cpus=cpus,
        core_cpus=tuple(cores),
        socket_of_core=tuple(packages.index(package_of[core[0]]) for core in cores),
        numa_nodes=_numa_nodes(sysfs, cpus),
        l1d_bytes=_per_core(caches, 1, sysfs, blocks) or _FALLBACK_L1D_BYTES,
        l2_bytes=_per_core(caches, 2, sysfs, blocks) or _FALLBACK_L2_BYTES,
        l3_bytes=max(l3.values(), default=0),
        l3_instances=len(l3),
        line_bytes=max((cache.line_bytes for cache in caches), default=0) or _LINE_BYTES,
        isa=_isa(blocks, cpus),
        cpu_quota=cgroups.cpu_quota,
        memory_bytes=memory_bytes,
        memory_limit_bytes=limit_bytes if limit_bytes is not None and limit_bytes < memory_bytes else None,
        huge_pages=_huge_pages(sysfs),
    )


def available_memory_bytes(topology: Topology, sysfs: Path = SYSFS, proc: Path = PROC) -> int:
    """Bytes that can be allocated now: the least of what the system has available and what every cgroup above this process leaves.

    A cgroup leaves its limit, minus its usage, plus its file cache, which the kernel gives back on demand.
    """
    meminfo = _meminfo(proc)
    free_bytes = sum(meminfo.get(key, 0) for key in ("MemFree", "Buffers", "Cached"))
    left = [topology.memory_bytes, meminfo.get("MemAvailable", free_bytes) if meminfo else topology.memory_bytes]
    if topology.memory_limit_bytes is not None:
        left.append(topology.memory_limit_bytes)
    left += [limit - usage for limit, usage in Cgroups(sysfs, proc).memory]
    return max(0, min(left))


def core_binding(topology: Topology, threads: int, oversubscribe: bool = False) -> tuple[int, ...]:
    """Logical CPUs to bind `threads` threads to: one a physical core, the first socket first.

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
    if library and any(name in os.environ for name in ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")):
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


def _usable(allowed: frozenset[int], sysfs: Path, cgroups: Cgroups) -> tuple[int, ...]:
    if not allowed:
        raise InputError("allowed must name at least one CPU, got none; leave it out to use the affinity of this process")
    online = {cpu for cpu in allowed if read_text(_cpu(sysfs, cpu) / "online") != "0"} or set(allowed)
    # A container may number its cpuset otherwise than the host: an intersection that is empty tells nothing.
    return tuple(sorted((online & cgroups.cpuset) or online))


def _cpu(sysfs: Path, cpu: int) -> Path:
    return sysfs / f"devices/system/cpu/cpu{cpu}"


def _cpuinfo(proc: Path) -> dict[int, dict[str, str]]:
    """Fields of each processor; what stands outside the processors' blocks (aarch64's Hardware) counts for all."""
    blocks: dict[int, dict[str, str]] = {}
    common: dict[str, str] = {}
    for text in re.split(r"\n\s*\n", read_text(proc / "cpuinfo")):
        fields = {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in text.splitlines()) if colon}
        number = fields.get("processor", "")
        if number.isdigit():
            blocks[int(number)] = fields
        else:
            common |= fields
    return {number: common | fields for number, fields in blocks.items()} or ({-1: common} if common else {})


def _blocks_of(blocks: dict[int, dict[str, str]], cpus: tuple[int, ...]) -> list[dict[str, str]]:
    return [blocks[cpu] for cpu in cpus if cpu in blocks] or list(blocks.values())


def _name(blocks: dict[int, dict[str, str]], cpus: tuple[int, ...]) -> tuple[str, str]:
    """CPU model and vendor; the models of a hybrid machine are joined."""
    models: list[str] = []
    vendor = ""
    for block in _blocks_of(blocks, cpus):
        implementer, part = block.get("CPU implementer", ""), block.get("CPU part", "")
        arm = _ARM_PARTS.get((implementer, part), f"{_ARM_VENDORS.get(implementer, implementer)} {part}") if implementer else ""
        model = block.get("model name") or arm or block.get("cpu") or block.get("Hardware") or ""
        vendor = vendor or block.get("vendor_id") or _ARM_VENDORS.get(implementer, implementer)
        if model and model not in models:
            models.append(model)
    return " + ".join(models) or platform.machine() or "unknown", vendor or "unknown"


def _isa(blocks: dict[int, dict[str, str]], cpus: tuple[int, ...]) -> tuple[str, ...]:
    """Extensions that every allowed CPU offers."""
    offered = [set((block.get("flags") or block.get("Features") or "").split()) for block in _blocks_of(blocks, cpus)]
    return tuple(name for name in _ISA if offered and all(name in flags for flags in offered))


def _siblings(sysfs: Path, blocks: dict[int, dict[str, str]], cpu: int) -> set[int]:
    """Logical CPUs of the core that `cpu` belongs to."""
    topology = _cpu(sysfs, cpu) / "topology"
    siblings = parse_cpu_list(read_text(topology / "core_cpus_list") or read_text(topology / "thread_siblings_list"))
    if cpu in siblings:
        return set(siblings)
    core = [blocks.get(cpu, {}).get(key) for key in ("physical id", "core id")]
    if None in core:
        return {cpu}
    return {other for other, block in blocks.items() if [block.get(key) for key in ("physical id", "core id")] == core}


def _package(sysfs: Path, blocks: dict[int, dict[str, str]], cpu: int) -> int:
    """Number of the socket; 0 where firmware does not tell (-1 on some aarch64 boards)."""
    text = read_text(_cpu(sysfs, cpu) / "topology/physical_package_id") or blocks.get(cpu, {}).get("physical id", "")
    return int(text) if text.isdigit() else 0


@dataclass(frozen=True)
class _Cache:
    level: int
    size_bytes: int
    line_bytes: int
    shared: frozenset[int]


def _caches(sysfs: Path, cpus: tuple[int, ...]) -> list[_Cache]:
    """Data caches that the CPUs see, each instance once."""
    caches: dict[tuple[int, frozenset[int]], _Cache] = {}
    for cpu in cpus:
        for index in sorted((_cpu(sysfs, cpu) / "cache").glob("index*")):
            level, kind = read_text(index / "level"), read_text(index / "type")
            size_bytes = _cache_bytes(index)
            if not level.isdigit() or kind == "Instruction" or not size_bytes:
                continue
            shared = frozenset(parse_cpu_list(read_text(index / "shared_cpu_list"))) | {cpu}
            line = read_text(index / "coherency_line_size")
            caches[int(level), shared] = _Cache(int(level), size_bytes, int(line) if line.isdigit() else 0, shared)
    return list(caches.values())


def _cache_bytes(index: Path) -> int:
    size = re.fullmatch(r"(\d+)([KMG]?)", read_text(index / "size"))
    if size:
        return int(size.group(1)) << 10 * " KMG".index(size.group(2) or " ")
    shape = [read_text(index / name) for name in ("number_of_sets", "ways_of_associativity", "coherency_line_size")]
    return math.prod(int(x) for x in shape) if all(x.isdigit() for x in shape) else 0


def _per_core(caches: list[_Cache], level: int, sysfs: Path, blocks: dict[int, dict[str, str]]) -> int:
    """Bytes of this level for one core, the least over the cores: hybrid machines have several kinds."""
    shares = []
    for cache in caches:
        if cache.level == level:
            cores = {frozenset(_siblings(sysfs, blocks, cpu)) for cpu in cache.shared}
            shares.append(cache.size_bytes // len(cores))
    return min(shares, default=0)


def _numa_nodes(sysfs: Path, cpus: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Nodes that hold an allowed CPU; nodes of memory alone are left out."""
    nodes: dict[int, tuple[int, ...]] = {}
    for folder in (sysfs / "devices/system/node").glob("node*"):
        number = folder.name.removeprefix("node")
        here = tuple(cpu for cpu in parse_cpu_list(read_text(folder / "cpulist")) if cpu in cpus)
        if number.isdigit() and here:
            nodes[int(number)] = here
    return dict(sorted(nodes.items())) or {0: cpus}


def _meminfo(proc: Path) -> dict[str, int]:
    """Bytes by name."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB", read_text(proc / "meminfo"), re.MULTILINE)
    return {name: int(value) * 1024 for name, value in lines}


def _huge_pages(sysfs: Path) -> Literal["always", "madvise", "never", "unknown"]:
    chosen = re.search(r"\[(always|madvise|never)\]", read_text(sysfs / "kernel/mm/transparent_hugepage/enabled"))
    return cast(Literal["always", "madvise", "never"], chosen.group(1)) if chosen else "unknown"
