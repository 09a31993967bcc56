from __future__ import annotations

import pytest
from fake_time import FakeTime
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.bench.race import drop_clearly_worse, race
from autotune.errors import InputError


def test_a_hopeless_candidate_leaves_after_two_rounds_and_a_clearly_worse_one_after_three() -> None:
    fake = FakeTime()
    result = race(fake.candidates(slow=2.0, best=1.0, close=1.01, worse=1.1), default="close", max_rounds=6, clock=fake.clock)
    assert result.eliminated == {"slow": 2, "worse": 3}
    assert result.ranking == ("best", "close")
    assert [len(result.measurement.samples[name].times_s) for name in ("slow", "worse", "best", "close")] == [2, 3, 6, 6]


def test_one_disturbed_round_does_not_eliminate() -> None:
    fake = FakeTime()
    candidates = {"a": fake.candidate("a", 1.0), "b": fake.candidate("b", 1.0, 5.0, 1.0), "c": fake.candidate("c", 1.0)}
    assert race(candidates, max_rounds=2, clock=fake.clock).eliminated == {}


def test_the_default_stays_however_slow_it_is() -> None:
    fake = FakeTime()
    result = race(fake.candidates(default=5.0, fast=1.0), default="default", max_rounds=20, clock=fake.clock)
    assert result.eliminated == {}
    assert result.ranking == ("fast", "default")
    assert result.measurement.counted == 6


def test_the_race_ends_when_only_the_default_is_left() -> None:
    fake = FakeTime()
    result = race(fake.candidates(default=1.0, slow=3.0), default="default", max_rounds=20, clock=fake.clock)
    assert result.ranking == ("default",)
    assert result.measurement.counted == 3


def test_candidates_that_the_budget_does_not_reach_are_named() -> None:
    fake = FakeTime()
    result = race(fake.candidates(a=1.0, b=1.0, c=1.0, default=1.0), default="default", max_rounds=40, budget_s=6.5, clock=fake.clock)
    assert result.eliminated == {"c": 0}
    assert "c" not in result.measurement.samples
    assert fake.calls[0] == "default"
    assert "left no time for 1 of 4 candidates" in result.notes[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6), st.floats(30.0, 600.0))
def test_without_noise_the_race_finds_the_fastest_within_two_percent(times_s: list[float], budget_s: float) -> None:
    fake = FakeTime()
    candidates = fake.candidates(**{f"c{i}": value for i, value in enumerate(times_s)})
    result = race(candidates, default="c0", budget_s=10 * budget_s, max_rounds=10, clock=fake.clock)
    assert times_s[int(result.ranking[0][1:])] <= min(times_s) * 1.02


def test_the_rule_of_elimination_can_be_replaced() -> None:
    fake = FakeTime()
    result = race(fake.candidates(a=1.0, b=1.0, c=1.0), max_rounds=5, eliminate=lambda times, best: set(times), clock=fake.clock)
    assert set(result.eliminated.values()) == {2}
    assert {*result.eliminated, *result.ranking} == {"a", "b", "c"}


def test_an_unknown_default_is_refused() -> None:
    fake = FakeTime()
    with pytest.raises(InputError, match="default must be one of the candidates, got 'x'"):
        race(fake.candidates(a=1.0), default="x", max_rounds=1, clock=fake.clock)


def test_a_difference_within_the_margin_drops_nobody() -> None:
    assert drop_clearly_worse({"a": [1.0] * 9, "b": [1.019] * 9, "c": [1.03] * 9}, "a") == ["c"]
