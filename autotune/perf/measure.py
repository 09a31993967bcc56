"""Times every operator pass inside the running iteration, on one rank or several, and holds it against the machine's ceilings."""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.bench.noise import NoiseMonitor
from autotune.bench.passes import PassTimes
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.rounds import EachRound, Observer, run_rounds, timed
from autotune.bench.samples import Samples
from autotune.config.measured import RankRow, TimedSpan, TimeParts
from autotune.config.profile import Profile
from autotune.data.batches import Batch
from autotune.dlrm.train import WARMUP_STEPS
from autotune.errors import InputError
from autotune.ops.base import Work
from autotune.ops.embedding_bag import FORWARD
from autotune.ops.timing import Recorder
from autotune.perf.breakdown import parts_by_pass
from autotune.perf.ceilings import per_rank
from autotune.perf.estimate import estimate
from autotune.perf.roofline import Hardware
from autotune.perf.rows import apart_notes, collective_row, imbalance, operator_row, prediction_of, slowest_notes, state_notes
from autotune.perf.table import OTHER, OperatorTable
from autotune.probing.drift import Drift, ceilings_now
from autotune.probing.network import slowest_turn
from autotune.ranks import group
from autotune.ranks.lockstep import Lockstep

_MIN_ROUNDS = 3
_ALONE_ROUNDS = 5
_SHOWN_RANKS = 64
"""Ranks in the timeline; nobody looks at more rows."""


@dataclass(frozen=True)
class RankReport:
    """What one rank measured of the steps that count."""

    row: RankRow
    passes_s: list[dict[str, float]]
    """Seconds by pass of each step."""
    works: Mapping[str, Work]
    parts: Mapping[str, TimeParts]
    spans: tuple[TimedSpan, ...]
    """When the passes of a typical step ran."""


def profile_passes(
    lockstep: Lockstep,
    profile: Profile,
    *,
    ranks_on_host: int = 1,
    rounds: int = 20,
    budget_s: float | None = None,
    progress: Progress = NO_PROGRESS,
) -> OperatorTable:
    """Train for some iterations and tell where their time went. Rank 0 calls it; the others follow.

    The rows are those of the slowest rank. The row of a transfer shows what the rank waited for it (exposed). What it takes alone, measured
    afterwards, less that, was hidden.

    Args:
        lockstep: Trained in place.
        profile: Ceilings of this machine, with the network of several ranks.
        ranks_on_host: Ranks among which the machine's ceilings are shared.
        rounds: Iterations that count, at most.
        budget_s: Wall seconds; ends the rounds and their repetition earlier, but not before three.

    Raises:
        InputError: as `timed_steps`.
    """
    several, threads = lockstep.ranks > 1, lockstep.config.threads
    monitor = NoiseMonitor(cpus=lockstep.machine.allowed_cpus if lockstep.machine else None)
    drift = None if several else Drift(profile, threads)
    observers = (monitor,) if drift is None else (drift, monitor)
    steps, notes = timed_steps(lockstep, observers, rounds=rounds, budget_s=budget_s, progress=progress)
    reports = lockstep.everywhere(report_ranks, steps.passes_s, steps.back, steps.typical)
    collectives = lockstep.dlrm.schedule.collectives
    alone = lockstep.everywhere(time_collectives, collectives, _ALONE_ROUNDS) if collectives else {}
    state = drift.state if drift else None
    ceilings = ceilings_now(per_rank(profile.ceilings, ranks_on_host), state)
    hardware = Hardware.of(profile, threads, lockstep.model.dtype, ranks_on_host)
    predicted = estimate(lockstep.model, profile, lockstep.config, sockets=lockstep.ranks, ranks_on_host=ranks_on_host)
    predictions = {each.key: prediction_of(each) for each in predicted.operators}
    iteration = Samples(tuple(steps.iterations_s)).to_interval()
    slowest = max(reports, key=lambda report: report.row.compute_s)
    ranks = tuple(report.row for report in reports) if several else ()
    rows = []
    for key, samples in samples_by_pass(steps.iterations_s, slowest.passes_s).items():
        time_s, work = samples.to_interval(), slowest.works.get(key)
        if key in alone and work is not None:
            row = collective_row(work, key, time_s, alone[key].median_s, iteration.median, ceilings, threads, profile.network)
        else:
            row = operator_row(work, key, time_s, iteration.median, ceilings, threads, slowest.parts.get(key), hardware)
        uneven = imbalance([rank.passes_s.get(key, 0.0) for rank in ranks]) if key != OTHER else None
        rows.append(row.model_copy(update={"imbalance": uneven, "predicted": predictions.get(key)}))
    notes = profile.warnings + notes + state_notes(state, profile) + apart_notes(rows, iteration, profile)
    return OperatorTable(
        model=lockstep.model.name,
        data=lockstep.description,
        minibatch=lockstep.minibatch,
        threads=threads,
        iteration_s=iteration,
        rows=tuple(rows),
        notes=notes + (slowest_notes(ranks, collectives) if several else ()),
        ranks=ranks,
        predicted=predicted.iteration,
        timeline=tuple(span for report in reports[:_SHOWN_RANKS] for span in report.spans),
        state=state,
    )


def timed_steps(
    lockstep: Lockstep,
    observers: Sequence[Observer],
    *,
    rounds: int,
    budget_s: float | None = None,
    progress: Progress = NO_PROGRESS,
) -> tuple[PassTimes, tuple[str, ...]]:
    """Train for some steps, each on a batch of its own, and return their times and notes. Making the batch is outside the times.

    Args:
        observers: Noise and drift.
        rounds: Steps that count, at most.
        budget_s: Wall seconds; ends the steps and their repetition earlier, but not before three.

    Raises:
        InputError: rounds below 1, or a batch with an index outside its table.
    """
    numbers, current = itertools.count(), deque[tuple[int, Batch]](maxlen=1)

    def next_batch() -> None:
        number = next(numbers)
        current.append((number, lockstep.batch(number)))

    def step() -> None:
        number, batch = current[0]
        try:
            lockstep.step(batch)
        except IndexError as error:
            raise InputError(f"{error} ({lockstep.description}: batch {number})") from error

    passes = PassTimes(lockstep.recorder, watched=True)
    progress.phase("measuring operators", rounds)
    measured = run_rounds(
        {"step": timed(step)},
        max_rounds=rounds,
        budget_s=budget_s,
        min_rounds=_MIN_ROUNDS,
        warmup=WARMUP_STEPS,
        observers=(*observers, passes, EachRound(lambda finished: progress.advance(float(finished.counts)))),
        prepare=next_batch,
    )
    return passes, measured.notes


def report_ranks(lockstep: Lockstep, passes_s: list[dict[str, float]], back: Sequence[int], typical: int) -> list[RankReport]:
    """Task: what every rank measured.

    Args:
        passes_s: Seconds by pass of rank 0's steps; the other ranks have recorded their own.
        back: Places of the steps that count from the end; the last step is 1.
        typical: Place of the step to show.
    """
    dlrm = lockstep.dlrm
    recorded_s = passes_s if lockstep.rank == 0 else lockstep.take_recorded()
    counted_s = [recorded_s[-place] for place in back]
    medians_s = {
        key: statistics.median(times_s.get(key, 0.0) for times_s in counted_s) for key in dict.fromkeys(itertools.chain(*counted_s))
    }
    collectives = dlrm.schedule.collectives
    forward, tables = dlrm.schedule.works.get(FORWARD), dlrm.partition.tables if dlrm.partition else ()
    row = RankRow(
        rank=lockstep.rank,
        compute_s=sum(time_s for key, time_s in medians_s.items() if key not in collectives),
        waiting_s=sum(time_s for key, time_s in medians_s.items() if key in collectives),
        tables=sum(dlrm.rank in placement.ranks for placement in tables),
        memory_bytes=sum(4 * bags.rows[t] * bags.dim for _, bags, t in dlrm.parts()),
        lookups=sum(rows.touched for rows in forward.rows) if forward else 0,
        passes_s=medians_s,
    )
    parts, spans = timed_parts(lockstep.recorder, back), timed_spans(lockstep.recorder, typical, lockstep.rank)
    return group.gather(RankReport(row, counted_s, dict(dlrm.schedule.works), parts, spans))


def time_collectives(lockstep: Lockstep, keys: tuple[str, ...], rounds: int, share: float = 1.0) -> dict[str, Samples]:
    """Task: times of each transfer of a step with nothing beside it, of the slowest rank.

    Args:
        share: Of the bytes that travel.
    """
    turns = {key: slowest_turn(lockstep.dlrm.transfer(key, share)) for key in keys}
    samples = run_rounds(turns, max_rounds=rounds, warmup=0).samples
    lockstep.recorder.take()
    return samples


def timed_spans(recorder: Recorder, back: int, rank: int = 0) -> tuple[TimedSpan, ...]:
    """When every pass ran, `back` steps ago; the oldest step that is kept where that is longer ago."""
    spans = recorder.history[-min(back, len(recorder.history))] if recorder.history else ()
    first = min((begin for _, begin, _ in spans), default=0.0)
    return tuple(
        TimedSpan(rank=rank, operator=key, begin_s=round(begin - first, 9), end_s=round(end - first, 9)) for key, begin, end in spans
    )


def timed_parts(recorder: Recorder, back: Sequence[int]) -> dict[str, TimeParts]:
    """Where the time of every pass went in the steps so far back, as far as they are kept."""
    steps = []
    for place in (place for place in back if place <= len(recorder.history)):
        times_s: dict[str, float] = {}
        for key, begin, end in recorder.history[-place]:
            times_s[key] = times_s.get(key, 0.0) + end - begin
        steps.append((times_s, recorder.teams[-place]))
    return parts_by_pass(steps)


def samples_by_pass(iterations_s: Sequence[float], passes_s: Sequence[dict[str, float]]) -> dict[str, Samples]:
    """Times of every pass, and of what is left of each iteration, which comes last."""
    samples: dict[str, list[float]] = {}
    for iteration_s, times_s in zip(iterations_s, passes_s, strict=True):
        for key, time_s in (times_s | {OTHER: iteration_s - sum(times_s.values())}).items():
            samples.setdefault(key, []).append(max(0.0, time_s))
    return {key: Samples(tuple(times_s)) for key, times_s in sorted(samples.items(), key=lambda item: item[0] == OTHER)}
