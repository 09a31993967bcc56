"""Trains several models in interleaved repetitions, so that a slow spell of the host hits at most one repetition of each.

Spells of some seconds, in which short passes take two to four times as long and no counter of the guest tells, are usual on shared hosts.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence

from autotune.bench.noise import NoiseMonitor
from autotune.bench.passes import PassTimes
from autotune.bench.rounds import run_rounds, timed
from autotune.config.calibration import CalibrationRun
from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.profile import Topology
from autotune.config.required_memory import required_memory_bytes
from autotune.data.batches import Batch, make_source
from autotune.dlrm.model import DLRM
from autotune.ops.embedding_bag import UPDATE

OTHER = "other"
REPETITIONS = 2
STEPS = (5, 15)
"""Least and most steps of a repetition; between them as many as `_STEPS_S` holds."""
LEAST_STEPS = 3
_STEPS_S = 0.25
_BATCHES = 6
_WARMUP = 2
_TOGETHER = 6


class TimedModel:
    """A model in memory, with the configurations under which it is timed.

    Args:
        variants: Configurations; the first one's page size should be that of most.
    """

    def __init__(self, model: Model, variants: Sequence[RunConfig], topology: Topology) -> None:
        source = make_source(model)
        self.variants = variants
        self.batches: list[Batch] = [source.batch(i) for i in range(_BATCHES)]
        self.dlrm = DLRM(model, variants[0], machine=topology)

    def timed(self, variant: int, monitor: NoiseMonitor, steps: tuple[int, int], end_s: float) -> CalibrationRun:
        self.dlrm.configure(self.variants[variant])
        return timed_steps(self.dlrm, self.batches, monitor, steps=steps, end_s=end_s)


def grouped(models: Sequence[Model], limit_bytes: float) -> list[list[Model]]:
    """Models in their order, those together that may be in memory at once: six at most."""
    groups: list[list[Model]] = []
    held = 0.0
    for model in models:
        needed = required_memory_bytes(model)
        if not groups or held + needed > limit_bytes or len(groups[-1]) == _TOGETHER:
            groups.append([])
            held = 0.0
        groups[-1].append(model)
        held += needed
    return groups


def repetitions(
    models: Sequence[TimedModel],
    monitor: NoiseMonitor,
    *,
    count: int = REPETITIONS,
    steps: tuple[int, int] = STEPS,
    end_s: float = math.inf,
) -> Iterator[list[CalibrationRun]]:
    """All repetitions of every variant of every model. A variant on other pages comes last, and once, since its tables move.

    Args:
        steps: Least and most steps of a repetition.
        end_s: On the clock of `time.perf_counter`: repetitions are shortened to three steps to keep it.
    """
    runs: dict[tuple[int, int], list[CalibrationRun]] = {}
    order = [
        (i, variant)
        for repetition in range(count)
        for i, model in enumerate(models)
        for variant, config in enumerate(model.variants)
        if repetition == count - 1 or config.huge_pages == model.variants[0].huge_pages
    ]
    for left, (i, variant) in zip(range(len(order), 0, -1), order, strict=True):
        now_s = time.perf_counter()
        run = models[i].timed(variant, monitor, steps, now_s + (end_s - now_s) / left)
        runs.setdefault((i, variant), []).append(run)
    yield from (runs[key] for key in sorted(runs))


def fastest_passes(runs: Sequence[CalibrationRun]) -> CalibrationRun:
    """One run of several repetitions: of every pass the lowest median, since what a host does to its guests only takes time."""
    quiet = [run for run in runs if not run.disturbed] or list(runs)
    passes_s = {key: min(run.passes_s[key] for run in quiet) for key in quiet[0].passes_s}
    return quiet[0].model_copy(update={"iteration_s": min(run.iteration_s for run in quiet), "passes_s": passes_s})


def timed_steps(
    dlrm: DLRM,
    batches: Sequence[Batch],
    monitor: NoiseMonitor,
    *,
    steps: tuple[int, int] = STEPS,
    end_s: float = math.inf,
) -> CalibrationRun:
    """Medians over steps that no other program disturbed; where fewer than three are left, the fastest three count.

    Args:
        steps: Least and most; between them as many as a quarter of a second holds.
        end_s: On the clock of `time.perf_counter`: from then on three steps are enough.
    """
    remaining = itertools.cycle(batches)
    for _ in range(_WARMUP):
        begin_s = time.perf_counter()
        dlrm.step(next(remaining))
        step_s = time.perf_counter() - begin_s
    passes = PassTimes(dlrm.recorder)
    measured = run_rounds(
        {"step": timed(lambda: dlrm.step(next(remaining)))},
        max_rounds=max(steps[0], min(steps[1], round(_STEPS_S / step_s))),
        budget_s=None if end_s == math.inf else end_s - time.perf_counter(),
        min_rounds=LEAST_STEPS,
        warmup=0,
        observers=(passes, monitor),
    )
    every_step = []
    for finished, passes_s in zip(measured.rounds, passes.passes_s, strict=True):
        (step_s,) = finished.times_s["step"]
        every_step.append(passes_s | {OTHER: max(0.0, step_s - sum(passes_s.values()))})
    chosen = [times_s for finished, times_s in zip(measured.rounds, every_step, strict=True) if not finished.disturbed]
    few = len(chosen) < LEAST_STEPS
    if few:
        chosen = sorted(every_step, key=lambda times_s: sum(times_s.values()))[:LEAST_STEPS]
    update = dlrm.config.operators[UPDATE]
    return CalibrationRun(
        model=dlrm.model,
        threads=dlrm.config.threads,
        huge_pages=dlrm.config.huge_pages,
        strategy=getattr(update, "strategy", ""),
        disturbed=few,
        knobs=dlrm.config.operators,
        iteration_s=statistics.median(sum(times_s.values()) for times_s in chosen),
        passes_s={key: statistics.median(times_s[key] for times_s in chosen) for key in chosen[0]},
    )
