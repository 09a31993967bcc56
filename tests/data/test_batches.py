from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotune.config.model import DataSpec, Model, Table
from autotune.data.batches import Batch, make_source
from autotune.data.criteo import COLUMNS
from autotune.errors import InputError

HISTOGRAM = """{name}
Avg # of indices: 300
Avg # of unique cols: 100
Histogram of col sizes:
(0, 1]: 0.5
(2, 4]: 0.3
(4, 8]: 0.2
[0]
Ratio of index distribution at different column sizes:
(0, 1]: 0.17
(2, 4]: 0.36
(4, 8]: 0.47
"""


def make_model(**changes: Any) -> Model:
    values: dict[str, Any] = {
        "name": "tiny",
        "source": "test",
        "description": "test",
        "minibatch": 64,
        "bottom_mlp": (5, 8, 4),
        "top_mlp": (6, 1),
        "tables": (Table(rows=1000, dim=4, pooling=3), Table(rows=7, dim=4, pooling=1), Table(rows=50_000, dim=4, pooling=20)),
        "seed": 11,
    }
    return Model(**(values | changes))


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.dense, batch.indices, batch.offsets, batch.labels


def same(one: Batch, two: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))


def table_indices(batch: Batch, t: int) -> torch.Tensor:
    n = len(batch.labels)
    return batch.indices[batch.offsets[t * n] : batch.offsets[(t + 1) * n]]


@pytest.fixture
def specs(tmp_path: Path) -> list[DataSpec]:
    path = tmp_path / "h.txt"
    path.write_text(HISTOGRAM.format(name="first") + "\n" + HISTOGRAM.format(name="second"), encoding="utf-8")
    return [
        DataSpec(),
        DataSpec(pooling_kind="varying"),
        DataSpec(distribution="zipf", alpha=1.05),
        DataSpec(distribution="histogram", path=str(path)),
        DataSpec(distribution="histogram", path=str(path), pooling_kind="varying"),
    ]


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_every_distribution_gives_well_formed_batches(specs: list[DataSpec], dtype: str) -> None:
    model = make_model(index_dtype=dtype)
    for spec in specs:
        source = make_source(model, spec)
        batch = source.batch(3)
        assert not source.has_labels
        assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors(batch))
        assert batch.dense.shape == (64, 5)
        assert batch.labels.shape == (64,)
        assert batch.dense.dtype == batch.labels.dtype == torch.float32
        assert batch.indices.dtype == batch.offsets.dtype == getattr(torch, dtype)
        assert batch.offsets.shape == (3 * 64 + 1,)
        assert batch.offsets[0] == 0
        assert batch.offsets[-1] == len(batch.indices)
        assert (batch.offsets.diff() >= 0).all()
        for t, table in enumerate(model.tables):
            assert table_indices(batch, t).min() >= 0
            assert table_indices(batch, t).max() < table.rows


def test_a_batch_is_decided_by_seed_and_number(specs: list[DataSpec]) -> None:
    model = make_model()
    for spec in specs:
        ordered = make_source(model, spec)
        first = [ordered.batch(i) for i in range(3)]
        again = make_source(model, spec)
        assert all(same(first[i], again.batch(i)) for i in (2, 0, 1, 0))
        assert not same(first[0], first[1])
        assert not torch.equal(first[0].indices[:64], make_source(model, spec, seed=12).batch(0).indices[:64])


def test_tables_of_equal_size_are_drawn_independently() -> None:
    model = make_model(tables=(Table(rows=1000, dim=4, pooling=10),) * 2)
    batch = make_source(model).batch(0)
    assert not torch.equal(table_indices(batch, 0), table_indices(batch, 1))


def test_a_fixed_pooling_factor_is_exact_and_a_varying_one_is_poisson() -> None:
    model = make_model(minibatch=4000)
    fixed = make_source(model).batch(0).offsets.diff().reshape(3, 4000)
    assert fixed.unique(dim=1).squeeze(1).tolist() == [3, 1, 20]
    varying = make_source(model, DataSpec(pooling_kind="varying")).batch(0).offsets.diff().reshape(3, 4000).double()
    for lengths, mean in zip(varying, (3, 1, 20), strict=True):
        # Six standard deviations of the mean, and of the variance of a Poisson sample.
        assert lengths.mean().item() == pytest.approx(mean, abs=6 * (mean / 4000) ** 0.5)
        assert lengths.var().item() == pytest.approx(mean, abs=6 * ((mean + 2 * mean**2) / 4000) ** 0.5)
    assert (varying[1] == 0).any()


def test_a_pooling_factor_that_is_not_whole_varies() -> None:
    model = make_model(data=DataSpec(pooling_kind="varying"), tables=(Table(rows=10, dim=4, pooling=1.5),), minibatch=2000)
    lengths = make_source(model, DataSpec()).batch(0).offsets.diff().double()
    assert lengths.mean().item() == pytest.approx(1.5, abs=0.2)


def test_empty_bags_only() -> None:
    batch = make_source(make_model(tables=(Table(rows=10, dim=4, pooling=0),))).batch(0)
    assert len(batch.indices) == 0
    assert not batch.offsets.any()


def test_hot_rows_of_zipf_stay_hot_and_lie_apart_unless_asked() -> None:
    model = make_model(tables=(Table(rows=100_000, dim=4, pooling=100),), data=DataSpec(distribution="zipf", alpha=1.2))
    scattered = make_source(model)
    hot = [torch.bincount(scattered.batch(i).indices).topk(3).indices for i in range(2)]
    assert torch.equal(*hot)
    assert hot[0].sort().values.diff().min() > 100
    near = make_source(model, scatter=False).batch(0)
    assert torch.bincount(near.indices).topk(3).indices.tolist() == [0, 1, 2]


def test_a_histogram_block_can_be_named(specs: list[DataSpec]) -> None:
    assert "first" in make_source(make_model(), specs[3]).description
    assert "second" in make_source(make_model(), specs[3], histogram="second").description


def test_dense_features_are_standard_normal_and_labels_a_coin() -> None:
    batch = make_source(make_model(), minibatch=20_000).batch(0)
    assert batch.dense.mean().item() == pytest.approx(0, abs=0.02)
    assert batch.dense.std().item() == pytest.approx(1, abs=0.02)
    assert batch.labels.unique().tolist() == [0, 1]
    assert batch.labels.mean().item() == pytest.approx(0.5, abs=0.02)


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="minibatch must be positive, got 0"):
        make_source(make_model(), minibatch=0)
    with pytest.raises(InputError, match="seed must not be negative, got -1"):
        make_source(make_model(), seed=-1)
    huge = make_model(index_dtype="int32", tables=(Table(rows=10, dim=4, pooling=2**31),))
    with pytest.raises(InputError, match="int32 offsets count up to 2147483647 look-ups per batch, got"):
        make_source(huge, minibatch=1).batch(0)
    with pytest.raises(InputError, match=r"readable text file.*none\.txt"):
        make_source(make_model(), DataSpec(distribution="histogram", path=str(tmp_path / "none.txt")))


@pytest.fixture
def criteo_spec(tmp_path: Path) -> DataSpec:
    rng = np.random.default_rng(0)
    path = tmp_path / "rows.csv"
    rows = [[i % 2, *rng.integers(0, 50, 13), *(f"{value:08x}" for value in rng.integers(0, 2**32, 26))] for i in range(10)]
    path.write_text("\n".join([",".join(COLUMNS), *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return DataSpec(distribution="criteo", path=str(path))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_criteo_batches_cycle_over_the_file(criteo_spec: DataSpec, dtype: str) -> None:
    # A pooling factor other than 1 does not matter here.
    tables = (Table(rows=100, dim=4, pooling=3),) * 26
    model = make_model(bottom_mlp=(13, 4), tables=tables, minibatch=4, data=criteo_spec, index_dtype=dtype)
    source = make_source(model)
    assert source.has_labels
    assert "CSV" in source.description
    whole = make_source(model, minibatch=10).batch(0)
    third = source.batch(2)
    at = [8, 9, 0, 1]
    assert torch.equal(third.dense, whole.dense[at])
    assert torch.equal(third.labels, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert torch.equal(third.indices.reshape(26, 4), whole.indices.reshape(26, 10)[:, at])
    assert torch.equal(third.offsets, torch.arange(26 * 4 + 1, dtype=third.offsets.dtype))
    assert third.indices.dtype == third.offsets.dtype == getattr(torch, dtype)
    assert all(tensor.is_contiguous() for tensor in tensors(third))
    assert same(source.batch(5), source.batch(0))
    with pytest.raises(InputError, match="row number"):
        make_source(model, model.data.model_copy(update={"hashed": False})).batch(0)


def test_criteo_rows_need_a_model_of_their_shape(criteo_spec: DataSpec) -> None:
    with pytest.raises(InputError, match=r"begin with 13 and 26 tables, got 5 and 3 \(model tiny\)"):
        make_source(make_model(data=criteo_spec))
