"""Times every operator pass inside the running iteration and holds it against the machine's ceilings."""

from __future__ import annotations

import time
from itertools import count

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.samples import Samples
from autotune.config.profile import Profile
from autotune.dlrm.data import BatchSource
from autotune.dlrm.model import DLRM
from autotune.dlrm.train import WARMUP_STEPS
from autotune.errors import InputError
from autotune.ops.base import Operator
from autotune.perf.roofline import verdict
from autotune.perf.table import OTHER, OperatorRow, OperatorTable

_MAX_REPEATS = 8
_MIN_ROUNDS = 3
_TOO_FAST = 1.4
"""A share of a ceiling that asks for a word. The probe's rows always miss the caches; of a table four times their size random rows hit
in a quarter of cases, which accounts for 4/3."""
_ADDS_UP = 0.05
"""How far the sum of the rows may lie from the iteration, as a share of it."""


def measure(
    dlrm: DLRM,
    source: BatchSource,
    profile: Profile,
    *,
    rounds: int = 20,
    budget_s: float | None = None,
    progress: Progress = NO_PROGRESS,
) -> OperatorTable:
    """Train for some iterations and tell where their time went.

    Each round is one iteration on a batch of its own; making the batch is outside the times. A round that other programs disturbed is
    repeated, at most 8 times in all.

    Args:
        dlrm: trained in place.
        source: of the batches.
        profile: gives the ceilings of this machine.
        rounds: iterations that count, at most.
        budget_s: wall seconds; ends the rounds and their repetition earlier, but not before three.

    Raises:
        InputError: rounds below 1, or a batch with an index outside its table.
    """
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, got {rounds}; ask for one or more")
    monitor = NoiseMonitor(cpus=profile.fingerprint.topology.allowed_cpus)
    begin = time.monotonic()
    iterations: list[float] = []
    passes: dict[str, list[float]] = {}
    disturbed: list[str] = []
    progress.phase("measuring operators", rounds)
    numbers = count()
    while len(iterations) < rounds:
        late = budget_s is not None and time.monotonic() - begin > budget_s
        if late and len(iterations) >= _MIN_ROUNDS:
            break
        number = next(numbers)
        batch = source.batch(number)
        dlrm.recorder.take()
        monitor.start()
        started = time.perf_counter()
        try:
            dlrm.step(batch)
        except IndexError as error:
            raise InputError(f"{error} ({source.description}: batch {number})") from error
        taken = time.perf_counter() - started
        noise = monitor.stop()
        if number < WARMUP_STEPS:
            continue
        if noise.disturbed and len(disturbed) < _MAX_REPEATS and not late:
            disturbed.append(noise.reason)
            continue
        iterations.append(taken)
        times = dlrm.recorder.take()
        for key, value in (times | {OTHER: taken - sum(times.values())}).items():
            passes.setdefault(key, []).append(value)
        progress.advance(1)
    notes: tuple[str, ...] = (f"{len(disturbed)} disturbed rounds were repeated: {disturbed[0]}",) if disturbed else ()
    iteration = Samples(tuple(iterations)).to_interval()
    operators = {operator.key: operator for operator in dlrm.operators(source)}
    rows = [
        _row(operators.get(key), key, Samples(tuple(max(0.0, value) for value in values)), iteration.median, profile, dlrm.config.threads)
        for key, values in sorted(passes.items(), key=lambda item: item[0] == OTHER)
    ]
    apart = sum(row.time_s.median for row in rows) / iteration.median - 1.0
    if abs(apart) > _ADDS_UP:
        notes += (f"the rows' medians add up to {1 + apart:.0%} of the iteration's: rounds differed too much; measure longer",)
    highest = max(rows, key=lambda row: max(row.fractions.values(), default=0.0))
    reached = max(highest.fractions.values(), default=0.0)
    if reached > _TOO_FAST:
        notes += (
            f"{highest.key} reached {reached:.0%} of its ceiling: the machine was slower when it was probed ({profile.created}), or much "
            "of the data came from a cache; if other rows pass 100 % too, run autotune probe --refresh when it is quiet",
        )
    return OperatorTable(
        model=dlrm.model.name,
        data=source.description,
        minibatch=dlrm.model.minibatch,
        threads=dlrm.config.threads,
        iteration_s=iteration,
        rows=tuple(rows),
        notes=notes,
    )


def _row(operator: Operator | None, key: str, samples: Samples, iteration_s: float, profile: Profile, threads: int) -> OperatorRow:
    time_s = samples.to_interval()
    if operator is None:
        detail = "outside every operator: Python between the passes"
        return OperatorRow(key, time_s, time_s.median / iteration_s, 0, 0, None, None, None, {}, "none", detail)
    work = operator.work()
    # Within a step an operator reads what the one before has just written.
    found = verdict(work, time_s.median, profile.ceilings, threads, warm=True)
    return OperatorRow(
        key=key,
        time_s=time_s,
        share=time_s.median / iteration_s,
        flops=work.flops,
        bytes=work.bytes,
        flops_per_s=work.flops / time_s.median,
        bandwidth_bytes_per_s=(work.row_traffic_bytes or work.bytes) / time_s.median,
        intensity=work.intensity,
        fractions=found.fractions,
        binder=found.binder,
        detail=found.detail,
    )
