"""A partition without a profile places every table, evenly, and moves as little as it can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune import catalog
from autotune.config.model import Model, Table
from autotune.config.partition import Partition
from autotune.dlrm.sharding import check_partition
from autotune.plan.even import even_partition


def model_of(tables: list[tuple[int, int]]) -> Model:
    return Model(
        schema=1, name="even", source="test", description="test", minibatch=100, bottom_mlp=(3, 16), top_mlp=(1,),
        tables=tuple(Table(rows=rows, dim=16, pooling=pooling) for rows, pooling in tables),
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 20)), min_size=1, max_size=20), st.integers(1, 8))
def test_every_table_is_placed(tables: list[tuple[int, int]], ranks: int) -> None:
    model = model_of(tables)
    partition = even_partition(model, ranks)
    assert partition == Partition.model_validate_json(partition.model_dump_json())
    check_partition(model, partition)


def test_small_tables_are_replicated_and_a_heavy_one_is_split() -> None:
    partition = even_partition(model_of([(50, 1), (51, 1), (10_000, 90), (60, 1)]), 2)
    assert [placement.kind for placement in partition.tables] == ["replicated", "table_wise", "row_wise", "table_wise"]
    assert partition.tables[1].ranks != partition.tables[3].ranks, "equal tables go to different ranks"


@pytest.mark.parametrize("name", ["mlperf", "large", "dlrm-dcnv2"])
@pytest.mark.parametrize("ranks", [4, 64])
def test_shipped_models_have_a_partition(name: str, ranks: int) -> None:
    model = catalog.load_model_by_name(name)
    check_partition(model, even_partition(model, ranks))
