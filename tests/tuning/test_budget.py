from __future__ import annotations

from typing import Any

import pytest

from autotune.errors import InputError
from autotune.tuning.budget import SHARES, Deadline


@pytest.mark.parametrize("budget_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_positive_and_finite(budget_s: float) -> None:
    with pytest.raises(InputError, match="budget must be positive"):
        Deadline(budget_s)


def test_phases_share_all_there_is(world: Any) -> None:
    deadline = Deadline(100.0, clock=world.clock)
    world.clock.advance(20.0)
    for phase in SHARES:
        world.clock.advance(deadline.phase_s(phase))
    assert deadline.spent_s == pytest.approx(100.0)


def test_what_a_phase_leaves_goes_to_the_later_ones(world: Any) -> None:
    deadline = Deadline(100.0, clock=world.clock)
    assert deadline.phase_s("races") == pytest.approx(55.0)
    assert deadline.phase_s("confirm") == pytest.approx(80.0)
    assert deadline.phase_s("table") == pytest.approx(100.0)


def test_a_table_that_takes_long_is_paid_by_the_phases_before(world: Any) -> None:
    deadline = Deadline(100.0, clock=world.clock)
    deadline.table_s = 60.0
    phases = [phase for phase in SHARES if phase != "table"]
    for phase in phases:
        world.clock.advance(deadline.phase_s(phase))
    assert deadline.left_s == pytest.approx(60.0)


def test_a_spent_budget_leaves_a_confirmation_within_the_tolerance(world: Any) -> None:
    deadline = Deadline(100.0, clock=world.clock)
    deadline.earlier_s = 120.0
    assert deadline.left_s == 0.0
    assert deadline.phase_s("races") == 0.0
    assert 0.0 < deadline.phase_s("confirm") + deadline.phase_s("table") <= 15.0
