"""The rates of a machine in which operators count their features, and what every pass costs beside its operator's own terms.

A feature is a plain count (flops of padded panels, rows from memory, vectors copied, calls) over a rate of the profile, so that the same
weights serve other shapes, thread counts and machines. `perf.regression` fits the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autotune.config.knobs import Knobs
from autotune.config.model import Dtype
from autotune.config.profile import Profile
from autotune.ops.base import Features, Residence
from autotune.ops.schedule import Pass
from autotune.perf.roofline import fork_join_s, gemm_ceiling, row_ceiling, stream_ceiling

CACHE_SHARE = 0.75
"""Part of a cache that a step's data can count on: conflicts, code, stacks and other programs take the rest."""
_HIDDEN_CACHE_BYTES = 32 << 20
"""Last-level cache assumed where the machine does not tell."""
CALL_S = 1e-6
"""Unit of the feature `call`."""


@dataclass(frozen=True)
class Machine:
    """A profile at one number of threads: rates, and times in cycles of one core."""

    profile: Profile
    threads: int
    dtype: Dtype = "fp32"
    share: float = CACHE_SHARE
    """Part of the last-level cache that is this program's: in a virtual machine others use it too, and no datasheet tells how much."""
    huge_pages: bool = True
    """Whether tables lie on 2 MiB pages."""

    def __post_init__(self) -> None:
        topology, ceilings, threads = self.profile.fingerprint.topology, self.profile.ceilings, self.threads
        lanes = 16 if "avx512f" in topology.isa and self.profile.fingerprint.target != "avx2" else 8
        kinds = {point.kind for point in ceilings.stream}
        per_core = gemm_ceiling(ceilings, threads) / threads
        put = object.__setattr__
        put(self, "lanes", lanes)
        put(self, "flops_per_s", gemm_ceiling(ceilings, threads) * (self.profile.bf16_gain if self.dtype == "bf16" else 1.0))
        # Two multiply-adds a cycle: of cores with one such unit these are half cycles, and the weights of a law follow.
        put(self, "cycle_s", 4.0 * lanes / per_core)
        put(self, "stream_bytes_per_s", max(stream_ceiling(ceilings, kind, threads) for kind in kinds or {"read"}))
        put(self, "own_bytes", CACHE_SHARE * topology.l2_bytes * threads)
        instances = max(1, topology.l3_instances) * min(1.0, threads / max(1, topology.physical_cores))
        shared = topology.l3_bytes * max(1.0, instances) or _HIDDEN_CACHE_BYTES
        put(self, "shared_bytes", max(self.share * shared, CACHE_SHARE * topology.l2_bytes * threads))
        widest = max((point.row_bytes for point in ceilings.gather), default=1024)
        put(self, "shared_bytes_per_s", self.rows_per_s("gather", widest, shared / 2))
        put(self, "fork_s", fork_join_s(ceilings, threads))
        put(self, "l2_bytes", float(topology.l2_bytes))
        put(self, "l3_bytes", float(topology.l3_bytes or _HIDDEN_CACHE_BYTES))

    lanes: int = 0
    flops_per_s: float = 0.0
    cycle_s: float = 0.0
    stream_bytes_per_s: float = 0.0
    own_bytes: float = 0.0
    shared_bytes: float = 0.0
    shared_bytes_per_s: float = 0.0
    fork_s: float = 0.0
    l2_bytes: float = 0.0
    l3_bytes: float = 0.0

    def rows_per_s(self, access: Literal["gather", "scatter"], row_bytes: int, working_set_bytes: float) -> float:
        """Row bytes per second; narrower rows than any measured take the time of the narrowest."""
        points = self.profile.ceilings.gather if access == "gather" else self.profile.ceilings.scatter
        known = max(row_bytes, min((point.row_bytes for point in points), default=row_bytes))
        rate = row_ceiling(self.profile.ceilings, access, known, max(working_set_bytes, 1.0), self.threads)
        return rate.bandwidth_bytes_per_s * row_bytes / known


def bf16_gain(profile: Profile, dtype: str) -> float:
    """Of arithmetic over fp32's; 1 where the profile knows of none."""
    return profile.bf16_gain if dtype == "bf16" else 1.0


def features_of(each: Pass, residence: Residence, knobs: Knobs | None, machine: Machine) -> Features:
    """All features of a pass, seconds each: its operator's, and those of calls, forks and arrays that no cache holds."""
    return each.operator.features(knobs, residence, machine) | {
        "call": CALL_S,
        "fork": each.operator.work().parallel_regions * machine.fork_s,
        "memory": residence.memory_bytes / machine.stream_bytes_per_s,
        "shared": residence.shared_bytes / machine.shared_bytes_per_s,
    }
