from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.bench.samples import ENOUGH_SAMPLES, FewSamples, Samples, WideSpread, ratio, significant
from autotune.config.tuned import Interval
from autotune.errors import InputError

times = st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(times)
def test_the_interval_holds_the_median_and_stays_within_the_samples(values: list[float]) -> None:
    samples = Samples(tuple(values))
    low, high = samples.interval
    assert min(values) <= low <= samples.median_s <= high <= max(values)
    assert min(samples.times_s) == min(values)


@settings(max_examples=40, deadline=None)
@given(times, st.floats(min_value=0.25, max_value=4.0))
def test_a_candidate_slower_by_a_constant_factor_has_exactly_that_ratio(values: list[float], factor: float) -> None:
    speedup = ratio([value * factor for value in values], values)
    assert speedup.median == pytest.approx(factor)
    assert (speedup.low, speedup.high) == pytest.approx((factor, factor))
    assert speedup.samples == len(values)


def test_the_same_samples_always_give_the_same_interval() -> None:
    values = tuple(1.0 + 0.1 * math.sin(i) for i in range(30))
    assert Samples(values).interval == Samples(values).interval


def test_to_interval_carries_median_bounds_and_count() -> None:
    interval = Samples((1.0, 2.0, 3.0)).to_interval()
    assert (interval.median, interval.low, interval.high, interval.samples) == (2.0, 1.0, 3.0, 3)


def test_order_statistics_take_over_seamlessly_beyond_a_thousand_samples() -> None:
    values = tuple(1.0 + (i * 7919 % 1009) / 1009 for i in range(1009))
    resampled, ordered = Samples(values[:1000]).interval, Samples(values).interval
    assert ordered == pytest.approx(resampled, rel=0.02)


def test_drift_that_meets_both_candidates_cancels_in_the_ratio() -> None:
    drift = [1.0, 1.3, 1.7, 2.2, 2.9, 3.7]
    speedup = ratio([1.1 * x for x in drift], drift)
    assert significant(speedup)


def test_rounds_that_only_one_candidate_ran_do_not_count() -> None:
    assert ratio([2.0, 2.0, 9.0, 9.0], [1.0, 1.0]) == Interval(median=2.0, low=2.0, high=2.0, samples=2)


@pytest.mark.parametrize(
    ("low", "samples", "expected"),
    [(1.01, ENOUGH_SAMPLES, True), (1.0, ENOUGH_SAMPLES, False), (0.9, 100, False), (1.5, ENOUGH_SAMPLES - 1, False)],
)
def test_a_gain_is_significant_above_one_and_with_enough_rounds(low: float, samples: int, expected: bool) -> None:
    assert significant(Interval(median=2.0, low=low, high=3.0, samples=samples)) is expected


def test_a_slowdown_is_no_significant_gain() -> None:
    assert not significant(Interval(median=0.8, low=0.7, high=0.9, samples=20))


def test_a_gain_within_the_margin_is_not_significant() -> None:
    assert not significant(Interval(median=1.02, low=1.01, high=1.03, samples=20), margin=0.02)


def test_few_samples_are_warned_of_with_advice() -> None:
    (warning,) = Samples((1.0, 1.0, 1.0)).warnings
    assert warning == FewSamples(3)
    assert warning.message == "3 samples, a 95 % interval needs 6; measure longer"
    assert FewSamples(1).message.startswith("1 sample, ")


def test_a_wide_spread_is_warned_of_with_advice() -> None:
    (warning,) = Samples((1.0, 1.0, 1.0, 2.0, 2.0, 2.0)).warnings
    assert isinstance(warning, WideSpread)
    assert warning.spread == pytest.approx(1.0 / 1.5)
    assert "stop other programs" in warning.message


def test_quiet_samples_carry_no_warning() -> None:
    assert Samples((1.0, 1.01, 0.99, 1.0, 1.02, 1.0)).warnings == ()


@pytest.mark.parametrize("values", [(), (1.0, -1.0), (1.0, math.nan), (math.inf,)])
def test_samples_that_are_no_times_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="times_s must"):
        Samples(values)


def test_a_ratio_with_a_time_of_zero_names_the_round() -> None:
    with pytest.raises(InputError, match=r"other must be finite and positive, got 0\.0 at round 1"):
        ratio([1.0, 1.0], [1.0, 0.0])
