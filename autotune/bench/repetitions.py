"""Models trained in turns and timed: each has several stops on the way, so that a slow spell of a shared host falls on one of them only.

Spells of some seconds, in which short passes take two to four times as long and no counter of the guest tells, are usual on shared hosts.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence

from autotune.bench.noise import NoiseMonitor
from autotune.config.calibration import CalibrationRun
from autotune.config.knobs import EmbeddingUpdateKnobs, RunConfig
from autotune.config.model import Model, required_memory_bytes
from autotune.config.profile import Topology
from autotune.data.batches import Batch, make_source
from autotune.dlrm.model import DLRM
from autotune.ops.embedding_bag import UPDATE

OTHER = "other"
VISITS = 2
STEPS = (5, 15)
"""Of a visit: as many as `_VISIT_S` holds, at least and at most."""
LEAST_STEPS = 3
_VISIT_S = 0.25
_BATCHES = 6
_WARMUP = 2
_MOST = 3
"""Times the steps wanted, disturbed ones included."""
_TOGETHER = 6


class Stop:
    """A model in memory, with the configurations it is timed under.

    Args:
        variants: The first one's pages hold for most.
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


def visited(
    stops: Sequence[Stop], monitor: NoiseMonitor, *, visits: int = VISITS, steps: tuple[int, int] = STEPS, end_s: float = math.inf
) -> Iterator[list[CalibrationRun]]:
    """The runs of every variant of every stop, a run a visit. A variant on other pages is visited last, and once: its tables move.

    Args:
        steps: Of a visit, at least and at most.
        end_s: On the clock of `time.perf_counter`: visits are shortened to three steps to keep it.
    """
    found: dict[tuple[int, int], list[CalibrationRun]] = {}
    turns = [
        (i, number)
        for visit in range(visits)
        for i, stop in enumerate(stops)
        for number, config in enumerate(stop.variants)
        if visit == visits - 1 or config.huge_pages == stop.variants[0].huge_pages
    ]
    for left, (i, number) in zip(range(len(turns), 0, -1), turns, strict=True):
        now_s = time.perf_counter()
        run = stops[i].timed(number, monitor, steps, now_s + (end_s - now_s) / left)
        found.setdefault((i, number), []).append(run)
    yield from (found[key] for key in sorted(found))


def faster(runs: Sequence[CalibrationRun]) -> CalibrationRun:
    """One run of several visits: of every pass the lowest median, since what a host does to its guests only takes time."""
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
        steps: at least and at most; between them as many as a quarter of a second holds.
        end_s: On the clock of `time.perf_counter`: from then on three steps are enough.
    """
    quiet: list[dict[str, float]] = []
    disturbed: list[dict[str, float]] = []
    wanted = steps[1]
    for number in range(_WARMUP + _MOST * steps[1]):
        enough = LEAST_STEPS if time.perf_counter() > end_s else wanted
        if len(quiet) >= enough or (len(disturbed) >= LEAST_STEPS and time.perf_counter() > end_s):
            break
        dlrm.recorder.take()
        monitor.start()
        begin_s = time.perf_counter()
        dlrm.step(batches[number % len(batches)])
        taken_s = time.perf_counter() - begin_s
        noise = monitor.stop()
        if number == _WARMUP - 1:
            wanted = max(steps[0], min(steps[1], round(_VISIT_S / taken_s)))
        if number >= _WARMUP:
            times_s = dlrm.recorder.take()
            times_s[OTHER] = max(0.0, taken_s - sum(times_s.values()))
            (disturbed if noise.disturbed else quiet).append(times_s)
    few = len(quiet) < LEAST_STEPS
    if few:
        quiet = sorted(quiet + disturbed, key=lambda times_s: sum(times_s.values()))[:LEAST_STEPS]
    update = dlrm.config.operators[UPDATE]
    assert isinstance(update, EmbeddingUpdateKnobs)
    return CalibrationRun(
        model=dlrm.model,
        threads=dlrm.config.threads,
        huge_pages=dlrm.config.huge_pages,
        strategy=update.strategy,
        disturbed=few,
        knobs=dlrm.config.operators,
        iteration_s=statistics.median(sum(times_s.values()) for times_s in quiet),
        passes_s={key: statistics.median(times_s[key] for times_s in quiet) for key in quiet[0]},
    )
