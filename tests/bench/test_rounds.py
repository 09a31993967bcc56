from __future__ import annotations

from itertools import repeat

import pytest
from fake_time import FakeTime
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.bench.rounds import MAX_REPEATS, EachRound, Observer, Round, run_rounds
from autotune.errors import InputError


def test_every_participant_takes_one_turn_a_round() -> None:
    fake = FakeTime()
    measurement = run_rounds(fake.candidates(a=1.0, b=2.0, c=3.0), max_rounds=4, warmup=0, clock=fake.clock)
    rounds = [fake.calls[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert {name: s.times_s for name, s in measurement.samples.items()} == {"a": (1.0,) * 4, "b": (2.0,) * 4, "c": (3.0,) * 4}
    assert fake.now_s == 24.0


def test_the_order_changes_between_rounds_and_repeats_with_the_seed() -> None:
    def order(seed: int) -> list[str]:
        fake = FakeTime()
        run_rounds(fake.candidates(a=1.0, b=1.0, c=1.0), max_rounds=20, seed=seed, clock=fake.clock)
        return fake.calls

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert len({tuple(order(1)[i : i + 3]) for i in range(3, 63, 3)}) > 3


def test_warm_up_calls_are_not_samples() -> None:
    fake = FakeTime()
    measurement = run_rounds({"a": fake.candidate("a", 9.0, 9.0, 1.0)}, max_rounds=2, warmup=2, clock=fake.clock)
    assert measurement.samples["a"].times_s == (1.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 5.0), st.floats(0.01, 5.0), st.floats(0.5, 60.0))
def test_the_budget_is_kept_unless_the_first_round_alone_passes_it(a_s: float, b_s: float, budget_s: float) -> None:
    fake = FakeTime()
    measurement = run_rounds(fake.candidates(a=a_s, b=b_s), budget_s=budget_s, clock=fake.clock)
    assert measurement.counted >= 1
    assert measurement.counted == 1 or fake.now_s <= budget_s + 1e-9
    assert budget_s < (measurement.counted + 2) * (a_s + b_s) + 1e-9


def test_a_budget_that_ends_before_enough_rounds_is_noted() -> None:
    fake = FakeTime()
    measurement = run_rounds(fake.candidates(a=2.0), budget_s=4.5, warmup=0, enough_rounds=3, clock=fake.clock)
    assert measurement.counted == 2
    assert "ended after 2 of at least 3 rounds" in measurement.notes[0]


def test_until_is_asked_from_enough_rounds_on() -> None:
    fake = FakeTime()
    measurement = run_rounds(fake.candidates(a=1.0), enough_rounds=4, until=lambda times: len(times["a"]) > 0, clock=fake.clock)
    assert measurement.counted == 4


def test_a_disturbed_round_is_measured_again_and_counted() -> None:
    fake = FakeTime()
    candidates = {"a": fake.candidate("a", 1.0, 7.0, 1.0)}
    measurement = run_rounds(candidates, max_rounds=3, warmup=0, observers=[fake.monitor([False, True])], clock=fake.clock)
    assert measurement.samples["a"].times_s == (1.0, 1.0, 1.0)
    assert (measurement.counted, measurement.disturbed) == (3, 1)
    assert measurement.notes == ("1 of 4 rounds were disturbed (other programs took 2.00 CPUs): 1 measured again, 0 kept",)


def test_under_steady_foreign_load_the_rounds_are_kept_and_the_result_says_so() -> None:
    fake = FakeTime()
    measurement = run_rounds(fake.candidates(a=1.0), max_rounds=5, warmup=0, observers=[fake.monitor(repeat(True))], clock=fake.clock)
    assert measurement.counted == 5
    assert measurement.disturbed == MAX_REPEATS + 5
    assert "5 kept" in measurement.notes[0]


def test_a_disturbed_round_is_not_repeated_beyond_the_budget() -> None:
    fake = FakeTime()
    measurement = run_rounds(fake.candidates(a=1.0), budget_s=3.0, warmup=0, observers=[fake.monitor(repeat(True))], clock=fake.clock)
    assert fake.now_s == 3.0
    assert measurement.counted == 1


def test_an_observer_sees_every_round_and_whether_it_counts() -> None:
    fake = FakeTime()
    seen: list[Round] = []
    observers = [fake.monitor([True]), EachRound(seen.append)]
    run_rounds(fake.candidates(a=1.0, b=2.0), max_rounds=2, warmup=0, observers=observers, clock=fake.clock)
    assert [(r.number, dict(r.times_s), r.length_s, r.counts) for r in seen] == [
        (0, {"a": (1.0,), "b": (2.0,)}, 3.0, False),
        (1, {"a": (1.0,), "b": (2.0,)}, 3.0, True),
        (2, {"a": (1.0,), "b": (2.0,)}, 3.0, True),
    ]


def test_measuring_without_participants_or_without_an_end_is_refused() -> None:
    fake = FakeTime()
    with pytest.raises(InputError, match="at least one participant"):
        run_rounds({}, max_rounds=1)
    with pytest.raises(InputError, match="needs an end"):
        run_rounds(fake.candidates(a=1.0), clock=fake.clock)
    with pytest.raises(InputError, match="rounds must be at least 1"):
        run_rounds(fake.candidates(a=1.0), max_rounds=0, clock=fake.clock)
    assert fake.calls == []


def test_the_least_rounds_run_though_the_budget_is_spent() -> None:
    fake = FakeTime()
    assert run_rounds(fake.candidates(a=1.0), budget_s=-1.0, min_rounds=4, clock=fake.clock).counted == 4
    assert run_rounds(fake.candidates(a=1.0), budget_s=0.0, clock=fake.clock).counted == 1


def test_inputs_are_made_outside_the_observed_time_and_anew_for_every_turn_of_the_warm_up() -> None:
    fake = FakeTime()
    made: list[int] = []

    def prepare() -> None:
        made.append(len(fake.calls))
        fake.now_s += 100.0

    measurement = run_rounds(fake.candidates(a=1.0, b=1.0), max_rounds=3, warmup=2, prepare=prepare, clock=fake.clock)
    assert made == [0, 1, 2, 3, 4, 6, 8]
    assert measurement.samples["a"].times_s == (1.0,) * 3
    assert [finished.length_s for finished in measurement.rounds] == [102.0] * 3


def test_a_turn_may_give_several_samples() -> None:
    measurement = run_rounds({"a": lambda: (1.0, 2.0), "b": lambda: (3.0, 4.0)}, max_rounds=2, warmup=0)
    assert measurement.samples["a"].times_s == (1.0, 2.0, 1.0, 2.0)
    assert measurement.samples["b"].times_s == (3.0, 4.0, 3.0, 4.0)


class _Told(Observer):
    """Writes down what it is told."""

    def __init__(self, name: str, told: list[str], reason: str = "") -> None:
        self._name, self._told, self._reason = name, told, reason

    def begin(self) -> None:
        self._told.append(f"{self._name} begin")

    def before(self) -> None:
        self._told.append(f"{self._name} before")

    def after(self) -> str:
        self._told.append(f"{self._name} after")
        return self._reason

    def done(self, finished: Round) -> None:
        self._told.append(f"{self._name} done")

    def end(self) -> None:
        self._told.append(f"{self._name} end")


def test_observers_are_nested_about_the_turns_and_end_after_an_error() -> None:
    told: list[str] = []
    run_rounds({"a": lambda: told.append("turn") or (1.0,)}, max_rounds=1, warmup=0, observers=[_Told("x", told), _Told("y", told)])
    inner = ["x before", "y before", "turn", "y after", "x after", "x done", "y done"]
    assert told == ["x begin", "y begin", *inner, "y end", "x end"]

    def failing() -> tuple[float]:
        raise KeyboardInterrupt

    told.clear()
    with pytest.raises(KeyboardInterrupt):
        run_rounds({"a": failing}, max_rounds=1, observers=[_Told("x", told)])
    assert told == ["x begin", "x end"]


def test_any_observer_may_call_a_round_disturbed_and_every_reason_is_kept() -> None:
    observers = [_Told("x", [], "a reason"), _Told("y", [], "another")]
    measurement = run_rounds({"a": lambda: (1.0,)}, max_rounds=1, observers=observers)
    assert {finished.disturbed for finished in measurement.rounds} == {"another; a reason"}
    assert measurement.disturbed == MAX_REPEATS + 1


def test_those_who_leave_take_no_further_turns_and_one_always_stays() -> None:
    fake = FakeTime()
    measurement = run_rounds(fake.candidates(a=1.0, b=1.0), max_rounds=3, warmup=0, drop=lambda times_s: set(times_s), clock=fake.clock)
    assert {name: len(samples.times_s) for name, samples in measurement.samples.items()} == {"a": 3, "b": 1}


@pytest.mark.parametrize("slow", [0, 1])
def test_processes_that_decide_together_run_the_same_rounds(slow: int) -> None:
    """The second process has another clock and sees no disturbance: it follows the first one."""
    answers: list[bool] = []
    first, second = FakeTime(), FakeTime()

    def said(value: bool) -> bool:
        answers.append(value)
        return value

    monitor = first.monitor([False, True, False, True])
    leader = run_rounds(first.candidates(a=1.0), budget_s=8.0, observers=[monitor], decide=said, clock=first.clock)
    left = iter(answers)
    follower = run_rounds(second.candidates(a=5.0 * slow), budget_s=8.0, decide=lambda value: next(left), clock=second.clock)
    assert [finished.counts for finished in follower.rounds] == [finished.counts for finished in leader.rounds]
    assert next(left, None) is None
