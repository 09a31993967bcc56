"""Rows met again, as counted in the data, are what further batches have; plans follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autotune.config.model import DataSpec, Model, Table
from autotune.data.batches import make_source
from autotune.plan.cost import Costs, distinct
from autotune.plan.profiled import plan_for
from autotune.plan.reuse import observed

_HISTOGRAM = """made up
Avg # of indices: 4000
Avg # of unique cols: 800
Histogram of col sizes:
(0, 1]: 0.500
(1, 2]: 0.300
(2, 16]: 0.150
(16, 64]: 0.050
Ratio of index distribution at different column sizes:
(0, 1]: 0.090
(1, 2]: 0.110
(2, 16]: 0.250
(16, 64]: 0.550
"""


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Model]:
    file = tmp_path / "histogram"
    file.write_text(_HISTOGRAM, encoding="utf-8")

    def make(minibatch: int = 4000, path: Path = file) -> Model:
        return Model(
            schema=1, name="reused", source="test", description="test", minibatch=minibatch, bottom_mlp=(3, 64), top_mlp=(1,),
            tables=(Table(rows=1_000_000, dim=64, pooling=3), Table(rows=300, dim=64, pooling=1), Table(rows=100, dim=64, pooling=0)),
            data=DataSpec(distribution="histogram", path=str(path)),
        )  # fmt: skip

    return make


def test_distinct_rows_are_those_of_other_batches(model: Callable[..., Model]) -> None:
    reuse = observed(model())
    assert reuse is not None
    batch = make_source(model()).batch(3)
    of_first = batch.indices[: int(batch.offsets[4000])].numpy()
    assert reuse[0].distinct(12_000) == pytest.approx(len(np.unique(of_first)), rel=0.1)
    # A part of one batch: what a rank's own samples meet.
    assert reuse[0].distinct(3_000) == pytest.approx(len(np.unique(of_first[:3_000])), rel=0.1)
    assert reuse[0].distinct(12_000) < 0.5 * distinct(1_000_000, 12_000), "far from uniform"
    assert reuse[2].distinct(5) == 0.0


def test_more_look_ups_than_were_seen_meet_more_rows_but_not_more_than_there_are(model: Callable[..., Model]) -> None:
    seen = observed(model())
    assert seen is not None
    assert seen[0].distinct(12_000) < seen[0].distinct(24_000) <= 2 * seen[0].distinct(12_000)
    assert Costs(model(), 2, reuse=seen).distinct(1, 1e9) == 300


def test_a_plan_takes_what_the_data_have_and_says_so(model: Callable[..., Model], tmp_path: Path) -> None:
    counted, unread = (plan_for(model(path=path), 2, None, 1, 1) for path in (tmp_path / "histogram", tmp_path / "none"))
    assert any("counted in their first minibatch" in note for note in counted.notes)
    assert any("taken as uniform" in note for note in unread.notes)
    assert counted.slowest_s < unread.slowest_s, "rows met again are in a cache"
