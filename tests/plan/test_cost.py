"""What parts cost: distinct rows under skew, narrow rows, exchanged columns, optimizer state."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.config.model import Changes, DataSpec, Model, Table
from autotune.config.profile import Ceilings, ComputePoint, RowPoint
from autotune.data.distributions import Scatter, Zipf
from autotune.plan.cost import Costs, distinct_zipf

SKEWED = DataSpec(distribution="zipf", alpha=1.05)


def model_of(rows: int, dim: int = 64, pooling: int = 4, minibatch: int = 256, data: DataSpec | None = None) -> Model:
    return Model(
        schema=1, name="priced", source="test", description="test", minibatch=minibatch, bottom_mlp=(3, dim), top_mlp=(1,),
        tables=(Table(rows=rows, dim=dim, pooling=pooling),), data=data or DataSpec(),
    )  # fmt: skip


def ceilings_of(rates: dict[tuple[int, int], float]) -> Ceilings:
    """(row bytes, working set) -> bytes per second, for gather and scatter alike."""
    points = tuple(
        RowPoint(row_bytes=width, working_set_bytes=size, threads=1, bandwidth_bytes_per_s=rate) for (width, size), rate in rates.items()
    )
    fma = (ComputePoint(threads=1, flops_per_s=1e11),)
    return Ceilings(fma=fma, gemm=fma, stream=(), gather=points, scatter=points, fork_join=())


def summed(rows: int, lookups: float, alpha: float) -> float:
    """Rank by rank."""
    share = np.arange(1.0, rows + 1) ** -alpha
    with np.errstate(divide="ignore"):
        return float(np.sum(-np.expm1(lookups * np.log1p(-share / share.sum()))))


ALPHAS = (0.2, 0.8, 1.0, 1.05, 1.5, 3.0)


@pytest.mark.parametrize(("rows", "alpha"), list(itertools.product((2, 1023, 1024, 1025, 50_000, 1_000_000), ALPHAS)))
def test_distinct_rows_under_zipf_are_the_sum_over_all_ranks(rows: int, alpha: float) -> None:
    for lookups in (1.0, 50.0, 5000.0, 1e6):
        assert distinct_zipf(rows, lookups, alpha) == pytest.approx(summed(rows, lookups, alpha), rel=1e-6)


@settings(deadline=None)
@given(st.integers(1, 10**9), st.floats(0.0, 1e9), st.floats(1e-3, 50.0))
def test_distinct_rows_under_zipf_lie_between_none_and_all(rows: int, lookups: float, alpha: float) -> None:
    found = distinct_zipf(rows, lookups, alpha)
    assert 0 <= found <= min(rows, max(lookups, 1.0)) * (1 + 1e-9)
    assert found <= distinct_zipf(rows, 2 * lookups, alpha) * (1 + 1e-9)


@pytest.mark.parametrize("alpha", [0.6, 1.05, 1.5])
def test_draws_meet_as_many_rows_in_every_part_of_a_table(alpha: float) -> None:
    """As `DataSpec` data are drawn: hot rows scattered, so that the front of a table has no more than its share."""
    rows, lookups, generator = 20_000, 5_000, np.random.default_rng(0)
    whole, front = [], []
    for _ in range(60):
        met = np.unique(Zipf(rows, alpha, Scatter(rows, generator)).draw(generator, lookups))
        whole.append(len(met))
        front.append(np.count_nonzero(met < rows // 4))
    expected = distinct_zipf(rows, lookups, alpha)
    assert np.mean(whole) == pytest.approx(expected, rel=0.02)
    assert np.mean(front) == pytest.approx(expected / 4, rel=0.05)


def test_skew_is_cheaper_than_uniform_rows_where_a_cache_holds_the_hot_ones() -> None:
    fast_when_small = ceilings_of({(256, 1 << 20): 6e10, (256, 1 << 30): 2e10})
    for ceilings in (None, fast_when_small):
        uniform, skewed = (
            Costs(model_of(1 << 22, pooling=20, data=data), 4, ceilings).item(0, (0, 1 << 22)).time_s for data in (DataSpec(), SKEWED)
        )
        assert skewed < uniform


def test_rows_met_again_come_at_the_rate_of_the_distinct_ones() -> None:
    rows, lookups = 1 << 22, 1024
    slow, fast = 1e10, 4e10
    costs = Costs(model_of(rows, data=SKEWED), 1, ceilings_of({(256, 256 * lookups): fast, (256, 256 * rows): slow}))
    unique = distinct_zipf(rows, lookups, 1.05)
    # Gathered once, read and written once by the update; one rank exchanges nothing.
    assert costs.item(0, (0, rows)).time_s == pytest.approx(3 * 256 * (unique / slow + (lookups - unique) / fast))


def test_a_column_part_repeats_the_look_ups_and_exchanges_its_columns() -> None:
    rows, rate, network = 1 << 20, 1e10, 1e9
    flat = ceilings_of({(64, 1 << 20): rate, (256, 1 << 20): rate})
    costs = Costs(model_of(rows), 4, flat, network_bytes_per_s=network)
    by_row, by_column = costs.item(0, (0, rows // 4)), costs.item(0, (0, rows), (16, 32))
    lookups, samples, away = 1024, 256, 0.75
    assert by_row.time_s == pytest.approx(3 * lookups / 4 * 256 / rate + 2 * samples * 256 * away / network)
    assert by_column.time_s == pytest.approx(3 * lookups * 64 / rate + 2 * samples * 64 * away / network)
    assert by_row.memory_bytes == by_column.memory_bytes == rows * 64
    assert (by_column.rows, by_column.columns) == ((0, rows), (16, 32))


def test_rows_narrower_than_measured_take_the_time_of_the_narrowest() -> None:
    costs = Costs(model_of(1 << 20), 1, ceilings_of({(256, 1 << 20): 1e10}))
    whole, narrow = costs.item(0, (0, 1 << 20)), costs.item(0, (0, 1 << 20), (0, 16))
    assert narrow.time_s == pytest.approx(whole.time_s)


@given(st.integers(1, 5000), st.integers(2, 8), st.sampled_from(["uniform", "zipf"]))
def test_row_parts_have_the_look_ups_of_the_table_between_them(rows: int, parts: int, kind: str) -> None:
    costs = Costs(model_of(rows, data=SKEWED if kind == "zipf" else None), 1)
    bounds = [rows * i // parts for i in range(parts + 1)]
    items = [costs.item(0, pair) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
    whole = costs.item(0, (0, rows))
    assert sum(item.memory_bytes for item in items) == whole.memory_bytes
    assert sum(item.time_s for item in items) == pytest.approx(whole.time_s)


@pytest.mark.parametrize(("state", "of_a_quarter"), [(0, 0), (4, 4), (256, 64), (512, 128), (3, 3)])
def test_optimizer_state_is_split_with_the_columns_down_to_a_float(state: int, of_a_quarter: int) -> None:
    costs = Costs(model_of(1000), 4, state_bytes_per_row=state)
    assert costs.item(0, (0, 1000)).memory_bytes == 1000 * (256 + state)
    assert costs.item(0, (0, 250)).memory_bytes == 250 * (256 + state)
    assert costs.item(0, (0, 1000), (0, 16)).memory_bytes == 1000 * (64 + of_a_quarter)


def test_bf16_gathers_half_the_bytes_and_adagrad_carries_its_state() -> None:
    model = model_of(100_000)
    plain, halves, summing = (Costs(model.changed(Changes(**change)), 2) for change in ({}, {"dtype": "bf16"}, {"optimizer": "adagrad"}))
    times = [costs._rows_s("gather", 64, 100_000, 1e4, 9e3) for costs in (plain, halves, summing)]
    assert times[1] < times[0] == times[2]
    times = [costs._rows_s("scatter", 64, 100_000, 1e4, 9e3) for costs in (plain, halves, summing)]
    assert times[2] > times[0] == times[1]
