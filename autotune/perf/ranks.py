"""The per-operator table of an iteration on several ranks: the slowest rank's passes, what the network took, who waited for whom."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.rounds import run_rounds
from autotune.bench.samples import Samples, ratio
from autotune.config.measured import RankRow, TimedSpan, TimeParts
from autotune.config.network import Network
from autotune.config.profile import Ceilings, Profile
from autotune.config.tuned import Interval, MeasuredPass
from autotune.ops import all_reduce, all_to_all
from autotune.ops.base import Work, operator_of
from autotune.ops.embedding_bag import FORWARD
from autotune.perf.ceilings import per_rank
from autotune.perf.estimate import estimate
from autotune.perf.measure import beside, doubts, measure, operator_row, samples_by_pass, timed_parts, timed_spans, timed_steps
from autotune.perf.perturb import judge_transfer, perturb, unwitnessed
from autotune.perf.roofline import BOUND_FRACTION, Hardware, limits
from autotune.perf.table import OTHER, OperatorTable, Perturbation
from autotune.probe.network import slowest_turn
from autotune.ranks import group
from autotune.ranks.lockstep import Lockstep, take_recorded
from autotune.units import format_bytes, format_time

TALKS = (all_to_all.FORWARD, all_to_all.BACKWARD, all_reduce.KEY)
"""Passes that wait for other ranks."""
_TALK_ROUNDS = 5
_PROOF_ROUNDS = 15
# A rank that computes this much longer than the mean is worth a word.
_UNEVEN = 1.05

# Of the timeline: more rows than these nobody looks at.
_SHOWN_RANKS = 64

Times = Sequence[Mapping[str, float]]
Spans = tuple[TimedSpan, ...]


def time_talks(lockstep: Lockstep, keys: tuple[str, ...], rounds: int, share: float = 1.0) -> dict[str, Samples]:
    """Task: times of each transfer of a step with nothing beside it, of the slowest rank.

    Args:
        share: of the bytes that travel.
    """
    turns = {key: slowest_turn(lockstep.dlrm.transfer(key, share)) for key in keys}
    samples = run_rounds(turns, max_rounds=rounds, warmup=0).samples
    lockstep.recorder.take()
    return samples


def describe_rank(lockstep: Lockstep) -> list[tuple[dict[str, Work], int, int]]:
    """Task: of every rank the work of its passes, the parts it owns, and their memory."""
    dlrm = lockstep.dlrm
    works = dict(lockstep.dlrm.schedule.works)
    partition = dlrm.partition
    owned = 0 if partition is None else sum(1 for placement in partition.tables if dlrm.rank in placement.ranks)
    mine = (works, owned, sum(4 * bags.rows[t] * bags.dim for _, bags, t in dlrm.parts()))
    return group.gather(mine)


def spans_of_ranks(lockstep: Lockstep, typical: int, counted: Sequence[int]) -> list[tuple[Spans, dict[str, TimeParts]]]:
    """Task: of every rank, when its passes ran `typical` steps ago, and where the time of each went in the steps `counted` back."""
    mine = timed_spans(lockstep.recorder, typical, lockstep.rank), timed_parts(lockstep.recorder, counted)
    return group.gather(mine)


def prove_rank(lockstep: Lockstep, table: OperatorTable, cache_bytes: int) -> list[list[Perturbation]]:
    """Task: every rank perturbs its own passes at the same time, so that each meets the memory traffic of the others. Every rank's.

    Args:
        table: the verdicts.
        cache_bytes: that the threads of one rank can fill.
    """
    mine = perturb(lockstep, lockstep, table, cache_bytes=cache_bytes)
    return group.gather(mine)


def profile_passes(
    lockstep: Lockstep,
    profile: Profile,
    *,
    ranks_on_host: int,
    rounds: int = 20,
    budget_s: float | None = None,
    progress: Progress = NO_PROGRESS,
) -> OperatorTable:
    """The table of an iteration on one rank or several. Rank 0 calls it; see `measure_ranks`."""
    if lockstep.ranks == 1:
        return measure(lockstep.dlrm, lockstep.source, profile, rounds=rounds, budget_s=budget_s, progress=progress)
    return measure_ranks(lockstep, profile, ranks_on_host=ranks_on_host, rounds=rounds, budget_s=budget_s, progress=progress)


def prove_passes(lockstep: Lockstep, table: OperatorTable, cache_bytes: int, progress: Progress = NO_PROGRESS) -> OperatorTable:
    """The table with its verdicts tested: passes of the slowest rank, transfers with half their bytes. Rank 0 calls it.

    Args:
        table: of `profile_passes`.
        cache_bytes: that the threads of one rank can fill.
    """
    if lockstep.ranks == 1:
        tested = perturb(lockstep.dlrm, lockstep.source, table, cache_bytes=cache_bytes, progress=progress)
        return replace(table, perturbations=tuple(tested), notes=table.notes + unwitnessed())
    progress.phase("perturbing operators", None)
    slowest = max(table.ranks, key=lambda row: row.compute_s).rank
    tested = list(lockstep.everywhere(prove_rank, table, cache_bytes)[slowest])
    whole, half = (lockstep.everywhere(time_talks, TALKS, _PROOF_ROUNDS, share) for share in (1.0, 0.5))
    sent = {row.operator: row for row in table.rows if row.bytes_sent}
    tested += [judge_transfer(key, sent[key].binder, ratio(whole[key], half[key])) for key in TALKS if key in sent]
    return replace(table, perturbations=tuple(tested))


def measure_ranks(
    lockstep: Lockstep,
    profile: Profile,
    *,
    ranks_on_host: int,
    rounds: int = 20,
    budget_s: float | None = None,
    progress: Progress = NO_PROGRESS,
) -> OperatorTable:
    """Train for some iterations on all ranks and tell where their time went. Rank 0 calls it; the others follow.

    A transfer's row shows what the rank waited for it (exposed). What it takes alone, measured afterwards, less that, was hidden.

    Args:
        profile: of the machine, with its network.
        ranks_on_host: among which the machine's ceilings are shared.
        rounds, budget_s: as in `perf.measure.measure`.

    Raises:
        InputError: as `timed_steps`.
    """
    monitor = NoiseMonitor(cpus=lockstep.machine.allowed_cpus if lockstep.machine else None)
    timed, notes = timed_steps(lockstep, lockstep, (monitor,), rounds=rounds, budget_s=budget_s, progress=progress)
    steps = len(timed.passes_s)
    watched: list[tuple[Spans, dict[str, TimeParts]]] = lockstep.everywhere(spans_of_ranks, timed.typical, timed.back)
    recorded = lockstep.everywhere(take_recorded, list(timed.passes_s), steps)
    of_ranks = [[times[i] for i in timed.counted] for times in recorded]
    alone = {key: samples.median_s for key, samples in lockstep.everywhere(time_talks, TALKS, _TALK_ROUNDS).items()}
    described = lockstep.everywhere(describe_rank)
    medians = [_medians(times) for times in of_ranks]
    ranks = tuple(_rank_row(rank, medians[rank], *described[rank]) for rank in range(len(medians)))
    slowest = max(ranks, key=lambda row: row.compute_s).rank
    iteration = Samples(tuple(timed.iterations_s)).to_interval()
    ceilings, threads = per_rank(profile.ceilings, ranks_on_host), lockstep.config.threads
    hardware = Hardware.of(profile, threads, lockstep.model.dtype, ranks_on_host)
    works = described[slowest][0]
    rows = []
    for key, samples in samples_by_pass(timed.iterations_s, [dict(times) for times in of_ranks[slowest]]).items():
        time_s, work = samples.to_interval(), works.get(key)
        if key in alone and work is not None:
            row = _talk_row(work, key, time_s, alone[key], iteration.median, ceilings, threads, profile.network)
        else:
            row = operator_row(work, key, time_s, iteration.median, ceilings, threads, watched[slowest][1].get(key), hardware)
        imbalance = _imbalance([one.get(key, 0.0) for one in medians]) if key != OTHER else None
        rows.append(row.model_copy(update={"imbalance": imbalance}))
    predicted = estimate(lockstep.model, profile, lockstep.config, sockets=len(ranks), ranks_on_host=ranks_on_host)
    return beside(
        OperatorTable(
            model=lockstep.model.name,
            data=lockstep.description,
            minibatch=lockstep.minibatch,
            threads=threads,
            iteration_s=iteration,
            rows=tuple(rows),
            notes=(*profile.warnings, *notes, *doubts(rows, iteration, profile), *_slowest_notes(ranks, medians)),
            ranks=ranks,
            timeline=tuple(span for of_rank, _ in watched[:_SHOWN_RANKS] for span in of_rank),
        ),
        predicted,
    )


def _medians(times: Times) -> dict[str, float]:
    keys = dict.fromkeys(key for one in times for key in one)
    return {key: statistics.median(one.get(key, 0.0) for one in times) for key in keys}


def _imbalance(values: Sequence[float]) -> float | None:
    mean = statistics.fmean(values)
    return max(values) / mean if mean else None


def _rank_row(rank: int, medians: Mapping[str, float], works: Mapping[str, Work], tables: int, memory_bytes: int) -> RankRow:
    forward = works.get(FORWARD)
    return RankRow(
        rank=rank,
        compute_s=sum(value for key, value in medians.items() if key not in TALKS),
        waiting_s=sum(value for key, value in medians.items() if key in TALKS),
        tables=tables,
        memory_bytes=memory_bytes,
        lookups=sum(rows.touched for rows in forward.rows) if forward else 0,
        passes_s=dict(medians),
    )


def _talk_row(
    work: Work, key: str, time_s: Interval, alone_s: float, iteration_s: float, ceilings: Ceilings, threads: int, network: Network | None
) -> MeasuredPass:
    """A transfer: exposed is what was waited for it; behind other passes ran what it takes alone, less that."""
    exposed_s = time_s.median
    hidden_s = max(0.0, alone_s - exposed_s)
    whole_s = max(alone_s, exposed_s)
    least = limits(work, ceilings, threads, warm=True, network=network)
    fractions = {"network": least.network_s / whole_s} if least.network_s and whole_s else {}
    share = fractions.get("network", 0.0)
    bound = share >= BOUND_FRACTION
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
        binder="network" if bound else "none",
        detail=detail,
        bytes_sent=work.message_bytes,
        hidden_s=hidden_s,
        access=work.access,
    )


def _slowest_notes(ranks: Sequence[RankRow], medians: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """Which rank the others wait for, and why."""
    mean_s = statistics.fmean(row.compute_s for row in ranks)
    slowest = max(ranks, key=lambda row: row.compute_s)
    if slowest.compute_s < _UNEVEN * mean_s:
        return (f"ranks are even: rank {slowest.rank}, the slowest, computes {slowest.compute_s / mean_s - 1:.0%} longer than the mean",)
    others = {key: statistics.fmean(one.get(key, 0.0) for one in medians) for key in medians[slowest.rank] if key not in TALKS}
    excess = {key: medians[slowest.rank][key] - mean for key, mean in others.items()}
    most = max(excess, key=lambda key: excess[key])
    looked = statistics.fmean(row.lookups for row in ranks)
    why = f"{format_time(excess[most])} of it in {most}"
    operator = operator_of(most)
    if operator is not None and operator.interleaved and looked:
        why += f", with {slowest.lookups / looked:.2f}x the mean look-ups in {slowest.tables} tables"
    return (f"rank {slowest.rank} is the slowest: it computes {slowest.compute_s / mean_s - 1:.0%} longer than the mean, {why}",)
