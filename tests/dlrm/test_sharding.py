"""Parts of tables hold the values, and get the look-ups, that they have in the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.config.model import DataSpec, Model, Table
from autotune.config.partition import Partition, Placement
from autotune.data.batches import Batch, make_source
from autotune.dlrm.sharding import check_partition, parts_of_ranks
from autotune.errors import InputError
from autotune.ops.embedding_tables import EmbeddingForwardKnobs
from autotune.ops.shards import Part, Shard
from autotune.ops.table_values import initial_weights

DIM = 16


def model_of(rows: list[int]) -> Model:
    return Model(
        schema=1, name="shards", source="test", description="test", minibatch=6, data=DataSpec(pooling_kind="varying"),
        bottom_mlp=(3, DIM), top_mlp=(1,), tables=tuple(Table(rows=count, dim=DIM, pooling=2.5) for count in rows),
    )  # fmt: skip


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_a_part_has_the_initial_values_of_the_whole(rows: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, rows - 1))
    high = data.draw(st.integers(low + 1, rows))
    left = data.draw(st.integers(0, DIM - 1))
    right = data.draw(st.integers(left + 1, DIM))
    whole = initial_weights(rows, DIM, 3, 7)
    part = initial_weights(rows, DIM, 3, 7, row_range=(low, high), column_range=(left, right))
    assert torch.equal(part, whole[low:high, left:right])


@settings(deadline=None)  # the first call starts a team of threads
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 4))
def test_partial_sums_of_row_wise_parts_add_up_to_the_whole(rows: list[int], ranks: int) -> None:
    model = model_of(rows)
    batch = make_source(model).batch(0)
    placements = []
    for count in rows:
        owners = min(ranks, count)
        placements.append(
            Placement(kind="row_wise", ranks=tuple(range(owners)), bounds=tuple(count * i // owners for i in range(owners + 1)))
        )
    partition = Partition(ranks=ranks, tables=tuple(placements))
    check_partition(model, partition)

    def pooled(parts: list[Part]) -> torch.Tensor:
        total = torch.zeros(model.minibatch, len(rows), DIM)
        shard = Shard(parts, model, 0, huge_pages=False, threads=1)
        out = torch.zeros(model.minibatch, shard.width)
        shard.forward(shard.select(batch), out, EmbeddingForwardKnobs(), 1)
        for i, part in enumerate(shard.parts):
            total[:, part.table] = out[:, i * DIM : (i + 1) * DIM]
        return total

    whole = pooled([Part(t, (0, count), (0, DIM)) for t, count in enumerate(rows)])
    of_ranks = sum(map(pooled, parts_of_ranks(model, partition)))
    torch.testing.assert_close(of_ranks, whole, rtol=1e-5, atol=1e-6)


def test_a_look_up_outside_a_row_wise_table_is_refused() -> None:
    model = model_of([10])
    shard = Shard([Part(0, (0, 5), (0, DIM), sums=True)], model, 0, huge_pages=False, threads=1)
    offsets = torch.tensor([0, 1, 1, 1, 1, 1, 2])
    batch = Batch(torch.zeros(6, 3), torch.tensor([3, 10]), offsets, torch.zeros(6))
    with pytest.raises(IndexError, match=r"index 10 of table 0 .* must be 0 to 9"):
        shard.select(batch)


def test_a_partition_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="must place the 2 tables"):
        check_partition(model_of([10, 10]), Partition(ranks=1, tables=(Placement(kind="replicated"),)))
    split = Partition(ranks=2, tables=(Placement(kind="row_wise", ranks=(0, 1), bounds=(0, 5, 9)),))
    with pytest.raises(InputError, match="must end at 10"):
        check_partition(model_of([10]), split)
