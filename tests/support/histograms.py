"""A made-up reuse histogram in the published format, and a model of its data."""

from __future__ import annotations

from pathlib import Path

from autotune.config.model import DataSpec, Model, Table

HISTOGRAM = """made up
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


def of_histogram(path: Path, minibatch: int = 4000) -> Model:
    return Model(
        schema=1, name="reused", source="test", description="test", minibatch=minibatch, bottom_mlp=(3, 64), top_mlp=(1,),
        tables=(Table(rows=1_000_000, dim=64, pooling=3), Table(rows=300, dim=64, pooling=1), Table(rows=100, dim=64, pooling=0)),
        data=DataSpec(distribution="histogram", path=str(path)),
    )  # fmt: skip
