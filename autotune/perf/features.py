"""The rates of a machine in which operators count their features, and what every pass costs beside its operator's own terms.

A feature is a plain count (flops of padded panels, rows from memory, vectors copied, calls) over a rate of the profile, so that the same
weights serve other shapes, thread counts and machines. `perf.regression` fits the weights.
"""

from __future__ import annotations

from typing import Literal

from autotune.config.knobs import Knobs
from autotune.config.model import Dtype
from autotune.config.profile import Profile
from autotune.machine.topology import vector_lanes
from autotune.ops.base import Features, Residence
from autotune.ops.schedule import Pass
from autotune.perf.ceilings import fork_join_s, gemm_ceiling, row_ceiling, stream_ceiling

CACHE_SHARE = 0.75
"""Part of a cache that a step's data can count on: conflicts, code, stacks and other programs take the rest."""
_HIDDEN_CACHE_BYTES = 32 << 20
"""Last-level cache assumed where the machine does not tell."""
CALL_S = 1e-6
"""Unit of the feature `call`."""


class Machine:
    """A profile at one number of threads: rates, and times in cycles of one core. Fields are described in `ops.base.Rates`.

    Args:
        share: part of the last-level cache that is this program's: in a virtual machine others use it too, and no datasheet tells how much.
        huge_pages: whether tables lie on 2 MiB pages.
    """

    def __init__(self, profile: Profile, threads: int, dtype: Dtype = "fp32", share: float = CACHE_SHARE, huge_pages: bool = True) -> None:
        topology, ceilings = profile.fingerprint.topology, profile.ceilings
        self.profile, self.threads, self.dtype, self.huge_pages = profile, threads, dtype, huge_pages
        self.lanes = 8 if profile.fingerprint.target == "avx2" else vector_lanes(topology)
        gemm = gemm_ceiling(ceilings, threads)
        self.flops_per_s = gemm * (profile.bf16_gain if dtype == "bf16" else 1.0)
        # Two multiply-adds a cycle: of cores with one such unit these are half cycles, and the weights of a fit follow.
        self.cycle_s = 4.0 * self.lanes * threads / gemm
        kinds = {point.kind for point in ceilings.stream} or {"read"}
        self.stream_bytes_per_s = max(stream_ceiling(ceilings, kind, threads) for kind in kinds)
        self.own_bytes = CACHE_SHARE * topology.l2_bytes * threads
        instances = max(1, topology.l3_instances) * min(1.0, threads / max(1, topology.physical_cores))
        shared = topology.l3_bytes * max(1.0, instances) or _HIDDEN_CACHE_BYTES
        self.shared_bytes = max(share * shared, self.own_bytes)
        self._narrowest = {
            access: min((point.row_bytes for point in points), default=1)
            for access, points in (("gather", ceilings.gather), ("scatter", ceilings.scatter))
        }
        widest = max((point.row_bytes for point in ceilings.gather), default=1024)
        self.shared_bytes_per_s = self.rows_per_s("gather", widest, shared / 2)
        self.fork_s = fork_join_s(ceilings, threads)
        self.l2_bytes, self.l3_bytes = float(topology.l2_bytes), float(topology.l3_bytes or _HIDDEN_CACHE_BYTES)

    def rows_per_s(self, access: Literal["gather", "scatter"], row_bytes: int, working_set_bytes: float) -> float:
        """Row bytes per second; narrower rows than any measured take the time of the narrowest."""
        known = max(row_bytes, self._narrowest[access])
        rate = row_ceiling(self.profile.ceilings, access, known, max(working_set_bytes, 1.0), self.threads)
        return rate.bandwidth_bytes_per_s * row_bytes / known


def features_of(each: Pass, residence: Residence, knobs: Knobs | None, machine: Machine) -> Features:
    """All features of a pass, seconds each: its operator's, and those of calls, forks and arrays that no cache holds."""
    return each.operator.features(knobs, residence, machine) | {
        "call": CALL_S,
        "fork": each.operator.work().parallel_regions * machine.fork_s,
        "memory": residence.memory_bytes / machine.stream_bytes_per_s,
        "shared": residence.shared_bytes / machine.shared_bytes_per_s,
    }
