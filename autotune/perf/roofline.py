"""What binds an operator: its time against what the machine can do at most.

Roofline with one roof per access pattern: the least time that arithmetic, memory and network each allow for the compulsory work, and
the share of each that a measured time reaches. A bound is physical: arithmetic at the multiply-add peak of the cores, bytes at the best
measured bandwidth of their access pattern and working set. What one of our own kernels reached is shown beside it, never as the bound.
Source: S. Williams, A. Waterman, D. Patterson, Roofline, CACM 52(4), 2009.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from autotune.config.measured import TimeParts
from autotune.config.network import Network
from autotune.config.profile import Ceilings, Profile
from autotune.errors import InputError
from autotune.ops.base import RowAccess, Work
from autotune.perf.ceilings import fork_join_s, gemm_ceiling, peak_ceiling, row_ceiling, stream_ceiling
from autotune.perf.collectives import transfer_s
from autotune.units import format_bytes, format_rate, format_time

Binder = Literal["memory", "compute", "network", "none"]

# Above half of the time the binder alone takes longer than everything else together; 0.1 more stands for ceilings that were measured up
# to 20 % too high or low on a shared machine. Held against the multiply-add peak, the best GEMMs reach 0.82 (AVX2, Zen 3) to 0.88 (AVX-512,
# Zen 4) of it and stay far above; a layer at 0.7 of what a GEMM reaches there is at 0.6 of the peak.
BOUND_FRACTION = 0.6
# A second ceiling this near the first may as well be the binder.
CLOSE = 0.10
# Threads that lack a core for this share of a pass: more than the ticks of a quiet machine take.
_OFF_CORE = 0.03

Reason = Literal["overhead", "imbalance", "cores", "latency"]
"""What rules a pass below every ceiling."""


@dataclass(frozen=True)
class Limits:
    """The least time that each resource allows, seconds."""

    compute_s: float
    """Flops over the multiply-add peak of the cores."""
    memory_s: float
    """Bytes over the bandwidth of the memory level that each comes from."""
    network_s: float
    """0 where nothing is sent, or the network was not measured."""
    best_seen: float = 0.0
    """Share of the multiply-add peak that the best GEMM of the probe reaches; 0 where the profile holds none."""
    pattern: str = ""
    """What the memory ceiling is a ceiling of, in words."""
    notes: tuple[str, ...] = ()
    """Ceilings that had to be extrapolated."""

    @property
    def bound_s(self) -> float:
        """The least time of the operator: its resources may work at the same time."""
        return max(self.compute_s, self.memory_s, self.network_s)

    @property
    def by_resource(self) -> dict[str, float]:
        """Seconds by resource; the network only where there are messages."""
        return {"memory": self.memory_s, "compute": self.compute_s} | ({"network": self.network_s} if self.network_s else {})


@dataclass(frozen=True)
class Boundedness:
    """A verdict from one measured time."""

    binder: Binder
    """The ceiling whose share is highest; none below 60 % of every one."""
    fractions: dict[str, float]
    """Share of each ceiling reached; above 1 the ceiling did not hold."""
    detail: str
    """The evidence, in words."""
    limits: Limits


@dataclass(frozen=True)
class Hardware:
    """What a bound takes from a machine beside its ceilings."""

    own_bytes: float = 0.0
    """Caches of the team's own cores together."""
    shared_bytes: float = 0.0
    """Caches that the team can reach, the last level included. 0: no row is found where an earlier step left it."""
    gain: float = 1.0
    """Peak of the arithmetic's dtype over that of fp32."""

    @classmethod
    def of(cls, profile: Profile, threads: int, dtype: str = "fp32", ranks: int = 1) -> Hardware:
        """The caches of a machine that a rank of so many threads can reach.

        Args:
            ranks: Ranks among which the machine is shared.
        """
        topology = profile.fingerprint.topology
        own = float(topology.l2_bytes * threads)
        return cls(own, own + topology.last_level_bytes / ranks, peak_gain(profile, dtype))


BARE = Hardware()
"""No caches, arithmetic in fp32."""


def peak_gain(profile: Profile, dtype: str) -> float:
    """Multiply-add peak in a dtype over that in fp32.

    An instruction that multiplies pairs of bf16 does twice the multiply-adds of one on fp32; what the layers of a probe gained is a lower
    bound. Without such an instruction bf16 is widened, and its peak is that of fp32.
    """
    if dtype != "bf16":
        return 1.0
    paired = "avx512_bf16" in profile.fingerprint.topology.isa and profile.fingerprint.target == "avx512"
    return max(2.0 if paired else 1.0, profile.bf16_gain)


def limits(
    work: Work,
    ceilings: Ceilings,
    threads: int,
    *,
    warm: bool = False,
    network: Network | None = None,
    hardware: Hardware = BARE,
) -> Limits:
    """The least time each resource allows for `work`.

    Compute: flops over the multiply-add peak.
    Memory, streams: a written byte goes with a read one at the best mixed rate (copy, copy_nt, update, triad); the reads left over go
    at the read rate, writes left over at the mixed rate.
    Memory, gather and scatter: table by table, as they are walked. Of the distinct rows of a table a cache still holds, from the step
    before, the share that it holds of all rows that the pass ranges over: those come at the rate of that cache, the others at the ceiling
    of a working set of the table. Touches of rows seen before come at the ceiling of a working set of the distinct rows. What is not rows
    (pooled vectors, indices) is a stream.

    Args:
        threads: Of the team.
        warm: What streams was written a moment ago and may lie in a cache: a stream is then held against the better of the stream
            ceilings and those of the widest rows in a working set of its bytes.
        network: Between the ranks; None leaves messages out.
        hardware: Caches and dtype of the machine. Without it no row is found in a cache, and arithmetic is in fp32.

    Raises:
        InputError: the profile lacks a ceiling that the work needs.
    """
    compute_s, best_seen = 0.0, 0.0
    if work.flops:
        peak = peak_ceiling(ceilings, threads)
        compute_s = work.flops / (peak * hardware.gain)
        best_seen = gemm_ceiling(ceilings, threads) / peak if ceilings.gemm else 0.0
    if work.access == "stream":
        memory_s = _stream_s(work.bytes_read, work.bytes_written, ceilings, threads, warm)
        return Limits(compute_s, memory_s, _network_s(work, network), best_seen, "streams")
    ways = 2 if work.access == "scatter" else 1  # a scattered row is read and written
    walked = [rows for rows in work.rows if rows.touched]
    ranged_bytes = sum(map(_ranged_bytes, walked))
    # What a level holds, and the working set at which the probe measured it.
    levels = ((hardware.own_bytes, hardware.own_bytes), (hardware.shared_bytes, hardware.shared_bytes / 2), (math.inf, math.inf))
    rows_s, row_bytes, outside = 0.0, 0, ""
    for rows in walked:
        rate = partial(row_ceiling, ceilings, work.access, rows.row_bytes, threads=threads)
        unique_bytes, held = rows.unique * rows.row_bytes, 0.0
        for capacity_bytes, measured_bytes in levels:
            share = min(1.0, capacity_bytes / ranged_bytes) - held
            if share > 0:
                level = rate(working_set_bytes=min(measured_bytes, rows.table_bytes))
                rows_s += ways * share * unique_bytes / level.bandwidth_bytes_per_s
                held, outside = held + share, outside or level.extrapolated
        if rows.touched > rows.unique:
            again = rate(working_set_bytes=unique_bytes).bandwidth_bytes_per_s
            rows_s += ways * (rows.touched - rows.unique) * rows.row_bytes / again
        row_bytes += unique_bytes
    row_reads, row_writes = row_bytes, row_bytes * (ways - 1)
    rest_s = _stream_s(max(0, work.bytes_read - row_reads), max(0, work.bytes_written - row_writes), ceilings, threads, warm)
    notes = (f"{work.access} ceiling extrapolated: {outside}",) if outside else ()
    return Limits(compute_s, rows_s + rest_s, 0.0, best_seen, _pattern(walked), notes)


def _ranged_bytes(rows: RowAccess) -> float:
    """Bytes of the rows that accesses range over: as many equally likely rows as give that many distinct ones, the table's at most.

    Of R equally likely rows, t touches meet R (1 - exp(-t / R)). Under skew the rows that return are fewer than the table's.
    """
    low, high = float(rows.unique), max(float(rows.unique), rows.table_bytes / rows.row_bytes)
    for _ in range(50):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if -middle * math.expm1(-rows.touched / middle) < rows.unique else (low, middle)
    return high * rows.row_bytes


def _pattern(walked: Sequence[RowAccess]) -> str:
    if not walked:
        return "streams"
    largest = max(walked, key=lambda rows: rows.touched * rows.row_bytes)
    return f"rows of {format_bytes(largest.row_bytes)} in a working set of {format_bytes(largest.table_bytes)}"


def _network_s(work: Work, network: Network | None) -> float:
    if network is None or work.operation not in ("all_to_all", "all_reduce"):
        return 0.0
    return transfer_s(network, work, network.ranks)


_REASONS: Mapping[Reason, str] = {
    "overhead": "launch overhead",
    "imbalance": "imbalance",
    "cores": "waiting for a core",
    "latency": "latency inside the threads' work",
}


def reason(parts: TimeParts, share: float) -> Reason:
    """The largest part of a pass's time that its nearest ceiling does not account for.

    Args:
        share: Of that ceiling, reached.
    """
    latency = max(0.0, parts.work - share)
    lost: dict[Reason, float] = {"overhead": parts.launch, "imbalance": parts.imbalance, "cores": parts.off_core, "latency": latency}
    return max(lost, key=lambda name: lost[name])


def verdict(
    work: Work,
    time_s: float,
    ceilings: Ceilings,
    threads: int,
    *,
    warm: bool = False,
    network: Network | None = None,
    parts: TimeParts | None = None,
    hardware: Hardware = BARE,
) -> Boundedness:
    """What binds an operator that did `work` in `time_s`.

    Args:
        time_s: Measured, seconds.
        warm, network, hardware: As in `limits`.
        parts: Where the time went, thread by thread, where that was measured.

    Raises:
        InputError: `time_s` is not positive, or the profile lacks a ceiling.
    """
    if not (time_s > 0 and math.isfinite(time_s)):
        raise InputError(f"time_s must be positive and finite, got {time_s}; measure the operator first")
    least = limits(work, ceilings, threads, warm=warm, network=network, hardware=hardware)
    fractions = {name: limit_s / time_s for name, limit_s in least.by_resource.items()}
    ranked = sorted(fractions.items(), key=lambda item: -item[1])
    (first, share), (second, second_share) = ranked[0], ranked[1]
    if share < BOUND_FRACTION:
        launch = min(1.0 - share, work.parallel_regions * fork_join_s(ceilings, threads) / time_s)
        below = f"{share:.0%} of {_BOUNDS[first]}, {second_share:.0%} of {_BOUNDS[second]}: below {BOUND_FRACTION:.0%} of each. "
        split = (
            f"Launch overhead is {launch:.0%} ({work.parallel_regions} fork-join), "
            f"the rest of {1.0 - share - launch:.0%} is imbalance and latency"
        )
        if parts is not None:
            split = (
                f"Most of the rest is {_REASONS[reason(parts, share)]}: launch overhead takes {parts.launch:.0%} of the time, imbalance "
                f"{parts.imbalance:.0%}, waiting for a core {parts.off_core:.0%}, latency {max(0.0, parts.work - share):.0%}"
            )
        return Boundedness("none", fractions, "; ".join((below + split, *least.notes)), least)
    evidence = [f"{share:.0%} of {_BOUNDS[first]}: {format_time(least.by_resource[first])} of {format_time(time_s)}"]
    if first == "compute" and least.best_seen:
        evidence.append(f"best GEMM seen here reaches {least.best_seen:.0%}")
    if second_share >= (1.0 - CLOSE) * share:
        evidence.append(f"{second} is within {CLOSE:.0%} of it, at {second_share:.0%}")
    evidence += [_passed(work, least, name, time_s) for name, reached in ranked if round(reached, 2) > 1.0]
    if parts is not None and parts.off_core > _OFF_CORE:
        evidence.append(f"its threads had no core for {parts.off_core:.0%} of the time: other programs, or more threads than cores")
    binder: Binder = "memory" if first == "memory" else "compute" if first == "compute" else "network"
    return Boundedness(binder, fractions, "; ".join((*evidence, *least.notes)), least)


_BOUNDS: Mapping[str, str] = {"memory": "the memory bound", "compute": "the multiply-add peak", "network": "the network bound"}


def _passed(work: Work, least: Limits, resource: str, time_s: float) -> str:
    """Which ceiling is too low, from the rate at which a pass ran beyond it."""
    pattern = {"compute": "multiply-adds", "memory": least.pattern}.get(resource, work.operation)
    amount = {"compute": work.flops, "memory": work.row_traffic_bytes or work.bytes}.get(resource, work.message_bytes)
    unit: Literal["flops", "bytes"] = "flops" if resource == "compute" else "bytes"
    said, drawn = format_rate(amount / least.by_resource[resource], unit), format_rate(amount / time_s, unit)
    beyond = least.by_resource[resource] / time_s - 1.0
    rates = f"the profile says {said}, this pass drew {drawn}"
    return f"the {resource} ceiling is at least {beyond:.0%} too low: {pattern}: {rates}; probe again"


def _stream_s(read_bytes: int, written_bytes: int, ceilings: Ceilings, threads: int, warm: bool) -> float:
    if not read_bytes and not written_bytes:
        return 0.0
    kinds = {point.kind for point in ceilings.stream}
    read = stream_ceiling(ceilings, "read", threads)
    mixed = max((stream_ceiling(ceilings, kind, threads) for kind in kinds if kind != "read"), default=read)
    if warm and ceilings.gather and ceilings.scatter:
        size_bytes = read_bytes + written_bytes
        widest = max(point.row_bytes for point in ceilings.gather)
        read = max(read, row_ceiling(ceilings, "gather", widest, size_bytes, threads).bandwidth_bytes_per_s)
        mixed = max(mixed, row_ceiling(ceilings, "scatter", widest, size_bytes, threads).bandwidth_bytes_per_s)
    paired = min(read_bytes, written_bytes)
    return (2 * paired + (written_bytes - paired)) / mixed + (read_bytes - paired) / read
