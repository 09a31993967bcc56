"""Logical CPUs of a machine: name, instruction sets, the core and socket of each, caches, fast and slow kinds.

Source: Linux kernel documentation, ABI/stable/sysfs-devices-system-cpu and admin-guide/cputopology; proc(5). Which file counts where two
disagree follows hwloc, so that both draw the same machine.
"""

from __future__ import annotations

import functools
import math
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from autotune.machine.sysfs import numbered, parse_cpu_list, read_cpus, read_text

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
# Two integer cores of these families share a floating-point unit; Linux calls them threads, and gives them core ids of their own.
_MODULE_FAMILIES = ("21",)
# Cores of one kind differ by a few percent, those that may boost highest by 7 % on current desktops; small cores by 25 % and more.
_SAME_KIND = 0.90


@dataclass(frozen=True)
class Cache:
    """One instance of a data or unified cache."""

    level: int
    size_bytes: int
    line_bytes: int
    """0 where it is not told."""
    shared: frozenset[int]
    """Logical CPUs that share it."""


class Processors:
    """What sysfs and procfs tell of logical CPUs. Files are read when they are asked for."""

    def __init__(self, sysfs: Path, proc: Path) -> None:
        self._sysfs = sysfs
        self._blocks = _cpuinfo(proc)
        self.siblings = functools.cache(self._siblings)
        """Logical CPUs of the core that a CPU belongs to."""

    def folder(self, cpu: int) -> Path:
        return self._sysfs / f"devices/system/cpu/cpu{cpu}"

    def _siblings(self, cpu: int) -> frozenset[int]:
        block = self._blocks.get(cpu, {})
        topology = self.folder(cpu) / "topology"
        siblings = read_cpus(topology, "core_cpus", "thread_siblings", "core_cpus_list", "thread_siblings_list")
        if cpu in siblings:
            module = block.get("vendor_id") == "AuthenticAMD" and block.get("cpu family") in _MODULE_FAMILIES
            return frozenset(other for other in siblings if not module or self._core_id(other) == self._core_id(cpu))
        core = [block.get(key) for key in ("physical id", "core id")]
        if None in core:
            return frozenset((cpu,))
        return frozenset(other for other, each in self._blocks.items() if [each.get(key) for key in ("physical id", "core id")] == core)

    def _core_id(self, cpu: int) -> str:
        return read_text(self.folder(cpu) / "topology/core_id")

    def package(self, cpu: int) -> tuple[int, int]:
        """What tells the socket of `cpu` from others, in the order of sockets.

        The lowest CPU of its list, where there is one: package ids are -1 on boards whose firmware does not tell, and on s390 are met again
        in every book. Else the package id; 0 where that is not told either.
        """
        topology = self.folder(cpu) / "topology"
        listed = read_cpus(topology, "package_cpus", "core_siblings", "package_cpus_list", "core_siblings_list")
        if cpu in listed:
            return listed[0], 0
        text = read_text(topology / "physical_package_id") or self._blocks.get(cpu, {}).get("physical id", "")
        return 0, int(text) if text.isdecimal() else 0

    def caches(self, cpus: tuple[int, ...]) -> list[Cache]:
        """Data caches that the CPUs see, each instance once."""
        caches: dict[tuple[int, frozenset[int]], Cache] = {}
        for cpu in cpus:
            for _, index in numbered(self.folder(cpu) / "cache", "index"):
                level, kind = read_text(index / "level"), read_text(index / "type")
                size_bytes = _cache_bytes(index)
                if not level.isdecimal() or kind == "Instruction" or not size_bytes:
                    continue
                shared = frozenset(read_cpus(index, "shared_cpu_map", "shared_cpu_list"))
                shared = shared if cpu in shared else self.siblings(cpu)
                line = read_text(index / "coherency_line_size")
                caches[int(level), shared] = Cache(int(level), size_bytes, int(line) if line.isdecimal() else 0, shared)
        return list(caches.values())

    def bytes_per_core(self, caches: list[Cache], level: int) -> int:
        """Bytes of this level for one core, the least over the cores: hybrid machines have several kinds."""
        shares = (
            cache.size_bytes // len({self.siblings(cpu) for cpu in cache.shared if self.folder(cpu).exists()} or {cache.shared})
            for cache in caches
            if cache.level == level
        )
        return min(shares, default=0)

    def kinds(self, cpus: tuple[int, ...]) -> dict[int, int]:
        """Kind of every CPU, 0 the fastest; empty where all are of one kind or nothing tells.

        By capacity, else by the kernel's lists of big and small cores, else by the highest frequency.
        """
        for speeds in (
            {cpu: _number(self.folder(cpu) / "cpu_capacity") for cpu in cpus},
            self._listed_speeds(cpus),
            {cpu: _number(self.folder(cpu) / "cpufreq/cpuinfo_max_freq") for cpu in cpus},
        ):
            kinds: dict[int, int] = {}
            kind, first = -1, math.inf
            for cpu, speed in sorted(speeds.items(), key=lambda item: -item[1]):
                if speed < _SAME_KIND * first:
                    kind, first = kind + 1, speed
                kinds[cpu] = kind
            if kind > 0 and all(speeds.values()):
                return kinds
        return {}

    def _listed_speeds(self, cpus: tuple[int, ...]) -> dict[int, float]:
        """3 for CPUs that the kernel lists as big, 2 for small ones, 1 for the smallest; only their order means something."""
        names = {"cpu_core": 3.0, "cpu_atom": 2.0, "cpu_lowpower": 1.0}
        listed = {cpu: speed for name, speed in names.items() for cpu in parse_cpu_list(read_text(self._sysfs / f"devices/{name}/cpus"))}
        return {cpu: listed.get(cpu, 0.0) for cpu in cpus}

    def name(self, cpus: tuple[int, ...]) -> tuple[str, str]:
        """CPU model and vendor; the models of a hybrid machine are joined."""
        models: list[str] = []
        vendor = ""
        for block in self._blocks_of(cpus):
            implementer, part = block.get("CPU implementer", ""), block.get("CPU part", "")
            arm = _ARM_PARTS.get((implementer, part), f"{_ARM_VENDORS.get(implementer, implementer)} {part}") if implementer else ""
            model = block.get("model name") or arm or block.get("cpu") or block.get("Hardware") or ""
            vendor = vendor or block.get("vendor_id") or _ARM_VENDORS.get(implementer, implementer)
            if model and model not in models:
                models.append(model)
        return " + ".join(models) or platform.machine() or "unknown", vendor or "unknown"

    def isa(self, cpus: tuple[int, ...]) -> tuple[str, ...]:
        """Extensions that every CPU offers."""
        offered = [set((block.get("flags") or block.get("Features") or "").split()) for block in self._blocks_of(cpus)]
        return tuple(name for name in _ISA if offered and all(name in flags for flags in offered))

    def _blocks_of(self, cpus: tuple[int, ...]) -> list[dict[str, str]]:
        return [self._blocks[cpu] for cpu in cpus if cpu in self._blocks] or list(self._blocks.values())


def _cpuinfo(proc: Path) -> dict[int, dict[str, str]]:
    """Fields of each processor; what stands outside the processors' blocks (aarch64's Hardware) counts for all."""
    blocks: dict[int, dict[str, str]] = {}
    common: dict[str, str] = {}
    for text in re.split(r"\n\s*\n", read_text(proc / "cpuinfo")):
        fields = {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in text.splitlines()) if colon}
        number = fields.get("processor", "")
        if number.isdecimal():
            blocks[int(number)] = fields
        else:
            common |= fields
    return {number: common | fields for number, fields in blocks.items()} or ({-1: common} if common else {})


def _cache_bytes(index: Path) -> int:
    size = re.fullmatch(r"(\d+)([KMG]?)", read_text(index / "size"))
    if size:
        return int(size.group(1)) << 10 * " KMG".index(size.group(2) or " ")
    shape = [read_text(index / name) for name in ("number_of_sets", "ways_of_associativity", "coherency_line_size")]
    return math.prod(int(x) for x in shape) if all(x.isdecimal() for x in shape) else 0


def _number(file: Path) -> float:
    text = read_text(file)
    return float(text) if text.isdecimal() else 0.0
