"""The fit of a network finds the latency and bandwidth that made the times."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.config.network import NetworkPoint, Operation
from autotune.errors import InputError
from autotune.probing.fit import fit, fits

SIZES = (0, 1 << 10, 1 << 16, 1 << 20, 1 << 24)


def points(
    latency_s: float, bandwidth: float, sizes: Sequence[int] = SIZES, operation: Operation = "all_to_all", ranks: int = 4
) -> list[NetworkPoint]:
    messages = ranks - 1
    return [
        NetworkPoint(
            operation=operation, form="native", ranks=ranks, message_bytes=size, messages=messages,
            time_s=latency_s * messages + size / bandwidth,
        )
        for size in sizes
    ]  # fmt: skip


@given(latency_s=st.floats(1e-6, 1e-3), bandwidth=st.floats(1e8, 1e10))
def test_latency_and_bandwidth_are_recovered(latency_s: float, bandwidth: float) -> None:
    fitted = fit(points(latency_s, bandwidth))
    assert fitted.latency_s == pytest.approx(latency_s, rel=1e-6)
    assert fitted.bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=1e-6)
    assert fitted.residual <= fitted.worst < 1e-6
    assert (fitted.operation, fitted.form, fitted.ranks) == ("all_to_all", "native", 4)


def test_residuals_are_relative_to_the_measured_times() -> None:
    """Latency alone, of times 1 and 3: the least squares of t/1 - 1 and t/3 - 1 lie at t = 1.2, 20 % above and 60 % below."""
    (point,) = points(1.0, 1.0, (0,), ranks=2)
    fitted = fit([point, point.model_copy(update={"time_s": 3.0})])
    assert fitted.latency_s == pytest.approx(1.2)
    assert fitted.residual == pytest.approx(0.4)
    assert fitted.worst == pytest.approx(0.6)


def test_a_latency_that_would_be_negative_is_zero() -> None:
    larger = points(0.0, 1e9, (1 << 10, 1 << 20))
    faster = [larger[0].model_copy(update={"time_s": larger[0].time_s / 2}), larger[1]]
    fitted = fit(faster)
    assert fitted.latency_s == 0.0
    assert 1e9 < fitted.bandwidth_bytes_per_s < 2e9


def test_times_that_fall_with_the_size_leave_the_latency_alone() -> None:
    first, second = points(1e-3, 1e9, (0, 1 << 20))
    fitted = fit([first, second.model_copy(update={"time_s": first.time_s / 2})])
    assert fitted.latency_s > 0
    assert (1 << 20) / fitted.bandwidth_bytes_per_s < 1e-12


@pytest.mark.parametrize("measured", [points(1e-5, 1e9, (1024,)), points(1e-5, 1e9) + points(1e-5, 1e9, ranks=2)])
def test_too_few_points_or_mixed_kinds_are_refused(measured: list[NetworkPoint]) -> None:
    with pytest.raises(InputError, match="a fit needs 2 points of one kind"):
        fit(measured)


def test_every_kind_with_points_enough_gets_a_fit_in_the_order_of_its_first_point() -> None:
    measured = [*points(1e-5, 1e9, operation="all_reduce"), *points(2e-5, 1e9, (1024,), ranks=2), *points(3e-5, 1e9)]
    assert [(fitted.operation, fitted.ranks) for fitted in fits(measured)] == [("all_reduce", 4), ("all_to_all", 4)]
