"""Times every operator pass inside the running iteration and holds it against the machine's ceilings."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from autotune.bench.noise import NoiseMonitor
from autotune.bench.passes import PassTimes
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.rounds import EachRound, Observer, run_rounds, timed
from autotune.bench.samples import Samples
from autotune.config.measured import MachineState, TimedSpan, TimeParts, differs
from autotune.config.model import DataSpec
from autotune.config.profile import Ceilings, Profile
from autotune.config.tuned import Interval, MeasuredPass, Prediction
from autotune.data.batches import Batch, BatchSource
from autotune.dlrm.model import DLRM
from autotune.dlrm.train import WARMUP_STEPS
from autotune.errors import InputError
from autotune.ops.base import Work
from autotune.ops.timing import Recorder
from autotune.perf.breakdown import parts_by_pass
from autotune.perf.estimate import Estimate, OperatorEstimate, estimate
from autotune.perf.roofline import BARE, Hardware, verdict
from autotune.perf.table import OTHER, OperatorTable
from autotune.probe.drift import Drift, ceilings_now

_MIN_ROUNDS = 3
_TOO_FAST = 1.4
"""A share of a ceiling that asks for a word. The probe's rows always miss the caches; of a table four times their size random rows hit
in a quarter of cases, which accounts for 4/3."""
_ADDS_UP = 0.05
"""How far the sum of the rows may lie from the iteration, as a share of it."""


class Steps(Protocol):
    """What is timed: a `DLRM`, or ranks in lockstep."""

    @property
    def recorder(self) -> Recorder: ...

    def step(self, batch: Batch) -> float: ...


def timed_spans(recorder: Recorder, back: int, rank: int = 0) -> tuple[TimedSpan, ...]:
    """When every pass ran, `back` steps ago; the oldest step that is kept where that is longer ago."""
    spans = recorder.history[-min(back, len(recorder.history))] if recorder.history else ()
    first = min((begin for _, begin, _ in spans), default=0.0)
    return tuple(
        TimedSpan(rank=rank, operator=key, begin_s=round(begin - first, 9), end_s=round(end - first, 9)) for key, begin, end in spans
    )


def timed_parts(recorder: Recorder, back: Sequence[int]) -> dict[str, TimeParts]:
    """Where the time of every pass went in the steps so far back, as far as they are kept."""
    kept = [one for one in back if one <= len(recorder.history)]
    steps = []
    for one in kept:
        times_s: dict[str, float] = {}
        for key, begin, end in recorder.history[-one]:
            times_s[key] = times_s.get(key, 0.0) + end - begin
        steps.append((times_s, recorder.teams[-one]))
    return parts_by_pass(steps)


def timed_steps(
    dlrm: Steps,
    source: BatchSource,
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
        current.append((number, source.batch(number)))

    def step() -> None:
        number, batch = current[0]
        try:
            dlrm.step(batch)
        except IndexError as error:
            raise InputError(f"{error} ({source.description}: batch {number})") from error

    passes = PassTimes(dlrm.recorder, watched=True)
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


def samples_by_pass(iterations_s: Sequence[float], passes_s: Sequence[dict[str, float]]) -> dict[str, Samples]:
    """Times of every pass, and of what is left of each iteration, which comes last."""
    found: dict[str, list[float]] = {}
    for taken, times in zip(iterations_s, passes_s, strict=True):
        for key, value in (times | {OTHER: taken - sum(times.values())}).items():
            found.setdefault(key, []).append(max(0.0, value))
    return {key: Samples(tuple(values)) for key, values in sorted(found.items(), key=lambda item: item[0] == OTHER)}


def measure(
    dlrm: DLRM,
    source: BatchSource,
    profile: Profile,
    *,
    rounds: int = 20,
    budget_s: float | None = None,
    progress: Progress = NO_PROGRESS,
    data: DataSpec | None = None,
) -> OperatorTable:
    """Train for some iterations and tell where their time went.

    Args:
        dlrm: trained in place.
        source: of the batches.
        profile: gives the ceilings of this machine.
        rounds: iterations that count, at most.
        budget_s: wall seconds; ends the rounds and their repetition earlier, but not before three.
        data: what `source` draws from, for the prediction; None takes the model's own.

    Raises:
        InputError: as `timed_steps`.
    """
    monitor = NoiseMonitor(cpus=profile.fingerprint.topology.allowed_cpus)
    drift = Drift(profile, dlrm.config.threads)
    steps, notes = timed_steps(dlrm, source, (drift, monitor), rounds=rounds, budget_s=budget_s, progress=progress)
    ceilings = ceilings_now(profile.ceilings, drift.state)
    hardware = Hardware.of(profile, dlrm.config.threads, dlrm.model.dtype)
    iteration = Samples(tuple(steps.iterations_s)).to_interval()
    works = dlrm.schedule_on(data).works
    parts = timed_parts(dlrm.recorder, steps.back)
    rows = [
        operator_row(
            works.get(key), key, samples.to_interval(), iteration.median, ceilings, dlrm.config.threads, parts.get(key), hardware
        )
        for key, samples in samples_by_pass(steps.iterations_s, [steps.passes_s[i] for i in steps.counted]).items()
    ]
    workload = dlrm.model if data is None else dlrm.model.model_copy(update={"data": data})
    return beside(
        OperatorTable(
            model=dlrm.model.name,
            data=source.description,
            minibatch=dlrm.model.minibatch,
            threads=dlrm.config.threads,
            iteration_s=iteration,
            rows=tuple(rows),
            notes=profile.warnings + notes + _of_state(drift.state, profile) + doubts(rows, iteration, profile),
            timeline=timed_spans(dlrm.recorder, steps.typical),
            state=drift.state,
        ),
        estimate(workload, profile, dlrm.config),
    )


def beside(table: OperatorTable, predicted: Estimate) -> OperatorTable:
    """The table with what was predicted beside what was measured; of a transfer it is what is exposed."""
    of = {one.key: one for one in predicted.operators}
    rows = tuple(
        row.model_copy(update={"predicted": _shown(of[row.operator])}) if row.operator in of else row for row in table.rows
    )
    return replace(table, rows=rows, predicted=predicted.iteration)


def _shown(one: OperatorEstimate) -> Prediction:
    """Of a transfer the part that is waited for, its interval in proportion."""
    if one.lane == "compute" or not one.prediction.time_s:
        return one.prediction
    low, high = (one.exposed_s * bound / one.prediction.time_s for bound in (one.prediction.low_s, one.prediction.high_s))
    return Prediction(low_s=low, time_s=one.exposed_s, high_s=high, extrapolated=one.prediction.extrapolated)


def _of_state(state: MachineState | None, profile: Profile) -> tuple[str, ...]:
    """Which ceilings were not what the profile says."""
    if state is None:
        return ()
    named = {"memory": state.memory, "random rows": state.rows, "arithmetic": state.compute}
    told = [f"{name} {ratio:.0%}" for name, ratio in named.items() if differs(ratio)]
    if not told:
        return ()
    what = f"beside the measurement the machine gave of what the probe found ({profile.created}): {', '.join(told)}"
    return (f"{what}: other programs, another clock, or a busy host; shares of ceilings are of what there was",)


def doubts(rows: Sequence[MeasuredPass], iteration: Interval, profile: Profile) -> tuple[str, ...]:
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


def operator_row(
    work: Work | None,
    key: str,
    time_s: Interval,
    iteration_s: float,
    ceilings: Ceilings,
    threads: int,
    parts: TimeParts | None = None,
    hardware: Hardware = BARE,
) -> MeasuredPass:
    """One pass against its ceilings; without a `work` there is nothing to hold it against."""
    if work is None:
        detail = "outside every operator: Python between the passes"
        return MeasuredPass(operator=key, time_s=time_s, share=time_s.median / iteration_s, fractions={}, binder="none", detail=detail)
    # Within a step an operator reads what the one before has just written.
    found = verdict(work, time_s.median, ceilings, threads, warm=True, parts=parts, hardware=hardware)
    return MeasuredPass(
        operator=key,
        time_s=time_s,
        share=time_s.median / iteration_s,
        flops=work.flops,
        bytes=work.bytes,
        fractions=found.fractions,
        binder=found.binder,
        detail=found.detail,
        access=work.access,
        row_traffic_bytes=work.row_traffic_bytes,
        parallel_regions=work.parallel_regions,
        parts=parts,
    )
