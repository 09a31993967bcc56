"""Reference models in interleaved repetitions: which steps count, and which variant comes when."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

import pytest

from autotune.bench.noise import NoiseMonitor
from autotune.bench.repetitions import LEAST_STEPS, OTHER, TimedModel, fastest_passes, repetitions, timed_steps
from autotune.catalog import load_model_by_name
from autotune.config.calibration import CalibrationRun
from autotune.dlrm.defaults import default_config
from autotune.machine.topology import detect

TINY = load_model_by_name("tiny")


class MadeUpNoise(NoiseMonitor):
    """Disturbed are the steps that are named so, in their order."""

    def __init__(self, *disturbed: bool, ever_after: bool = False) -> None:
        self._left = chain(disturbed, repeat(ever_after))
        self.windows = 0

    def before(self) -> None:
        self.windows += 1

    def after(self) -> str:
        return "noise" if next(self._left) else ""


@pytest.fixture(scope="module")
def model() -> TimedModel:
    topology = detect()
    return TimedModel(TINY, [default_config(TINY, topology, 1)], topology)


def test_disturbed_steps_are_repeated_and_left_out(model: TimedModel) -> None:
    monitor = MadeUpNoise(True, True)
    run = timed_steps(model.dlrm, model.batches, monitor, steps=(4, 4))
    assert monitor.windows == 6
    assert not run.disturbed
    assert OTHER in run.passes_s


def test_under_steady_noise_the_fastest_steps_count_and_the_run_says_so(model: TimedModel) -> None:
    assert timed_steps(model.dlrm, model.batches, MadeUpNoise(ever_after=True), steps=(4, 4)).disturbed


def test_a_time_that_is_over_leaves_the_least_steps(model: TimedModel) -> None:
    monitor = MadeUpNoise()
    timed_steps(model.dlrm, model.batches, monitor, steps=(5, 15), end_s=0.0)
    assert monitor.windows == LEAST_STEPS


def run_of(iteration_s: float, disturbed: bool = False, **passes_s: float) -> CalibrationRun:
    return CalibrationRun(model=TINY, threads=1, disturbed=disturbed, iteration_s=iteration_s, passes_s=passes_s)


def test_of_every_pass_the_fastest_quiet_repetition_counts() -> None:
    runs = [run_of(3.0, a=1.0, b=2.0), run_of(4.0, a=3.0, b=1.0), run_of(0.2, True, a=0.1, b=0.1)]
    assert fastest_passes(runs) == run_of(3.0, a=1.0, b=1.0)
    assert fastest_passes(runs[2:]) == runs[2]


def test_variants_on_other_pages_come_last_and_once() -> None:
    class Model:
        def __init__(self, name: str, *pages: bool) -> None:
            self.name, self.variants = name, [default_config(TINY, detect(), 1).model_copy(update={"huge_pages": page}) for page in pages]

        def timed(self, variant: int, *_: Any) -> CalibrationRun:
            order.append(f"{self.name}{variant}")
            return run_of(1.0, a=1.0)

    order: list[str] = []
    runs = list(repetitions([Model("x", True, True, False), Model("y", True)], MadeUpNoise(), count=2))  # type: ignore[list-item]
    assert order == ["x0", "x1", "y0", "x0", "x1", "x2", "y0"]
    assert [len(of_variant) for of_variant in runs] == [2, 2, 1, 2]
