"""What binds an operator: its time against what the machine's measured ceilings allow.

Roofline with one roof per access pattern: the least time that arithmetic, memory and network each allow for the compulsory work, and
the share of each that a measured time reaches. Rates between measured points are interpolated; outside them the nearest point counts,
and the result says so.

Source: S. Williams, A. Waterman, D. Patterson, Roofline, CACM 52(4), 2009.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from autotune.config.measured import TimeParts
from autotune.config.network import Network
from autotune.config.profile import Ceilings, RowPoint
from autotune.errors import InputError
from autotune.ops.base import Work
from autotune.perf.collectives import transfer_s
from autotune.units import format_bytes, format_time

Binder = Literal["memory", "compute", "network", "none"]
StreamKind = Literal["read", "copy", "triad", "copy_nt", "update"]

# Below this share of every ceiling something else rules. Noise of the ceilings on a shared machine is 10-30 %.
BOUND_FRACTION = 0.6
# A second ceiling this near the first may as well be the binder.
CLOSE = 0.10
# Above 1 by more than a ceiling's own noise: the ceiling is none for this operator.
_ABOVE = 1.1
# Threads that lack a core for this share of a pass: more than the ticks of a quiet machine take.
_OFF_CORE = 0.03

Reason = Literal["overhead", "imbalance", "cores", "latency"]
"""What rules a pass below every ceiling."""


@dataclass(frozen=True)
class RowRate:
    """A bandwidth for random rows."""

    bandwidth_bytes_per_s: float
    extrapolated: str
    """What lies outside the measured points, in words; empty when nothing does."""


@dataclass(frozen=True)
class Limits:
    """The least time that each resource allows, seconds."""

    compute_s: float
    """Flops over the best GEMM rate."""
    memory_s: float
    network_s: float
    """0 where nothing is sent, or the network was not measured."""
    peak_s: float
    """Flops over the peak of independent multiply-adds, which nothing passes; below `compute_s`."""
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


def compute_ceiling(ceilings: Ceilings, threads: int) -> float:
    """Best GEMM rate, flops per second; the peak of multiply-adds where a profile has no GEMM.

    Between measured thread counts linear; below the least in proportion, above the most as there.

    Raises:
        InputError: the profile holds neither, or `threads` is below 1.
    """
    rates = _by_threads((p.threads, p.flops_per_s) for p in ceilings.gemm) or _by_threads((p.threads, p.flops_per_s) for p in ceilings.fma)
    return _proportional(rates, threads, "gemm")


def peak_ceiling(ceilings: Ceilings, threads: int) -> float:
    """Flops per second of independent multiply-adds, never less than the GEMM's.

    Raises:
        InputError: as `compute_ceiling`.
    """
    gemm = compute_ceiling(ceilings, threads)
    return max(gemm, _proportional(_by_threads((p.threads, p.flops_per_s) for p in ceilings.fma) or {threads: gemm}, threads, "fma"))


def stream_ceiling(ceilings: Ceilings, kind: StreamKind, threads: int) -> float:
    """Sequential bandwidth, bytes per second, read-for-ownership not counted; linear between thread counts, clamped outside.

    Raises:
        InputError: the profile has no such stream, or `threads` is below 1.
    """
    rates = _by_threads((p.threads, p.bandwidth_bytes_per_s) for p in ceilings.stream if p.kind == kind)
    return _clamped(rates, threads, f"stream {kind}")


def row_ceiling(
    ceilings: Ceilings, access: Literal["gather", "scatter"], row_bytes: int, working_set_bytes: float, threads: int
) -> RowRate:
    """Bandwidth of random whole rows, row bytes per second; a scattered row counts twice.

    Linear in the logarithm of row width and working set, linear in threads; clamped to the measured range of each.

    Raises:
        InputError: the profile has no such points, or a size or `threads` is below 1.
    """
    if row_bytes < 1 or working_set_bytes <= 0:
        got = f"{row_bytes} and {working_set_bytes:g}"
        raise InputError(f"row_bytes and working_set_bytes must be positive, got {got}; see the operator's work")
    points = ceilings.gather if access == "gather" else ceilings.scatter
    by_threads = {count: _in_rows(at, row_bytes, working_set_bytes) for count, at in _grouped(points, lambda p: p.threads).items()}
    rate = _clamped(by_threads, threads, access)
    outside = []
    widths, sizes = [p.row_bytes for p in points], [p.working_set_bytes for p in points]
    if not min(widths) <= row_bytes <= max(widths):
        outside.append(f"rows of {format_bytes(row_bytes)}, measured {format_bytes(min(widths))} to {format_bytes(max(widths))}")
    # Below the smallest working set nothing changes: it lies inside L2 already.
    if working_set_bytes > max(sizes):
        outside.append(f"working set of {format_bytes(working_set_bytes)}, measured up to {format_bytes(max(sizes))}")
    return RowRate(rate, "; ".join(outside))


def fork_join_s(ceilings: Ceilings, threads: int) -> float:
    """Seconds that starting and ending one parallel region takes; 0 where a profile does not tell."""
    return _clamped(_by_threads((p.threads, p.time_s) for p in ceilings.fork_join) or {threads: 0.0}, threads, "fork_join")


def limits(work: Work, ceilings: Ceilings, threads: int, *, warm: bool = False, network: Network | None = None) -> Limits:
    """The least time each resource allows for `work`.

    Compute: flops over the best GEMM rate, for every operator: what a well-blocked loop reaches here. The hard peak is `peak_s`.
    Memory, streams: a written byte goes with a read one at the best mixed rate (copy, copy_nt, update, triad); the reads left over go
    at the read rate, writes left over at the mixed rate.
    Memory, gather and scatter: table by table, as they are walked: distinct rows once at the ceiling of a working set of the table;
    touches of rows seen before at the ceiling of a working set of the distinct rows, which a cache may hold; then what is not rows
    (pooled vectors, indices) as a stream.

    Args:
        threads: Of the team.
        warm: What streams was written a moment ago and may lie in a cache: a stream is then held against the better of the stream
            ceilings and those of the widest rows in a working set of its bytes.
        network: Between the ranks; None leaves messages out.

    Raises:
        InputError: the profile lacks a ceiling that the work needs.
    """
    compute_s = work.flops / compute_ceiling(ceilings, threads) if work.flops else 0.0
    peak_s = work.flops / peak_ceiling(ceilings, threads) if work.flops else 0.0
    if work.access == "stream":
        memory_s = _stream_s(work.bytes_read, work.bytes_written, ceilings, threads, warm)
        return Limits(compute_s, memory_s, _network_s(work, network), peak_s)
    ways = 2 if work.access == "scatter" else 1  # a scattered row is read and written
    rows_s, row_bytes, outside = 0.0, 0, []
    for rows in work.rows:
        unique_bytes = rows.unique * rows.row_bytes
        if not rows.touched:
            continue
        first = row_ceiling(ceilings, work.access, rows.row_bytes, rows.table_bytes, threads)
        again = row_ceiling(ceilings, work.access, rows.row_bytes, unique_bytes, threads)
        rows_s += ways * unique_bytes / first.bandwidth_bytes_per_s
        repeated = (rows.touched - rows.unique) * rows.row_bytes
        rows_s += ways * repeated / max(first.bandwidth_bytes_per_s, again.bandwidth_bytes_per_s)
        row_bytes += unique_bytes
        outside += [first.extrapolated] if first.extrapolated else []
    row_reads, row_writes = row_bytes, row_bytes * (ways - 1)
    rest_s = _stream_s(max(0, work.bytes_read - row_reads), max(0, work.bytes_written - row_writes), ceilings, threads, warm)
    notes = (f"{work.access} ceiling extrapolated: {outside[0]}",) if outside else ()
    return Limits(compute_s, rows_s + rest_s, 0.0, peak_s, notes)


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
) -> Boundedness:
    """What binds an operator that did `work` in `time_s`.

    Args:
        time_s: Measured, seconds.
        warm, network: As in `limits`.
        parts: Where the time went, thread by thread, where that was measured.

    Raises:
        InputError: `time_s` is not positive, or the profile lacks a ceiling.
    """
    if not (time_s > 0 and math.isfinite(time_s)):
        raise InputError(f"time_s must be positive and finite, got {time_s}; measure the operator first")
    least = limits(work, ceilings, threads, warm=warm, network=network)
    fractions = {name: limit_s / time_s for name, limit_s in least.by_resource.items()}
    ranked = sorted(fractions.items(), key=lambda item: -item[1])
    (first, share), (second, second_share) = ranked[0], ranked[1]
    if share < BOUND_FRACTION:
        launch = min(1.0 - share, work.parallel_regions * fork_join_s(ceilings, threads) / time_s)
        below = f"{share:.0%} of the {first} ceiling, {second_share:.0%} of {second}: below {BOUND_FRACTION:.0%} of each. "
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
    detail = f"{share:.0%} of the {first} ceiling: {format_time(least.by_resource[first])} of {format_time(time_s)}"
    told = [detail]
    if second_share >= (1.0 - CLOSE) * share:
        told.append(f"{second} is within {CLOSE:.0%} of it, at {second_share:.0%}")
    if share > _ABOVE:
        told.append("a share above 100 %: part of the data came from a cache, or the ceiling was measured while the machine was slower")
    if parts is not None and parts.off_core > _OFF_CORE:
        told.append(f"its threads had no core for {parts.off_core:.0%} of the time: other programs, or more threads than cores")
    binder: Binder = "memory" if first == "memory" else "compute" if first == "compute" else "network"
    return Boundedness(binder, fractions, "; ".join((*told, *least.notes)), least)


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


def _by_threads(points: Iterable[tuple[int, float]]) -> dict[int, float]:
    """The best of each thread count."""
    best: dict[int, float] = {}
    for threads, value in points:
        best[threads] = max(value, best.get(threads, value))
    return best


def _grouped(points: Sequence[RowPoint], key: Callable[[RowPoint], int]) -> dict[int, list[RowPoint]]:
    return {value: list(group) for value, group in groupby(sorted(points, key=key), key=key)}


def _in_rows(points: Sequence[RowPoint], row_bytes: int, working_set_bytes: float) -> float:
    """Within one thread count: over the working sets of each row width, then over the widths. The grid may have holes."""
    by_width: dict[float, float] = {}
    for width, at in _grouped(points, lambda p: p.row_bytes).items():
        sets = {math.log2(p.working_set_bytes): p.bandwidth_bytes_per_s for p in at}
        by_width[math.log2(width)] = _interpolate(sets, math.log2(working_set_bytes))
    return _interpolate(by_width, math.log2(row_bytes))


def _clamped(values: Mapping[int, float], threads: int, name: str) -> float:
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    if not values:
        raise InputError(f"the profile must hold {name} ceilings, got none; probe this machine, or add them to the profile")
    return _interpolate(values, threads)


def _proportional(values: Mapping[int, float], threads: int, name: str) -> float:
    """As `_clamped`, but below the least thread count in proportion: cores add up."""
    return _clamped(values, threads, name) * min(1.0, threads / min(values))


def _interpolate(values: Mapping[int, float] | Mapping[float, float], x: float) -> float:
    """Linear between the nearest known points, the nearest one outside."""
    known: list[tuple[float, float]] = sorted(values.items())
    at = [point[0] for point in known]
    above = bisect.bisect_left(at, x)
    if above == len(at):
        return known[-1][1]
    if above == 0 or at[above] == x:
        return known[above][1]
    (x0, y0), (x1, y1) = known[above - 1], known[above]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
