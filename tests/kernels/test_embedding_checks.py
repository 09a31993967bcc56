"""What the embedding kernels refuse: each with one clear error, before anything is written and without a silent copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autotune import _kernels as kernels

FORWARD: dict[str, Any] = {"prefetch_distance": 0, "prefetch_hint": 0, "bags_per_task": 4, "streaming_stores": False, "threads": 2}


@dataclass
class Small:
    """Two tables of 10 and 7 rows, 3 bags of 2 look-ups each."""

    tables: list[Tensor]
    indices: Tensor
    offsets: Tensor
    gradient: Tensor


@pytest.fixture
def small() -> Small:
    generator = torch.Generator().manual_seed(1)
    return Small(
        tables=[torch.randn(10, 16, generator=generator), torch.randn(7, 16, generator=generator)],
        indices=torch.tensor([9, 0, 3, 3, 1, 8, 6, 0, 2, 2, 5, 6]),
        offsets=torch.arange(0, 13, 2),
        gradient=torch.randn(3, 2, 16, generator=generator),
    )


# 2^32 is row 0 to whoever looks at the lower half only.
@pytest.mark.parametrize(
    ("dtype", "value"),
    [(dtype, value) for dtype in (torch.int32, torch.int64) for value in (-1, "limit", -(2**31), 2**31 - 1)]
    + [(torch.int64, value) for value in (2**32, -(2**63))],
)
@pytest.mark.parametrize(("position", "table", "limit"), [(0, 0, 10), (5, 0, 10), (6, 1, 7), (11, 1, 7)])
def test_index_outside_its_table_is_named_and_nothing_changes(
    small: Small, dtype: torch.dtype, position: int, table: int, limit: int, value: int | str, target: str
) -> None:
    bad = limit if value == "limit" else int(value)
    small.indices, small.offsets = small.indices.to(dtype), small.offsets.to(dtype)
    small.indices[position] = bad
    before = [table.clone() for table in small.tables]
    handle = kernels.EmbeddingTables(small.tables)
    out = torch.full((3, 2, 16), 7.0)
    message = rf"index must lie in \[0, {limit}\), got {bad} \(table {table}, position {position} of indices\)"
    for strategy in ("race_free_range", "race_free_modulo", "bucketed", "atomic", "unfused"):
        for threads in (1, 3):
            with pytest.raises(IndexError, match=message):
                handle.update(small.indices, small.offsets, small.gradient, 1.0, None, False, strategy, 8, threads)
    with pytest.raises(IndexError, match=message):
        handle.forward(small.indices, small.offsets, out, None, False, **FORWARD)
    with pytest.raises(IndexError, match=message):
        handle.validate(small.indices, small.offsets, 3, 2)
    assert all(map(torch.equal, small.tables, before))
    assert bool((out == 7.0).all())


@pytest.mark.parametrize(
    ("position", "value", "table"), [(0, -1, 0), (3, 1, 0), (4, 13, 1), (6, 13, 1), (6, 9, 1), (6, -(2**31), 1)], ids=lambda v: str(v)
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bad_offsets_are_named_and_nothing_changes(
    small: Small, position: int, value: int, table: int, dtype: torch.dtype, target: str
) -> None:
    small.indices, small.offsets = small.indices.to(dtype), small.offsets.to(dtype)
    small.offsets[position] = value
    before = [table.clone() for table in small.tables]
    handle = kernels.EmbeddingTables(small.tables)
    with pytest.raises(ValueError, match=rf"got {value} \(table {table}, position {position} of offsets\)"):
        handle.update(small.indices, small.offsets, small.gradient, 1.0, None, False, "bucketed", 8, 2)
    assert all(map(torch.equal, small.tables, before))


def strided(array: Tensor) -> Tensor:
    """The same values with a gap after each element."""
    return torch.stack([array, array], -1)[..., 0]


BAD_FORWARD: dict[str, Callable[[Small], dict[str, Any]]] = {
    "indices float": lambda c: {"indices": c.indices.float()},
    "indices int16": lambda c: {"indices": c.indices.short()},
    "indices strided": lambda c: {"indices": strided(c.indices)},
    "indices 2-d": lambda c: {"indices": c.indices.view(2, -1)},
    "offsets of another dtype": lambda c: {"offsets": c.offsets.int()},
    "offsets strided": lambda c: {"offsets": strided(c.offsets)},
    "offsets too few": lambda c: {"offsets": c.offsets[:-1]},
    "offsets too many": lambda c: {"offsets": torch.cat([c.offsets, c.offsets[-1:]])},
    "out double": lambda c: {"out": torch.zeros(3, 2, 16, dtype=torch.float64)},
    "out bf16": lambda c: {"out": torch.zeros(3, 2, 16, dtype=torch.bfloat16)},
    "out 2-d": lambda c: {"out": torch.zeros(3, 32)},
    "out too wide": lambda c: {"out": torch.zeros(3, 2, 17)},
    "out too few tables": lambda c: {"out": torch.zeros(3, 1, 16)},
    "out strided": lambda c: {"out": strided(torch.zeros(3, 2, 16))},
    "out transposed": lambda c: {"out": torch.zeros(2, 3, 16).transpose(0, 1)},
    "out expanded": lambda c: {"out": torch.zeros(1, 1, 16).expand(3, 2, 16)},
    "out over a table": lambda c: {"out": c.tables[0].flatten()[:96].view(3, 2, 16)},
    "weights double": lambda c: {"per_sample_weights": torch.ones(12, dtype=torch.float64)},
    "weights strided": lambda c: {"per_sample_weights": strided(torch.ones(12))},
    "weights too few": lambda c: {"per_sample_weights": torch.ones(11)},
    "weights with mean": lambda c: {"per_sample_weights": torch.ones(12), "mean": True},
    "distance negative": lambda c: {"prefetch_distance": -1},
    "distance too far": lambda c: {"prefetch_distance": 1025},
    "hint unknown": lambda c: {"prefetch_hint": 2},
    "no bags a task": lambda c: {"bags_per_task": 0},
    "no threads": lambda c: {"threads": 0},
}


@pytest.mark.parametrize("what", BAD_FORWARD)
def test_forward_refuses(small: Small, what: str) -> None:
    out = torch.full((3, 2, 16), 7.0)
    arguments: dict[str, Any] = {"indices": small.indices, "offsets": small.offsets, "out": out, "per_sample_weights": None, "mean": False}
    before = [table.clone() for table in small.tables]
    handle = kernels.EmbeddingTables(small.tables)
    arguments |= FORWARD | BAD_FORWARD[what](small)
    untouched = arguments["out"].clone()
    with pytest.raises((TypeError, ValueError)):
        handle.forward(**arguments)
    assert torch.equal(arguments["out"], untouched)
    assert all(map(torch.equal, small.tables, before))


BAD_UPDATE: dict[str, Callable[[Small], dict[str, Any]]] = {
    "gradient double": lambda c: {"gradient": c.gradient.double()},
    "gradient strided": lambda c: {"gradient": strided(c.gradient)},
    "gradient of another shape": lambda c: {"gradient": c.gradient[:2]},
    "gradient over a table": lambda c: {"gradient": c.tables[0].flatten()[:96].view(3, 2, 16)},
    "weights over a table": lambda c: {"per_sample_weights": c.tables[1].flatten()[:12]},
    "indices over a table": lambda c: {"indices": c.tables[1].flatten()[:24].view(torch.int64)},
    "strategy unknown": lambda c: {"strategy": "racy"},
    "distance negative": lambda c: {"prefetch_distance": -1},
    "threads negative": lambda c: {"threads": -2},
}


@pytest.mark.parametrize("what", BAD_UPDATE)
def test_update_refuses(small: Small, what: str) -> None:
    arguments = {"indices": small.indices, "offsets": small.offsets, "gradient": small.gradient, "learning_rate": 1.0}
    options = {"per_sample_weights": None, "mean": False, "strategy": "bucketed", "prefetch_distance": 8, "threads": 2}
    before = [table.clone() for table in small.tables]
    with pytest.raises((TypeError, ValueError)):
        kernels.EmbeddingTables(small.tables).update(**{**arguments, **options, **BAD_UPDATE[what](small)})
    assert all(map(torch.equal, small.tables, before))


@pytest.mark.parametrize(
    "tables",
    [
        pytest.param(lambda: [], id="none"),
        pytest.param(lambda: [torch.zeros(4, 3, dtype=torch.float64)], id="double"),
        pytest.param(lambda: [torch.zeros(3, 4).t()], id="transposed"),
        pytest.param(lambda: [torch.zeros(4, 6)[:, :3]], id="padded"),
        pytest.param(lambda: [torch.zeros(4, 3), torch.zeros(4, 2)], id="two widths"),
        pytest.param(lambda: [torch.zeros(0, 3)], id="no rows"),
        pytest.param(lambda: [torch.zeros(4, 0)], id="no columns"),
        pytest.param(lambda: [torch.zeros(12)], id="1-d"),
        pytest.param(lambda: [(base := torch.zeros(8, 3))[:5], base[4:]], id="overlapping"),
        pytest.param(lambda: [np.broadcast_to(np.float32(0), (4, 3))], id="read-only"),
    ],
)
def test_tables_refuse(tables: Callable[[], list[Any]]) -> None:
    with pytest.raises((TypeError, ValueError)):
        kernels.EmbeddingTables(tables())


def test_a_look_up_outside_every_bag_is_refused_rather_than_dropped(small: Small) -> None:
    for position, value in ((0, 1), (-1, int(small.offsets[-1]) - 1)):
        offsets = small.offsets.clone()
        offsets[position] = value
        with pytest.raises(ValueError, match="offsets must rise from 0 to the number of indices"):
            kernels.EmbeddingTables(small.tables).validate(small.indices, offsets, 3, 1)


@pytest.mark.parametrize("num_bags", [-1, 2, 4, -(2**62), 2**62])
def test_validate_refuses_a_number_of_bags_that_offsets_do_not_have(small: Small, num_bags: int) -> None:
    with pytest.raises(ValueError, match=r"bags|offsets"):
        kernels.EmbeddingTables(small.tables).validate(small.indices, small.offsets, num_bags, 1)


def test_forward_refuses_a_read_only_output(small: Small) -> None:
    out = np.zeros((3, 2, 16), np.float32)
    out.flags.writeable = False
    with pytest.raises(TypeError):
        kernels.EmbeddingTables(small.tables).forward(small.indices, small.offsets, out, None, False, **FORWARD)


@pytest.mark.parametrize(
    ("split", "adagrad", "strategy", "rule"),
    [
        (True, False, "atomic", "cannot be updated by strategy atomic"),
        (True, True, "atomic", "cannot be updated by strategy atomic"),
        (False, True, "atomic", "strategy must be race_free_range, race_free_modulo or bucketed, got 'atomic'"),
        (False, True, "unfused", "strategy must be race_free_range, race_free_modulo or bucketed, got 'unfused'"),
    ],
)
def test_a_strategy_that_the_tables_do_not_take_is_refused(small: Small, split: bool, adagrad: bool, strategy: str, rule: str) -> None:
    halves = [[table.short() for table in small.tables] for _ in range(2)]
    states = [torch.zeros(len(table)) for table in small.tables] if adagrad else None
    handle = kernels.EmbeddingTables.split(*halves, states) if split else kernels.EmbeddingTables(small.tables, states)
    before = [array.clone() for array in (*small.tables, *halves[0], *halves[1], *(states or ()))]
    with pytest.raises(ValueError, match=rule):
        handle.update(small.indices, small.offsets, small.gradient, 1.0, None, False, strategy, 8, 2)  # type: ignore[arg-type]
    assert all(map(torch.equal, (*small.tables, *halves[0], *halves[1], *(states or ())), before))


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda u, w, s: kernels.EmbeddingTables.split([], []), id="none"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables.split([u], [w]), id="fp32 lower"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables.split([u], [u.clone(), u.clone()]), id="another number of tables"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables.split([u], [u[:3].clone()]), id="fewer rows"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables.split([u], [u[:, :3].clone()]), id="another width"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables.split([u], [u]), id="one array for both"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables.split([u.t()], [u.t().clone()]), id="transposed"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables([w], []), id="no state"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables([w], [s[:3]]), id="short state"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables([w], [s.double()]), id="double state"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables([w], [w[:, 0]]), id="strided state"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables([w], [w.view(-1)[:4]]), id="state over the table"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables([w], [s], -1e-9), id="negative epsilon"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables([w], [s], 0.0), id="epsilon of zero"),
        pytest.param(lambda u, w, s: kernels.EmbeddingTables([w], [s], float("nan")), id="epsilon not a number"),
    ],
)
def test_halves_and_states_that_do_not_fit_are_refused(build: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        build(torch.zeros(4, 6, dtype=torch.int16), torch.zeros(4, 6), torch.zeros(4))


def test_an_output_over_a_half_or_a_state_is_refused() -> None:
    memory = torch.zeros(96)
    half, state = memory[:32].view(torch.int16).view(4, 16), memory[64:68]
    handle = kernels.EmbeddingTables.split([half], [torch.zeros(4, 16, dtype=torch.int16)], [state])
    for begin in (0, 60):
        with pytest.raises(ValueError, match="must not overlap"):
            handle.forward(torch.tensor([1]), torch.tensor([0, 1]), memory[begin : begin + 16].view(1, 1, 16), None, False, **FORWARD)
