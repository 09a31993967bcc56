"""The reference models are measured, and told."""

from __future__ import annotations

import pytest

from autotune.machine.topology import detect
from autotune.probing.calibrate import calibrate


class Heard:
    """A progress that adds up what each phase was told."""

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {}

    def phase(self, name: str, total: float | None) -> None:
        self.phases[name] = [total or 0.0, 0.0]

    def advance(self, amount: float, _detail: str = "") -> None:
        list(self.phases.values())[-1][1] += amount

    def note(self, _message: str) -> None:
        pass


@pytest.mark.parametrize("disturbed", [False, True])
def test_what_was_disturbed_is_measured_again_in_a_phase_of_its_own(disturbed: bool) -> None:
    """So that no phase stands at its end for as long as the repeats take."""
    progress, answers = Heard(), iter([not disturbed])
    runs = calibrate(detect(), [1], 8 << 30, quick=True, budget_s=0.1, progress=progress, steady=lambda: next(answers, True))
    assert {run.model.name for run in runs} == {"reference-0", "reference-1"}
    assert len(progress.phases) == 1 + disturbed
    assert all(done == total > 0 for total, done in progress.phases.values()), progress.phases
