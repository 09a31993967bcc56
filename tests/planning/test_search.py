"""Items go where they may, and near the optimum."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.planning.cost import Shard
from autotune.planning.search import assign


@st.composite
def restricted(draw: st.DrawFn) -> tuple[list[Shard], int]:
    ranks = draw(st.integers(1, 5))
    among = st.none() | st.frozensets(st.integers(0, ranks - 1), min_size=1)
    shards = draw(
        st.lists(
            st.builds(Shard, st.integers(0, 30), st.just((0, 1)), st.floats(0.0, 1.0), st.integers(1, 100), ranks=among),
            max_size=20,
            unique_by=lambda shard: shard.table,
        )
    )
    return shards, ranks


@settings(deadline=None)
@given(restricted(), st.integers(50, 600))
def test_every_item_lies_where_it_may_and_fits(instance: tuple[list[Shard], int], room: int) -> None:
    shards, ranks = instance
    assert assign(shards, [float("inf")] * ranks) is not None
    chosen = assign(shards, [float(room)] * ranks)
    if chosen is None:
        return
    assert all(shard.may_use(rank) for shard, rank in zip(shards, chosen, strict=True))
    for rank in range(ranks):
        assert sum(shard.memory_bytes for shard, at in zip(shards, chosen, strict=True) if at == rank) <= room


def test_parts_of_one_table_part() -> None:
    parts = [Shard(0, (i, i + 1), 1.0, 1) for i in range(3)]
    chosen = assign([*parts, Shard(1, (0, 1), 5.0, 1)], [10.0] * 3)
    assert chosen is not None
    assert sorted(chosen[:3]) == [0, 1, 2]
    assert assign(parts, [10.0] * 2) is None


def test_room_that_no_greedy_order_finds_is_found_for_few_items() -> None:
    """6+4, 5+5 and 4+3+3 fill three ranks; largest first to the emptiest or to the fastest does not."""
    shards = [Shard(t, (0, 1), 1.0, size) for t, size in enumerate((6, 5, 5, 4, 4, 3, 3))]
    chosen = assign(shards, [10.0] * 3)
    assert chosen is not None


def test_restricted_assignments_come_near_the_optimum() -> None:
    """Against mixed integer programming, half of the shards bound to some of the ranks."""
    optimize = pytest.importorskip("scipy.optimize", reason="scipy solves the integer programme")
    numbers = random.Random(2)
    for instance in range(60):
        count, ranks = numbers.randint(2, 20), numbers.randint(2, 4)
        shards = []
        for t in range(count):
            among = frozenset(numbers.sample(range(ranks), numbers.randint(1, ranks))) if numbers.random() < 0.5 else None
            shards.append(Shard(t, (0, 1), 10 ** numbers.uniform(-4, -3), 1, ranks=among))
        cost = np.zeros(count * ranks + 1)
        cost[-1] = 1.0
        upper = np.array([float(shard.may_use(rank)) for shard in shards for rank in range(ranks)] + [np.inf])
        once = np.zeros((count, len(cost)))
        time = np.zeros((ranks, len(cost)))
        for i in range(count):
            once[i, i * ranks : (i + 1) * ranks] = 1.0
        for r in range(ranks):
            time[r, r:-1:ranks] = [1e3 * shard.time_s for shard in shards]
            time[r, -1] = -1.0
        rules = [optimize.LinearConstraint(once, 1.0, 1.0), optimize.LinearConstraint(time, -np.inf, 0.0)]
        best = optimize.milp(
            cost, constraints=rules, integrality=np.array([1] * (count * ranks) + [0]), bounds=optimize.Bounds(0.0, upper),
            options={"mip_rel_gap": 0.01},
        )  # fmt: skip
        assert best.status == 0
        chosen = assign(shards, [float(count)] * ranks)
        assert chosen is not None
        loads = np.bincount(chosen, weights=[shard.time_s for shard in shards], minlength=ranks)
        assert loads.max() <= 1.03 * best.fun / 1e3, f"instance {instance}"
