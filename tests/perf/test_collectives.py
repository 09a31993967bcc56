"""Times of collectives from fits of a network, computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import network

from autotune.config.network import Network, NetworkFit
from autotune.errors import InputError
from autotune.ops.base import Work
from autotune.perf.collectives import Collectives, nearest_fit, transfer_s


def fit_of(ranks: int, operation: str = "all_to_all", form: str = "native", latency_s: float = 1e-5, worst: float = 0.1) -> NetworkFit:
    values = {"operation": operation, "form": form, "ranks": ranks, "latency_s": latency_s, "worst": worst}
    return NetworkFit.model_validate(values | {"bandwidth_bytes_per_s": 1e9, "residual": 0.0})


def network_of(fits: Sequence[NetworkFit], slowdown: float = 1.0) -> Network:
    base = network()
    together = base.together.model_copy(update={"compute_while_talking_s": slowdown * base.together.compute_s})
    return base.model_copy(update={"fits": tuple(fits), "ranks": max(fit.ranks for fit in fits), "together": together})


def sent(operation: str, messages: int, message_bytes: int, form: str = "") -> Work:
    return Work(0, 0, 0, operation=operation, form=form, messages=messages, message_bytes=message_bytes)


@pytest.mark.parametrize(("wanted", "nearest"), [(2, 2), (5, 2), (6, 16), (8, 16), (64, 16)])
def test_the_nearest_fit_is_nearest_in_proportion(wanted: int, nearest: int) -> None:
    """6 lies four above 2 and ten below 16, but three times 2 and 2.7 times below 16."""
    measured = network_of([fit_of(2), fit_of(16)])
    assert nearest_fit(measured, "all_to_all", "native", wanted).ranks == nearest
    assert Collectives(measured, wanted).notes == (
        () if wanted == nearest else (f"the network of {wanted} ranks is taken from that of {nearest}, with more messages",)
    )


def test_of_two_fits_as_near_the_larger_is_taken() -> None:
    measured = network_of([fit_of(2), fit_of(8)])
    assert nearest_fit(measured, "all_to_all", "native", 4).ranks == 8
    assert Collectives(measured, 4).notes == ("the network of 4 ranks is taken from that of 8, with more messages",)


def test_all_of_the_network_without_a_number_of_ranks() -> None:
    assert nearest_fit(network_of([fit_of(2), fit_of(8)]), "all_to_all").ranks == 8


@given(st.lists(st.integers(2, 4096), min_size=1, max_size=5), st.integers(2, 4096))
def test_no_other_fit_is_nearer(measured: list[int], wanted: int) -> None:
    chosen = nearest_fit(network_of([fit_of(ranks) for ranks in measured]), "all_to_all", "native", wanted).ranks
    ratio = max(chosen / wanted, wanted / chosen)
    assert all(max(ranks / wanted, wanted / ranks) >= ratio * (1 - 1e-12) for ranks in measured)


def test_a_form_that_was_not_measured_takes_another_of_the_operation() -> None:
    measured = network_of([fit_of(4, form="native", latency_s=1.0), fit_of(4, form="fused_scatter", latency_s=2.0)])
    assert nearest_fit(measured, "all_to_all", "fused_scatter", 4).latency_s == 2.0
    assert nearest_fit(measured, "all_to_all", "scatter_list", 4).latency_s == 1.0


def test_an_operation_that_was_not_measured_is_refused() -> None:
    with pytest.raises(InputError, match="must hold all_reduce, got none; run autotune probe --sockets 4 --refresh"):
        nearest_fit(network_of([fit_of(4)]), "all_reduce")


def test_a_transfer_is_latency_times_messages_plus_bytes_over_bandwidth() -> None:
    assert transfer_s(network(), sent("all_to_all", 3, 2_000_000, "native"), 4) == pytest.approx(3e-5 + 2e-3)


@pytest.mark.parametrize(("ranks", "messages"), [(2, 2), (3, 4), (4, 4), (8, 6), (9, 8)])
def test_an_all_reduce_takes_the_cheaper_of_ring_and_recursive_doubling(ranks: int, messages: int) -> None:
    """2 (W - 1) messages of the ring against 2 log2 W, rounded up."""
    assert transfer_s(network(ranks), sent("all_reduce", 2 * (ranks - 1), 0), ranks) == pytest.approx(messages * 1e-5)


def test_nothing_sent_takes_no_time() -> None:
    assert transfer_s(network(), sent("all_to_all", 0, 0), 4) == 0.0
    assert transfer_s(network(), sent("all_reduce", 2, 100), 1) == 0.0


def test_a_network_that_was_not_measured_is_assumed_and_said() -> None:
    work = sent("all_to_all", 3, 5_000_000)
    assumed = Collectives(None, 4)
    assert assumed.time_s([work]) == pytest.approx(3 * 20e-6 + 1e-3)
    assert assumed.compute_slowdown == 1.0
    assert assumed.notes == ("the network is assumed: 5 GB/s and 20 us a message; probe --sockets measures it",)
    prediction = assumed.prediction(work, 1.0)
    assert (prediction.low_s, prediction.high_s) == pytest.approx((math.exp(-0.7), math.exp(0.7)))
    assert prediction.extrapolated == assumed.notes[0]


def test_a_collective_takes_as_long_as_its_slowest_rank() -> None:
    works = [sent("all_to_all", 3, size, "native") for size in (0, 4_000_000, 1_000_000)]
    assert Collectives(network(), 4).time_s(works) == pytest.approx(3e-5 + 4e-3)


@pytest.mark.parametrize(("worst", "spread"), [(0.05, 0.15), (0.4, 0.4)])
def test_the_interval_is_the_largest_residual_and_never_under_15_percent(worst: float, spread: float) -> None:
    prediction = Collectives(network_of([fit_of(4, worst=worst)]), 4).prediction(sent("all_to_all", 1, 1, "native"), 2.0)
    assert prediction.time_s == 2.0
    assert (prediction.low_s, prediction.high_s) == pytest.approx((2 * math.exp(-spread), 2 * math.exp(spread)))
    assert not prediction.extrapolated


@pytest.mark.parametrize(("measured", "slowdown"), [(1.3, 1.3), (0.9, 1.0)])
def test_computing_is_never_faster_beside_a_transfer(measured: float, slowdown: float) -> None:
    assert Collectives(network_of([fit_of(4)], measured), 4).compute_slowdown == pytest.approx(slowdown)
