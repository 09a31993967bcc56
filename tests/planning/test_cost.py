"""What shards cost: distinct rows under skew, narrow rows, exchanged columns, optimizer state."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.config.knobs import RunConfig
from autotune.config.model import Changes, DataSpec, Model, Table
from autotune.config.partition import Partition, Placement
from autotune.config.profile import Profile, RowPoint
from autotune.data.distributions import Scatter, Zipf
from autotune.data.popularity import zipf
from autotune.dlrm.defaults import complete
from autotune.dlrm.schedule import schedule, table_loads
from autotune.ops.base import Operator
from autotune.ops.shards import Part
from autotune.perf.predictor import Predictor
from autotune.planning.cost import ShardCosts
from tests.support.machines import bare, network

SKEWED = DataSpec(distribution="zipf", alpha=1.05)


def model_of(rows: int, dim: int = 64, pooling: int = 4, minibatch: int = 256, data: DataSpec | None = None) -> Model:
    return Model(
        schema=1, name="priced", source="test", description="test", minibatch=minibatch, bottom_mlp=(3, dim), top_mlp=(1,),
        tables=(Table(rows=rows, dim=dim, pooling=pooling),), data=data or DataSpec(),
    )  # fmt: skip


def costs_of(model: Model, ranks: int, profile: Profile | None = None) -> ShardCosts:
    return ShardCosts(model, ranks, Predictor(profile or bare(network=network(max(2, ranks)))), threads=4)


def with_rows(rates: dict[tuple[int, int], float], bandwidth: float = 1e9) -> Profile:
    """A machine of these gather and scatter bandwidths: (row bytes, working set) -> bytes per second of any number of threads."""
    points = tuple(
        RowPoint(row_bytes=width, working_set_bytes=size, threads=1, bandwidth_bytes_per_s=rate) for (width, size), rate in rates.items()
    )
    profile = bare(network=network(4, bandwidth))
    return profile.model_copy(update={"ceilings": profile.ceilings.model_copy(update={"gather": points, "scatter": points})})


def summed(rows: int, lookups: float, alpha: float) -> float:
    """Rank by rank."""
    share = np.arange(1.0, rows + 1) ** -alpha
    with np.errstate(divide="ignore"):
        return float(np.sum(-np.expm1(lookups * np.log1p(-share / share.sum()))))


ALPHAS = (0.2, 0.8, 1.0, 1.05, 1.5, 3.0)


@pytest.mark.parametrize(("rows", "alpha"), list(itertools.product((2, 1023, 1024, 1025, 50_000, 1_000_000), ALPHAS)))
def test_distinct_rows_under_zipf_are_the_sum_over_all_ranks(rows: int, alpha: float) -> None:
    for lookups in (1.0, 50.0, 5000.0, 1e6):
        assert zipf(rows, alpha).distinct(lookups) == pytest.approx(summed(rows, lookups, alpha), rel=1e-6)


@settings(deadline=None)
@given(st.integers(1, 10**9), st.floats(0.0, 1e9), st.floats(1e-3, 50.0))
def test_distinct_rows_under_zipf_lie_between_none_and_all(rows: int, lookups: float, alpha: float) -> None:
    found = zipf(rows, alpha).distinct(lookups)
    assert 0 <= found <= min(rows, max(lookups, 1.0)) * (1 + 1e-6)
    assert found <= zipf(rows, alpha).distinct(2 * lookups) * (1 + 1e-6)


@pytest.mark.parametrize("alpha", [0.6, 1.05, 1.5])
def test_draws_meet_as_many_rows_in_every_part_of_a_table(alpha: float) -> None:
    """As `DataSpec` data are drawn: hot rows scattered, so that the front of a table has no more than its share."""
    rows, lookups, generator = 20_000, 5_000, np.random.default_rng(0)
    whole, front = [], []
    for _ in range(60):
        met = np.unique(Zipf(rows, alpha, Scatter(rows, generator)).draw(generator, lookups))
        whole.append(len(met))
        front.append(np.count_nonzero(met < rows // 4))
    expected = zipf(rows, alpha).distinct(lookups)
    assert np.mean(whole) == pytest.approx(expected, rel=0.02)
    assert np.mean(front) == pytest.approx(expected / 4, rel=0.05)


def test_skew_is_cheaper_than_uniform_rows_where_a_cache_holds_the_hot_ones() -> None:
    uniform, skewed = (costs_of(model_of(1 << 22, pooling=20, data=data), 4).shard(0, (0, 1 << 22)).time_s for data in (DataSpec(), SKEWED))
    assert skewed < uniform


def test_a_shard_takes_what_it_adds_to_the_passes_of_a_step() -> None:
    """One table on each of two ranks, and both on one: the passes of the step differ by the shard's own price."""
    model = Model(
        schema=1, name="two", source="test", description="test", minibatch=4096, bottom_mlp=(3, 64), top_mlp=(1,),
        tables=(Table(rows=2_000_000, dim=64, pooling=40),) * 2,
    )  # fmt: skip
    costs = costs_of(model, 2)
    apart, together = (
        Partition(ranks=2, tables=tuple(Placement(kind="table_wise", ranks=(rank,)) for rank in ranks)) for ranks in ((0, 1), (0, 0))
    )

    def tables_s(partition: Partition) -> float:
        step = schedule(model, partition, 0)
        passes = costs.predictor.passes(step, complete(RunConfig(threads=4), step))
        return sum(each.prediction.time_s for each in passes if each.key in ("embedding_bag.forward", "embedding_bag.update"))

    sent_s = 2 * 4096 * 64 * 4 / 2 / 1e9
    added_s = tables_s(together) - tables_s(apart)
    assert costs.shard(0, (0, 2_000_000)).time_s - sent_s == pytest.approx(added_s, rel=0.1)


def test_a_column_part_repeats_the_look_ups_and_exchanges_its_columns() -> None:
    rows, slow = 1 << 20, 1e9
    near = with_rows({(64, 1 << 20): 1e10, (256, 1 << 20): 1e10}, bandwidth=1e15)
    far = with_rows({(64, 1 << 20): 1e10, (256, 1 << 20): 1e10}, bandwidth=slow)
    without, costs = (costs_of(model_of(rows), 4, profile) for profile in (near, far))
    samples, away = 256, 0.75
    for part, width in (((0, rows // 4), None), ((0, rows), (16, 32))):
        sent_bytes = 2 * samples * (256 if width is None else 64) * away
        exchanged_s = costs.shard(0, part, width).time_s - without.shard(0, part, width).time_s
        assert exchanged_s == pytest.approx(sent_bytes / slow, rel=1e-3)
    by_row, by_column = costs.shard(0, (0, rows // 4)), costs.shard(0, (0, rows), (16, 32))
    assert by_row.memory_bytes == by_column.memory_bytes == rows * 64
    assert (by_column.rows, by_column.columns) == ((0, rows), (16, 32))
    assert 4 * without.shard(0, (0, rows), (16, 32)).time_s > without.shard(0, (0, rows)).time_s, "look-ups are repeated"


def test_rows_narrower_than_measured_are_no_cheaper_than_the_narrowest() -> None:
    costs = costs_of(model_of(1 << 20, pooling=40), 1, with_rows({(256, 1 << 20): 1e8}))
    whole, narrow = costs.shard(0, (0, 1 << 20)), costs.shard(0, (0, 1 << 20), (0, 16))
    assert narrow.time_s == pytest.approx(whole.time_s, rel=0.05)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(2, 8), st.sampled_from(["uniform", "zipf"]))
def test_row_parts_have_the_look_ups_of_the_table_between_them(rows: int, parts: int, kind: str) -> None:
    model = model_of(rows, data=SKEWED if kind == "zipf" else None)
    costs = costs_of(model, 1)
    bounds = [rows * i // parts for i in range(parts + 1)]
    pairs = [pair for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
    assert sum(costs.shard(0, pair).memory_bytes for pair in pairs) == costs.shard(0, (0, rows)).memory_bytes
    loads = [table_loads(model, (Part(0, pair, (0, 64)),), model.minibatch)[0] for pair in (*pairs, (0, rows))]
    assert sum(load.lookups for load in loads[:-1]) == pytest.approx(loads[-1].lookups)
    assert sum(load.unique for load in loads[:-1]) == pytest.approx(loads[-1].unique)


def test_rowwise_optimizer_state_is_a_float_a_row() -> None:
    model = model_of(1000).changed(Changes(optimizer="adagrad"))
    costs = costs_of(model, 4)
    assert costs.shard(0, (0, 1000)).memory_bytes == 1000 * (256 + 4)
    assert costs.shard(0, (0, 250)).memory_bytes == 250 * (256 + 4)


def test_bf16_gathers_half_the_bytes_and_adagrad_carries_its_state() -> None:
    model = model_of(4_000_000, pooling=40, minibatch=4096)
    plain, halves, summing = (model.changed(Changes(**change)) for change in ({}, {"dtype": "bf16"}, {"optimizer": "adagrad"}))

    def added_s(changed: Model, kind: str) -> float:
        operator: Operator = schedule(changed).operators[kind]
        return Predictor(bare()).added_s(operator, 4, changed.dtype)

    forward = [added_s(changed, "embedding_bag.forward") for changed in (plain, halves, summing)]
    assert forward[1] < forward[0] == forward[2]
    update = [added_s(changed, "embedding_bag.update") for changed in (plain, halves, summing)]
    assert update[2] > update[0]
    assert update[1] == pytest.approx(update[0], rel=0.25), "both halves are read and written"


def test_a_replica_costs_its_own_samples_and_a_reduction_where_rows_are_few() -> None:
    """Few rows: a dense gradient is reduced. Many: every rank updates with all samples."""
    shares = []
    for rows in (1_000, 1_000_000):
        costs = costs_of(model_of(rows, pooling=20, minibatch=4096), 4, bare(network=network(4, bandwidth=1e10)))
        shares.append(costs.replicated_s(0) / costs.shard(0, (0, rows)).time_s)
    assert shares[0] < 0.4, "a quarter of the samples, and a reduction"
    assert shares[1] > 0.5, "the update of all samples"
