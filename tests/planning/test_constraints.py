"""What a user demands of a plan is kept, or refused by name."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from command_line import invoke
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.config.model import Model, Table
from autotune.config.partition import KINDS, Partition
from autotune.dlrm.sharding import check_partition
from autotune.errors import InputError, MachineError
from autotune.planning.constraints import Constraints
from tests.support.plans import plan


def model_of(rows: list[int], dim: int = 64) -> Model:
    return Model(
        schema=1, name="planned", source="test", description="test", minibatch=256, bottom_mlp=(3, dim), top_mlp=(1,),
        tables=tuple(Table(rows=count, dim=dim, pooling=4) for count in rows),
    )  # fmt: skip


@settings(deadline=None, max_examples=25)
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
    result = invoke("plan", "tiny", "--sockets", "2", *options)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_pin_is_kept_by_the_command() -> None:
    result = invoke("plan", "tiny", "--sockets", "2", "--pin", "0=1", "--json")
    assert result.exit_code == 0
    assert '"ranks": [\n          1\n        ]' in result.stdout or '"ranks":[1]' in result.stdout.replace(" ", "").replace("\n", "")


@st.composite
def demands(draw: st.DrawFn) -> tuple[Model, int, Constraints]:
    """Tables, ranks, and demands that contradict each other now and then."""
    ranks, count = draw(st.integers(1, 6)), draw(st.integers(2, 14))
    model = model_of(draw(st.lists(st.integers(1, 3000), min_size=count, max_size=count)), draw(st.sampled_from([16, 40, 64])))
    table, rank = st.integers(0, count - 1), st.integers(0, ranks - 1)
    constraints = Constraints(
        pin=draw(st.dictionaries(table, rank, max_size=3)),
        forbid={t: tuple(of) for t, of in draw(st.dictionaries(table, st.sets(rank, min_size=1, max_size=3), max_size=3)).items()},
        together=tuple(draw(st.lists(st.lists(table, min_size=2, max_size=4, unique=True).map(tuple), max_size=2))),
        kinds=tuple(draw(st.sets(st.sampled_from(KINDS), min_size=1))) if draw(st.booleans()) else KINDS,
        split_above_bytes=draw(st.sampled_from([0, 50_000, 500_000])),
    )
    return model, ranks, constraints


def held(model: Model, found: Partition) -> list[int]:
    """Bytes of every rank; every row and column of every table once, or on all."""
    check_partition(model, found)
    used = [0] * found.ranks
    for table, placement in zip(model.tables, found.tables, strict=True):
        of = range(found.ranks) if placement.kind == "replicated" else placement.ranks
        parts = [table.size_bytes] * len(of)
        if placement.bounds:
            unit = table.size_bytes // (table.rows if placement.kind == "row_wise" else table.dim)
            parts = [unit * (high - low) for low, high in pairwise(placement.bounds)]
            assert sum(parts) == table.size_bytes
        for rank, size in zip(of, parts, strict=True):
            used[rank] += size
    return used


@settings(deadline=None, max_examples=60)
@given(demands(), st.none() | st.floats(1.0, 4.0))
def test_demands_together_are_kept_or_refused(demanded: tuple[Model, int, Constraints], room: float | None) -> None:
    model, ranks, constraints = demanded
    limit = None if room is None else room * model.table_bytes / ranks
    try:
        plan_ = plan(model, ranks, memory_per_rank_bytes=limit, constraints=constraints)
    except InputError as error:
        message = str(error)
    except MachineError:
        assert limit is not None
        return
    else:
        message = ""
    if message:
        assert "--" in message, "an option is named"
        assert "; " in message, "a next step is given"
        return
    found = plan_.partition
    used = held(model, found)
    assert used == [rank.memory_bytes for rank in plan_.ranks]
    assert limit is None or max(used) <= limit
    assert len(found.tables) == model.num_tables
    for t, (table, placement) in enumerate(zip(model.tables, found.tables, strict=True)):
        assert placement.kind in constraints.kinds
        whole = t in constraints.pin or any(t in group for group in constraints.together)
        assert not whole or placement.kind == "table_wise"
        assert t not in constraints.pin or placement.ranks == (constraints.pin[t],)
        if t in constraints.forbid:
            assert placement.kind != "replicated"
            assert not set(placement.ranks) & set(constraints.forbid[t])
        if placement.kind in ("row_wise", "column_wise"):
            assert table.size_bytes > constraints.split_above_bytes
            assert len(placement.ranks) > 1
        if placement.kind == "column_wise":
            assert all(bound % 16 == 0 for bound in placement.bounds[:-1])
            assert all(high - low >= 16 for low, high in pairwise(placement.bounds))
    for group in constraints.together:
        assert len({found.tables[t].ranks for t in group}) == 1


def test_groups_that_share_a_table_are_one() -> None:
    found = plan(model_of([3000] * 6), 3, constraints=Constraints(together=((0, 1), (4, 5), (1, 4)), pin={5: 2})).partition
    assert [found.tables[t].ranks for t in (0, 1, 4, 5)] == [(2,)] * 4


def test_copies_that_cheapen_a_plan_give_way_to_demands() -> None:
    """A pinned table fills its rank, so that no copy fits beside it."""
    model = model_of([10_000, 20, 20, 20])
    limit = model.tables[0].size_bytes
    assert "replicated" in {one.kind for one in plan(model, 4, memory_per_rank_bytes=2 * limit).partition.tables}
    found = plan(model, 4, memory_per_rank_bytes=limit, constraints=Constraints(pin={0: 1}))
    assert found.partition.tables[0].ranks == (1,)
    assert {one.kind for one in found.partition.tables} == {"table_wise"}


KIB_64 = 256 * 256
"""A table of 256 rows and 64 columns."""


@pytest.mark.parametrize(
    ("constraints", "limit", "message"),
    [
        (Constraints(pin={9: 0}), None, "tables are numbered 0 to 2, got 9 (--pin 9=0); name one of these"),
        (Constraints(forbid={9: (0,)}), None, "tables are numbered 0 to 2, got 9 (--forbid 9=0); name one of these"),
        (Constraints(together=((0, 9),)), None, "tables are numbered 0 to 2, got 9 (--together 0,9); name one of these"),
        (Constraints(pin={0: 7}), None, "ranks are numbered 0 to 1, got 7 (--pin 0=7); name one of these, or raise --sockets"),
        (
            Constraints(forbid={0: (0, -1)}),
            None,
            "ranks are numbered 0 to 1, got -1 (--forbid 0=0,-1); name one of these, or raise --sockets",
        ),
        (
            Constraints(pin={0: 1}, forbid={0: (1,)}),
            None,
            "a table must not be pinned to a rank that is forbidden, got rank 1 for table 0 (--pin 0=1, --forbid 0=1); drop one of the two",
        ),
        (
            Constraints(pin={0: 1}, forbid={2: (1,)}, together=((0, 2),)),
            None,
            "a table must not be pinned to a rank that is forbidden, got rank 1 for tables 0,2 (--pin 0=1, --forbid 2=1, --together 0,2); "
            "drop one of the two",
        ),
        (
            Constraints(pin={0: 1, 1: 0}, together=((0, 1),)),
            None,
            "tables that lie together must be pinned to one rank, got rank 1 for table 0 and rank 0 for table 1 "
            "(--pin 0=1, --pin 1=0, --together 0,1); pin them to the same rank",
        ),
        (
            Constraints(forbid={0: (0,), 1: (1,)}, together=((0, 1),)),
            None,
            "a table must be left a rank, got all 2 forbidden for tables 0,1 (--forbid 0=0, --forbid 1=1, --together 0,1); allow one",
        ),
        (
            Constraints(pin={0: 1}, kinds=("row_wise",)),
            None,
            "tables that are pinned or lie together are placed whole, got kinds row_wise for table 0 (--pin 0=1); "
            "add table_wise to --kinds",
        ),
        (
            Constraints(kinds=("row_wise",), split_above_bytes=1 << 20),
            None,
            "every table must be able to take an allowed kind, got row_wise for table 0 of 256 rows and 64 columns on 2 of 2 ranks "
            "(--kinds, --split-above 1.00 MiB); add table_wise to --kinds",
        ),
        (
            Constraints(kinds=("replicated",), forbid={1: (0,)}),
            None,
            "every table must be able to take an allowed kind, got replicated for table 1 of 256 rows and 64 columns on 1 of 2 ranks "
            "(--kinds, --forbid 1=0); add table_wise to --kinds",
        ),
        (
            Constraints(kinds=("replicated",)),
            2 * KIB_64,
            "tables that may only be replicated must fit every socket's memory, got 192 KiB for 128 KiB (--kinds replicated); "
            "add table_wise to --kinds, or raise --memory-per-socket",
        ),
        (
            Constraints(pin={0: 1, 1: 1, 2: 1}),
            2 * KIB_64,
            "tables bound to one rank must fit its memory, got 192 KiB on rank 1 for 128 KiB (--pin 0=1, --pin 1=1, --pin 2=1); "
            "bind fewer to it, or raise --memory-per-socket",
        ),
        (
            Constraints(together=((0, 1, 2),)),
            2 * KIB_64,
            "tables that must stay whole must fit a socket's memory, got 192 KiB for 128 KiB (tables 0,1,2: --together 0,1,2); "
            "let them be split, or raise --memory-per-socket",
        ),
    ],
)
def test_a_refusal_gives_rule_value_place_and_step(constraints: Constraints, limit: float | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(model_of([256, 256, 256]), 2, memory_per_rank_bytes=limit, constraints=constraints)
    assert str(caught.value) == message


def test_a_table_that_only_the_kinds_keep_whole_names_them() -> None:
    with pytest.raises(InputError, match=r"got 64\.0 KiB for 48\.8 KiB \(table 0: --kinds table_wise\)"):
        plan(model_of([256]), 2, memory_per_rank_bytes=50_000, constraints=Constraints(kinds=("table_wise",)))


def test_demands_that_leave_too_little_order_say_so() -> None:
    """Three equal tables on two ranks of one and a half: one would have to be split."""
    with pytest.raises(MachineError, match=r"no order of the parts fits with table_wise only; take 3 sockets or more, .* or demand less"):
        plan(model_of([256] * 3), 2, memory_per_rank_bytes=1.5 * KIB_64, constraints=Constraints(kinds=("table_wise",)))


@pytest.mark.parametrize(
    ("demanded", "message"),
    [
        ({"kinds": ("diagonal",)}, "kinds must be of table_wise, row_wise, column_wise, replicated, got 'diagonal' (--kinds); correct it"),
        (
            {"kinds": ()},
            "kinds must name at least one of table_wise, row_wise, column_wise, replicated, got none (--kinds); "
            "name one or leave the option out",
        ),
        ({"split_above_bytes": -1}, "the split boundary must not be negative, got -1 (--split-above); write for example 1GB"),
        ({"together": ((3, 3),)}, "tables that lie together must be two or more, got 3,3 (--together 3,3); name another one"),
    ],
)  # fmt: skip
def test_demands_that_mean_nothing_are_refused_at_once(demanded: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Constraints(**demanded)
    assert str(caught.value) == message


def test_a_plan_tells_what_it_kept() -> None:
    assert Constraints().words == ()
    constraints = Constraints(pin={0: 1}, forbid={1: (0,)}, together=((2, 3),), kinds=("table_wise",), split_above_bytes=1 << 30)
    assert constraints.words == (
        "1 pinned", "1 with forbidden ranks", "1 group together", "table_wise only", "tables up to 1.00 GiB not split",
    )  # fmt: skip
    assert plan(model_of([10] * 4), 2, constraints=constraints).constraints == constraints
