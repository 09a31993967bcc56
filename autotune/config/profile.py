"""A machine: what it is (fingerprint, topology) and what it reaches (ceilings, measured or from a datasheet)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from autotune.config.base import Frozen
from autotune.config.calibration import CalibrationRun
from autotune.config.network import Network

# 3: the share of disturbed ceilings (`disturbed`); of older files it is not known, and taken as 0.
# 2: the passes of reference models (`calibration`), the gain of bf16, and sources of single numbers; version 1 has none of them.
# 1: first version.
PROFILE_SCHEMA = 3

DISTURBED_SHARE = 0.5
"""Share of disturbed ceilings above which a profile is not to be relied on."""
_HIDDEN_CACHE_BYTES = 32 << 20
"""Last-level cache assumed where a virtual machine shows none."""


class Topology(Frozen):
    """What this process may use of the machine it runs on."""

    cpu_model: str
    vendor: str
    sockets: int = Field(ge=1)
    """Sockets that hold at least one allowed core."""
    physical_cores: int = Field(ge=1)
    """Allowed physical cores, hyperthreads not counted."""
    logical_cpus: int = Field(ge=1)
    """Allowed logical CPUs."""
    allowed_cpus: tuple[int, ...]
    """The cpuset of this process."""
    core_cpus: tuple[tuple[int, ...], ...]
    """Logical CPUs of every allowed physical core, by socket, in it by NUMA node, in that fast cores before slow ones."""
    socket_of_core: tuple[int, ...]
    """Socket (0-based) of each entry of `core_cpus`."""
    core_kinds: tuple[int, ...] = ()
    """Kind of each entry of `core_cpus`, 0 the fastest; empty where all are of one kind. Left out of files then."""
    numa_nodes: dict[int, tuple[int, ...]]
    """NUMA node -> its allowed logical CPUs."""
    l1d_bytes: int = Field(ge=0)
    l2_bytes: int = Field(ge=0)
    """Per core."""
    l3_bytes: int = Field(ge=0)
    """Per shared instance; 0 where there is none."""
    l3_instances: int = Field(ge=0)
    """How many L3 instances the allowed CPUs see."""
    memory_side_cache_bytes: int = Field(0, ge=0)
    """Cache between the cores and memory, over all nodes, such as fast memory in cache mode. Left out of files where there is none."""
    line_bytes: int = Field(64, gt=0)
    isa: tuple[str, ...]
    """Instruction sets that the CPU and the kernel offer: avx2, fma, avx512f, avx512bw, avx512vl, avx512_bf16, amx_bf16 ..."""
    cpu_quota: float | None = Field(gt=0)
    """CPUs' worth of time that the cgroup grants; None when unlimited."""
    memory_bytes: int = Field(gt=0)
    """Physical memory."""
    memory_limit_bytes: int | None = Field(gt=0)
    """Least limit of the control groups, the job or the shell; None when unlimited."""
    huge_pages: Literal["always", "madvise", "never", "unknown"]
    """Transparent huge pages setting of the kernel."""

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if value or key not in ("core_kinds", "memory_side_cache_bytes")}

    def default_threads(self, ranks: int = 1) -> int:
        """Threads of a team without tuning: one a core, no more than the CPU quota rounded down, shared by `ranks`; at least 1."""
        granted = self.physical_cores if self.cpu_quota is None else min(self.physical_cores, int(self.cpu_quota))
        return max(1, granted // max(1, ranks))

    @property
    def last_level_bytes(self) -> int:
        """All last-level caches together; what a virtual machine may hide where it shows none."""
        return self.l3_bytes * max(1, self.l3_instances) or _HIDDEN_CACHE_BYTES


class Fingerprint(Frozen):
    """What a result depends on besides the code. `hardware` decides whether two results may be compared."""

    topology: Topology
    kernel: str
    """Operating system kernel release."""
    versions: dict[str, str]
    """python, torch, numpy, autotune."""
    target: str
    """Kernel target chosen by CPUID: scalar, avx2, avx512."""


class ComputePoint(Frozen):
    """Arithmetic reached at one thread count."""

    threads: int = Field(ge=1)
    flops_per_s: float = Field(gt=0)
    shape: str = ""
    """For a GEMM: MxNxK and the implementation."""


class StreamPoint(Frozen):
    """Sequential bandwidth: read, copy, triad, copy_nt (non-temporal), update (in place)."""

    kind: Literal["read", "copy", "triad", "copy_nt", "update"]
    threads: int = Field(ge=1)
    bandwidth_bytes_per_s: float = Field(gt=0)


class RowPoint(Frozen):
    """Random whole rows of a table: pooled sums (gather) or read-modify-write (scatter)."""

    row_bytes: int = Field(ge=1)
    working_set_bytes: int = Field(ge=1)
    threads: int = Field(ge=1)
    bandwidth_bytes_per_s: float = Field(gt=0)
    """Row bytes per second; for scatter a row counts twice, once read and once written."""


class TimePoint(Frozen):
    threads: int = Field(ge=1)
    time_s: float = Field(gt=0)


class Ceilings(Frozen):
    """What the machine reaches at best, per access pattern and thread count."""

    fma: tuple[ComputePoint, ...]
    gemm: tuple[ComputePoint, ...]
    stream: tuple[StreamPoint, ...]
    gather: tuple[RowPoint, ...]
    scatter: tuple[RowPoint, ...]
    fork_join: tuple[TimePoint, ...]


class Profile(Frozen):
    """A hardware profile as it stands in YAML."""

    schema_version: int = Field(PROFILE_SCHEMA, alias="schema")
    name: str
    source: str
    """Where the numbers come from: measured by `probe`, or a publication."""
    created: str
    """ISO 8601, UTC."""
    fingerprint: Fingerprint
    ceilings: Ceilings
    network: Network | None = None
    """Between ranks; None where it was not measured."""
    calibration: tuple[CalibrationRun, ...] = ()
    """What passes took inside the steps of reference models; empty where nothing could be run."""
    bf16_gain: float = Field(1.0, gt=0)
    """Arithmetic in bf16 over that in fp32; 1 where the CPU has no instructions for it, or nobody looked."""
    memory_per_socket_bytes: int | None = Field(None, gt=0)
    """For models, where the topology's memory is not to be had whole; None takes the topology's over its sockets."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Origin of single numbers by name: ``measured``, ``datasheet: ...`` or ``assumed: ...``; empty where all are measured."""
    disturbed: float = Field(0.0, ge=0, le=1)
    """Share of the ceilings that were disturbed while they were measured: their times varied by more than 20 % between quartiles, or most
    rounds ran beside other programs."""
    notes: tuple[str, ...] = ()
    """What disturbed the measurement, if anything did."""
    model_config = Frozen.model_config | {"populate_by_name": True, "serialize_by_alias": True}

    @property
    def is_disturbed(self) -> bool:
        return self.disturbed > DISTURBED_SHARE

    @property
    def warnings(self) -> tuple[str, ...]:
        """First note of every result that rests on this profile; empty unless it is disturbed."""
        if not self.is_disturbed:
            return ()
        what = f"the profile was measured on a disturbed machine ({self.created}: {self.disturbed:.0%} of its ceilings varied)"
        return (f"{what}, so bounds and predictions are not to be relied on; run autotune probe --refresh when it is quiet",)
