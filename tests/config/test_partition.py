"""Placements that cannot be are refused by rule."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from autotune.config.partition import Partition, Placement


def test_every_kind_loads_as_it_was_written() -> None:
    partition = Partition(
        ranks=3,
        tables=(
            Placement(kind="table_wise", ranks=(2,)),
            Placement(kind="row_wise", ranks=(1, 0), bounds=(0, 4, 10)),
            Placement(kind="column_wise", ranks=(0, 2), bounds=(0, 16, 64)),
            Placement(kind="replicated"),
        ),
    )
    assert Partition.model_validate_json(partition.model_dump_json()) == partition


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"kind": "table_wise", "ranks": (0, 1)}, "must name 1 ranks"),
        ({"kind": "replicated", "ranks": (0,)}, "must name 0 ranks"),
        ({"kind": "table_wise", "ranks": (0,), "bounds": (0, 1)}, "has no bounds"),
        ({"kind": "row_wise", "ranks": (0, 1), "bounds": (0, 5)}, "one bound more than parts"),
        ({"kind": "row_wise", "ranks": (), "bounds": (0,)}, "one bound more than parts"),
        ({"kind": "row_wise", "ranks": (0, 1), "bounds": (1, 2, 3)}, "rise from 0"),
        ({"kind": "column_wise", "ranks": (0, 1), "bounds": (0, 8, 8)}, "rise from 0"),
        ({"kind": "row_wise", "ranks": (1, 1), "bounds": (0, 2, 4)}, "at most one part"),
    ],
)
def test_a_placement_is_refused_by_rule(values: dict[str, object], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        Placement.model_validate(values)


def test_a_rank_outside_is_refused() -> None:
    with pytest.raises(ValidationError, match="ranks must be 0 to 1"):
        Partition(ranks=2, tables=(Placement(kind="table_wise", ranks=(2,)),))
