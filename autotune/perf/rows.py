"""Rows of the per-operator table: each pass beside its ceilings and its prediction, and what a reader should know about them."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence

from autotune.config.measured import MachineState, RankRow, TimeParts, differs
from autotune.config.network import Network
from autotune.config.profile import Ceilings, Profile
from autotune.config.tuned import Interval, MeasuredPass, Prediction
from autotune.ops.base import Work, operator_of
from autotune.perf.estimate import OperatorEstimate
from autotune.perf.roofline import BOUND_FRACTION, Hardware, limits, verdict
from autotune.units import format_bytes, format_time

_TOO_FAST = 1.4
"""A share of a ceiling that asks for a word. The probe's rows always miss the caches; of a table four times their size random rows hit
in a quarter of cases, which accounts for 4/3."""
_ADDS_UP = 0.05
"""How far the sum of the rows may lie from the iteration, as a share of it."""
_UNEVEN = 1.05
"""A rank that computes this much longer than the mean is worth a word."""


def operator_row(
    work: Work | None,
    key: str,
    time_s: Interval,
    iteration_s: float,
    ceilings: Ceilings,
    threads: int,
    parts: TimeParts | None,
    hardware: Hardware,
) -> MeasuredPass:
    """One pass against its ceilings; without a `work` there is nothing to hold it against."""
    if work is None:
        detail = "outside every operator: Python between the passes"
        return MeasuredPass(operator=key, time_s=time_s, share=time_s.median / iteration_s, fractions={}, binder="none", detail=detail)
    # Within a step an operator reads what the one before has just written.
    judged = verdict(work, time_s.median, ceilings, threads, warm=True, parts=parts, hardware=hardware)
    return MeasuredPass(
        operator=key,
        time_s=time_s,
        share=time_s.median / iteration_s,
        flops=work.flops,
        bytes=work.bytes,
        fractions=judged.fractions,
        binder=judged.binder,
        detail=judged.detail,
        access=work.access,
        row_traffic_bytes=work.row_traffic_bytes,
        parallel_regions=work.parallel_regions,
        parts=parts,
    )


def collective_row(
    work: Work, key: str, time_s: Interval, alone_s: float, iteration_s: float, ceilings: Ceilings, threads: int, network: Network | None
) -> MeasuredPass:
    """A transfer: exposed is what was waited for it; behind other passes ran what it takes alone, less that."""
    exposed_s = time_s.median
    hidden_s = max(0.0, alone_s - exposed_s)
    whole_s = max(alone_s, exposed_s)
    least = limits(work, ceilings, threads, warm=True, network=network)
    fractions = {"network": least.network_s / whole_s} if least.network_s and whole_s else {}
    share = fractions.get("network", 0.0)
    sent = f"{format_bytes(work.message_bytes)} in {work.messages} messages"
    detail = f"{sent}: {format_time(exposed_s)} exposed, {format_time(hidden_s)} hidden, {format_time(alone_s)} alone"
    if fractions:
        detail += f"; {share:.0%} of the network's ceiling"
    if exposed_s > 1.2 * alone_s:
        detail += f"; {format_time(exposed_s - alone_s)} more than alone: a slower rank is waited for, or computing takes its cores"
    return MeasuredPass(
        operator=key,
        time_s=time_s,
        share=exposed_s / iteration_s,
        flops=work.flops,
        bytes=work.bytes,
        fractions=fractions,
        binder="network" if share >= BOUND_FRACTION else "none",
        detail=detail,
        bytes_sent=work.message_bytes,
        hidden_s=hidden_s,
        access=work.access,
    )


def prediction_of(estimated: OperatorEstimate) -> Prediction:
    """What was predicted of a pass; of a transfer the part that is waited for, its interval in proportion."""
    whole = estimated.prediction
    if estimated.lane == "compute" or not whole.time_s:
        return whole
    low, high = (estimated.exposed_s * bound / whole.time_s for bound in (whole.low_s, whole.high_s))
    return Prediction(low_s=low, time_s=estimated.exposed_s, high_s=high, extrapolated=whole.extrapolated)


def imbalance(times_s: Sequence[float]) -> float | None:
    """The slowest rank over the mean of all; None where the pass took no time, or there is one rank."""
    mean_s = statistics.fmean(times_s) if times_s else 0.0
    return max(times_s) / mean_s if mean_s else None


def state_notes(state: MachineState | None, profile: Profile) -> tuple[str, ...]:
    """Which ceilings were not what the profile says."""
    if state is None:
        return ()
    ratios = {"memory": state.memory, "random rows": state.rows, "arithmetic": state.compute}
    changed = [f"{name} {ratio:.0%}" for name, ratio in ratios.items() if differs(ratio)]
    if not changed:
        return ()
    what = f"beside the measurement the machine gave of what the probe found ({profile.created}): {', '.join(changed)}"
    return (f"{what}: other programs, another clock, or a busy host; shares of ceilings are of what there was",)


def apart_notes(rows: Sequence[MeasuredPass], iteration: Interval, profile: Profile) -> tuple[str, ...]:
    """What a reader should know about rows that do not fit each other, or the profile."""
    notes: tuple[str, ...] = ()
    apart = sum(row.time_s.median for row in rows) / iteration.median - 1.0
    if abs(apart) > _ADDS_UP:
        notes += (f"the rows' medians add up to {1 + apart:.0%} of the iteration's: rounds differed too much; measure longer",)
    highest = max(rows, key=lambda row: max(row.fractions.values(), default=0.0))
    reached = max(highest.fractions.values(), default=0.0)
    if reached > _TOO_FAST:
        notes += (
            f"{highest.operator} reached {reached:.0%} of its ceiling: the machine was slower when it was probed ({profile.created}), or "
            "much of the data came from a cache; if other rows pass 100 % too, run autotune probe --refresh when it is quiet",
        )
    return notes


def slowest_notes(ranks: Sequence[RankRow], collectives: Collection[str]) -> tuple[str, ...]:
    """Which rank the others wait for, and why."""
    mean_s = statistics.fmean(rank.compute_s for rank in ranks)
    slowest = max(ranks, key=lambda rank: rank.compute_s)
    longer = f"{slowest.compute_s / mean_s - 1:.0%} longer than the mean"
    if slowest.compute_s < _UNEVEN * mean_s:
        return (f"ranks are even: rank {slowest.rank}, the slowest, computes {longer}",)
    excess_s = {
        key: time_s - statistics.fmean(rank.passes_s.get(key, 0.0) for rank in ranks)
        for key, time_s in slowest.passes_s.items()
        if key not in collectives
    }
    most = max(excess_s, key=lambda key: excess_s[key])
    lookups = statistics.fmean(rank.lookups for rank in ranks)
    why = f"{format_time(excess_s[most])} of it in {most}"
    operator = operator_of(most)
    if operator is not None and operator.interleaved and lookups:
        why += f", with {slowest.lookups / lookups:.2f}x the mean look-ups in {slowest.tables} tables"
    return (f"rank {slowest.rank} is the slowest: it computes {longer}, {why}",)
