"""What a user demands of a plan is kept, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from autotune.cli.main import app
from autotune.config.model import Model, Table
from autotune.errors import InputError
from autotune.plan.constraints import Constraints
from autotune.plan.cost import distinct_zipf
from autotune.plan.planner import plan

RUNNER = CliRunner()


def model_of(rows: list[int], dim: int = 64) -> Model:
    return Model(
        schema=1, name="planned", source="test", description="test", minibatch=256, bottom_mlp=(3, dim), top_mlp=(1,),
        tables=tuple(Table(rows=count, dim=dim, pooling=4) for count in rows),
    )  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_every_demand_is_kept(data: st.DataObject) -> None:
    tables, ranks = data.draw(st.integers(4, 12)), data.draw(st.integers(2, 5))
    model = model_of([data.draw(st.integers(1, 5000)) for _ in range(tables)])
    pinned, banned = data.draw(st.integers(0, ranks - 1)), data.draw(st.integers(0, ranks - 1))
    constraints = Constraints(pin={0: pinned}, forbid={1: (banned,)}, together=((2, 3),))
    found = plan(model, ranks, constraints=constraints).partition
    assert found.tables[0].kind == "table_wise"
    assert found.tables[0].ranks == (pinned,)
    assert found.tables[1].kind != "replicated"
    assert banned not in found.tables[1].ranks
    assert found.tables[2].kind == found.tables[3].kind == "table_wise"
    assert found.tables[2].ranks == found.tables[3].ranks


def test_only_allowed_kinds_and_no_small_table_split() -> None:
    model = model_of([1_000_000, 100, 100, 100])
    assert {one.kind for one in plan(model, 4, constraints=Constraints(kinds=("table_wise",))).partition.tables} == {"table_wise"}
    limit = model.tables[0].size_bytes / 3
    for kind in ("row_wise", "column_wise"):
        split = plan(model, 4, memory_per_rank_bytes=limit, constraints=Constraints(kinds=("table_wise", kind))).partition
        assert split.tables[0].kind == kind
    with pytest.raises(InputError, match="stay whole must fit a socket's memory"):
        plan(model, 4, memory_per_rank_bytes=limit, constraints=Constraints(split_above_bytes=1 << 40))


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        (Constraints(pin={9: 0}), "9"),
        (Constraints(pin={0: 7}), "7"),
        (Constraints(pin={0: 1}, forbid={0: (1,)}), "must not be pinned to a rank that is forbidden"),
        (Constraints(pin={0: 1, 1: 0}, together=((0, 1),)), "pinned to one rank"),
        (Constraints(forbid={0: (0, 1)}), "must be left a rank"),
    ],
)
def test_demands_that_cannot_be_met_are_named(constraints: Constraints, words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(model_of([10, 10, 10]), 2, constraints=constraints)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pin", "x"], "a pin is TABLE=RANK, got 'x'"),
        (["--pin", "0=0", "--pin", "0=1"], "pinned to one rank, got 0, 1"),
        (["--forbid", "0"], "forbidden ranks are TABLE=RANK"),
        (["--together", "a,b"], "tables that lie together are"),
        (["--kinds", "diagonal"], "kinds must be of"),
    ],
)
def test_options_that_cannot_be_read_are_refused(options: list[str], words: str) -> None:
    result = RUNNER.invoke(app, ["plan", "tiny", "--sockets", "2", *options])
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_pin_is_kept_by_the_command() -> None:
    result = RUNNER.invoke(app, ["plan", "tiny", "--sockets", "2", "--pin", "0=1", "--json"])
    assert result.exit_code == 0
    assert '"ranks": [\n          1\n        ]' in result.stdout or '"ranks":[1]' in result.stdout.replace(" ", "").replace("\n", "")


@pytest.mark.parametrize("alpha", [0.6, 1.05, 1.5])
def test_distinct_rows_under_zipf_are_those_of_samples(alpha: float) -> None:
    rows, lookups = 20_000, 5_000
    share = np.arange(1, rows + 1) ** -alpha
    drawn = np.random.default_rng(0).choice(rows, size=(40, lookups), p=share / share.sum())
    seen = np.mean([len(np.unique(one)) for one in drawn])
    assert distinct_zipf(rows, lookups, alpha) == pytest.approx(seen, rel=0.02)
