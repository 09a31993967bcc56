from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.bench.noise import NoiseMonitor, Reading
from autotune.bench.timer import MAX_REPEATS, Round, drop_clearly_worse, interleave, race
from autotune.errors import InputError


class FakeTime:
    """A clock that only the candidates move."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now_s

    def candidate(self, name: str, *times_s: float) -> Callable[[], None]:
        """Takes the given times in turn, the last one ever after."""
        left = chain(times_s, repeat(times_s[-1]))

        def call() -> None:
            self.calls.append(name)
            self.now_s += next(left)

        return call

    def candidates(self, **times_s: float) -> dict[str, Callable[[], None]]:
        return {name: self.candidate(name, value) for name, value in times_s.items()}

    def monitor(self, disturbed: Iterable[bool]) -> NoiseMonitor:
        """Foreign programs take all CPUs in the windows that are named disturbed."""
        readings = self._readings(chain(disturbed, repeat(False)))
        return NoiseMonitor(cpus=[0, 1], read=lambda: next(readings))

    def _readings(self, verdicts: Iterable[bool]) -> Iterator[Reading]:
        busy_s = 0.0
        for verdict in verdicts:
            begin_s = self.now_s
            yield Reading(self.now_s, busy_s, 0.0, 0.0, None)
            busy_s += 2 * (self.now_s - begin_s) if verdict else 0.0
            yield Reading(self.now_s, busy_s, 0.0, 0.0, None)


def test_every_candidate_runs_once_a_round() -> None:
    fake = FakeTime()
    measurement = interleave(fake.candidates(a=1.0, b=2.0, c=3.0), rounds=4, warmup=0, clock=fake.clock)
    rounds = [fake.calls[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert {name: s.times_s for name, s in measurement.samples.items()} == {"a": (1.0,) * 4, "b": (2.0,) * 4, "c": (3.0,) * 4}
    assert measurement.best == "a"
    assert measurement.spent_s == 24.0


def test_the_order_changes_between_rounds_and_repeats_with_the_seed() -> None:
    def order(seed: int) -> list[str]:
        fake = FakeTime()
        interleave(fake.candidates(a=1.0, b=1.0, c=1.0), rounds=20, seed=seed, clock=fake.clock)
        return fake.calls

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert len({tuple(order(1)[i : i + 3]) for i in range(3, 63, 3)}) > 3


def test_warm_up_calls_are_not_samples() -> None:
    fake = FakeTime()
    measurement = interleave({"a": fake.candidate("a", 9.0, 9.0, 1.0)}, rounds=2, warmup=2, clock=fake.clock)
    assert measurement.samples["a"].times_s == (1.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 5.0), st.floats(0.01, 5.0), st.floats(0.5, 60.0))
def test_the_budget_is_kept_unless_the_first_round_alone_passes_it(a_s: float, b_s: float, budget_s: float) -> None:
    fake = FakeTime()
    measurement = interleave(fake.candidates(a=a_s, b=b_s), budget_s=budget_s, clock=fake.clock)
    assert measurement.rounds >= 1
    assert measurement.rounds == 1 or measurement.spent_s <= budget_s + 1e-9
    assert budget_s < (measurement.rounds + 2) * (a_s + b_s) + 1e-9


def test_a_budget_that_ends_before_the_least_rounds_is_noted() -> None:
    fake = FakeTime()
    measurement = interleave(fake.candidates(a=2.0), budget_s=4.5, warmup=0, min_rounds=3, clock=fake.clock)
    assert measurement.rounds == 2
    assert "ended after 2 of at least 3 rounds" in measurement.notes[0]


def test_until_is_asked_from_the_least_rounds_on() -> None:
    fake = FakeTime()
    measurement = interleave(fake.candidates(a=1.0), min_rounds=4, until=lambda times: len(times["a"]) > 0, clock=fake.clock)
    assert measurement.rounds == 4


def test_a_disturbed_round_is_measured_again_and_counted() -> None:
    fake = FakeTime()
    candidates = {"a": fake.candidate("a", 1.0, 7.0, 1.0)}
    measurement = interleave(candidates, rounds=3, warmup=0, monitor=fake.monitor([False, True]), clock=fake.clock)
    assert measurement.samples["a"].times_s == (1.0, 1.0, 1.0)
    assert (measurement.rounds, measurement.disturbed_rounds) == (3, 1)
    assert measurement.notes == ("1 of 4 rounds were disturbed (other programs took 2.00 CPUs): 1 measured again, 0 kept",)


def test_under_steady_foreign_load_the_rounds_are_kept_and_the_result_says_so() -> None:
    fake = FakeTime()
    measurement = interleave(fake.candidates(a=1.0), rounds=5, warmup=0, monitor=fake.monitor(repeat(True)), clock=fake.clock)
    assert measurement.rounds == 5
    assert measurement.disturbed_rounds == MAX_REPEATS + 5
    assert "5 kept" in measurement.notes[0]


def test_a_disturbed_round_is_not_repeated_beyond_the_budget() -> None:
    fake = FakeTime()
    measurement = interleave(fake.candidates(a=1.0), budget_s=3.0, warmup=0, monitor=fake.monitor(repeat(True)), clock=fake.clock)
    assert measurement.spent_s == 3.0
    assert measurement.rounds == 1


def test_on_round_sees_each_round_that_counts() -> None:
    fake = FakeTime()
    seen: list[Round] = []
    interleave(fake.candidates(a=1.0, b=2.0), rounds=2, warmup=0, monitor=fake.monitor([True]), on_round=seen.append, clock=fake.clock)
    assert [(r.index, dict(r.times_s), r.spent_s) for r in seen] == [(0, {"a": 1.0, "b": 2.0}, 6.0), (1, {"a": 1.0, "b": 2.0}, 9.0)]


def test_measuring_without_candidates_or_without_an_end_is_refused() -> None:
    fake = FakeTime()
    with pytest.raises(InputError, match="at least one candidate"):
        interleave({}, rounds=1)
    with pytest.raises(InputError, match="needs an end"):
        interleave(fake.candidates(a=1.0), clock=fake.clock)
    with pytest.raises(InputError, match="rounds must be at least 1"):
        interleave(fake.candidates(a=1.0), rounds=0, clock=fake.clock)
    with pytest.raises(InputError, match="budget_s must be positive"):
        interleave(fake.candidates(a=1.0), budget_s=0.0, clock=fake.clock)
    assert fake.calls == []


def test_a_hopeless_candidate_leaves_after_two_rounds_and_a_clearly_worse_one_after_three() -> None:
    fake = FakeTime()
    result = race(fake.candidates(slow=2.0, best=1.0, close=1.01, worse=1.1), default="close", rounds=6, clock=fake.clock)
    assert [(e.name, e.after_rounds, e.slowdown) for e in result.eliminated] == [("slow", 2, 2.0), ("worse", 3, pytest.approx(1.1))]
    assert result.best == "best"
    assert [len(result.measurement.samples[name].times_s) for name in ("slow", "worse", "best", "close")] == [2, 3, 6, 6]


def test_one_disturbed_round_does_not_eliminate() -> None:
    fake = FakeTime()
    candidates = {"a": fake.candidate("a", 1.0), "b": fake.candidate("b", 1.0, 5.0, 1.0), "c": fake.candidate("c", 1.0)}
    assert race(candidates, rounds=2, clock=fake.clock).eliminated == ()


def test_the_default_stays_however_slow_it_is() -> None:
    fake = FakeTime()
    result = race(fake.candidates(default=5.0, fast=1.0), default="default", rounds=20, clock=fake.clock)
    assert result.eliminated == ()
    assert result.best == "fast"
    assert result.measurement.rounds == 6


def test_the_race_ends_when_only_the_default_is_left() -> None:
    fake = FakeTime()
    result = race(fake.candidates(default=1.0, slow=3.0), default="default", rounds=20, clock=fake.clock)
    assert result.best == "default"
    assert result.measurement.rounds == 3


def test_candidates_that_the_budget_does_not_reach_are_named() -> None:
    fake = FakeTime()
    result = race(fake.candidates(a=1.0, b=1.0, c=1.0, default=1.0), default="default", budget_s=6.5, clock=fake.clock)
    assert [(e.name, e.after_rounds, e.slowdown) for e in result.eliminated] == [("c", 0, None)]
    assert "c" not in result.measurement.samples
    assert fake.calls[0] == "default"
    assert "left no time for 1 of 4 candidates" in result.measurement.notes[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6), st.floats(30.0, 600.0))
def test_without_noise_the_race_finds_the_fastest_within_two_percent(times_s: list[float], budget_s: float) -> None:
    fake = FakeTime()
    candidates = fake.candidates(**{f"c{i}": value for i, value in enumerate(times_s)})
    result = race(candidates, default="c0", budget_s=10 * budget_s, rounds=10, clock=fake.clock)
    assert times_s[int(result.best[1:])] <= min(times_s) * 1.02


def test_the_rule_of_elimination_can_be_replaced() -> None:
    fake = FakeTime()
    result = race(fake.candidates(a=1.0, b=1.0, c=1.0), rounds=5, eliminate=lambda times, best: set(times), clock=fake.clock)
    assert {e.after_rounds for e in result.eliminated} == {2}
    assert {e.name for e in result.eliminated} | {result.best} == {"a", "b", "c"}


def test_an_unknown_default_is_refused() -> None:
    fake = FakeTime()
    with pytest.raises(InputError, match="default must be one of the candidates, got 'x'"):
        race(fake.candidates(a=1.0), default="x", rounds=1, clock=fake.clock)


def test_a_difference_within_the_margin_drops_nobody() -> None:
    assert drop_clearly_worse({"a": [1.0] * 9, "b": [1.019] * 9, "c": [1.03] * 9}, "a") == ["c"]
