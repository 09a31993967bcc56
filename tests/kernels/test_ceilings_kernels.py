"""The loops that measure ceilings do what they say, so that what is timed is what is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from autotune import _kernels as kernels

SIZES = (0, 16, 48, 1008, 16 * 257)


def ramp(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32) - count / 2


@pytest.mark.parametrize("threads", [1, 3])
def test_fma_tells_its_flops(target: str, threads: int) -> None:
    """12 chains, two flops a lane and round."""
    assert kernels.ceiling_fma(1000, threads) == 2.0 * 12 * kernels.lanes() * 1000 * threads


@pytest.mark.parametrize("kind", ["read", "copy", "triad", "copy_nt", "update"])
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_stream(target: str, kind: Any, count: int, threads: int, guarded: Any) -> None:
    a, b, c = guarded.of(ramp(count)), guarded.of(ramp(count) * 3), guarded.of(ramp(count) * 4)
    expected = {
        "read": ramp(count),
        "copy": ramp(count) * 3,
        "triad": ramp(count) * 5,
        "copy_nt": ramp(count) * 3,
        "update": ramp(count) / 2,
    }
    kernels.ceiling_stream(kind, a.view, b.view, c.view, threads)
    assert torch.equal(a.view, expected[kind])
    assert torch.equal(b.view, ramp(count) * 3)
    assert torch.equal(c.view, ramp(count) * 4)
    for array in (a, b, c):
        array.assert_untouched()


def test_stream_to_memory_that_is_not_aligned(target: str, guarded: Any) -> None:
    a = guarded.of(torch.zeros(64), shift=1)
    kernels.ceiling_stream("copy_nt", a.view, ramp(64), ramp(64), 2)
    assert torch.equal(a.view, ramp(64))
    a.assert_untouched()


def test_stream_refuses() -> None:
    array, other = torch.zeros(64), torch.zeros(64)
    with pytest.raises(ValueError, match="kind must be"):
        kernels.ceiling_stream("scale", array, other, other, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size 64"):
        kernels.ceiling_stream("copy", array, other[:48], other, 1)
    with pytest.raises(ValueError, match="overlap"):
        kernels.ceiling_stream("copy", array, array, other, 1)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.ceiling_stream("copy", array[::2], other[:32], other[:32], 1)
    with pytest.raises(TypeError):
        kernels.ceiling_stream("copy", array.double(), other, other, 1)
    with pytest.raises(ValueError, match="threads"):
        kernels.ceiling_stream("copy", array, other, other, 0)
    with pytest.raises(ValueError, match="iterations"):
        kernels.ceiling_fma(-1, 1)


@pytest.mark.parametrize("dim", [1, 13, 16, 64, 100])
@pytest.mark.parametrize("distance", [0, 1, 8, 1024])
def test_scatter_scales_the_listed_rows_and_gather_only_reads(target: str, dim: int, distance: int, guarded: Any) -> None:
    rows = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:37]
    values = torch.randn(50, dim, generator=torch.Generator().manual_seed(2))
    table = guarded.of(values)
    walk = kernels.RowWalk(table.view, rows)
    for threads in (1, 2, 5):
        walk.gather(distance, threads)
    assert torch.equal(table.view, values)
    expected = values.clone()
    for threads in (1, 2, 5):
        walk.scatter(distance, threads)
        expected[rows] *= 0.999
    assert torch.equal(table.view, expected)
    table.assert_untouched()


def test_a_walk_along_no_rows(target: str) -> None:
    walk = kernels.RowWalk(torch.zeros(3, 4), torch.zeros(0, dtype=torch.int64))
    walk.gather(8, 2)
    walk.scatter(8, 2)


@pytest.mark.parametrize("row", [-1, 10, 2**40, -(2**63)])
@pytest.mark.parametrize("position", [0, 2])
def test_a_row_outside_the_table_is_named(row: int, position: int) -> None:
    rows = torch.tensor([0, 9, 5])
    rows[position] = row
    with pytest.raises(IndexError, match=rf"\[0, 10\), got {row} \(position {position}\)"):
        kernels.RowWalk(torch.zeros(10, 4), rows)


def test_walk_refuses() -> None:
    table, rows = torch.zeros(10, 4), torch.arange(4)
    with pytest.raises(TypeError):
        kernels.RowWalk(table, rows.int())
    with pytest.raises(TypeError):
        kernels.RowWalk(table.double(), rows)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.RowWalk(table[:, :2], rows)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.RowWalk(table, rows[::2])
    walk = kernels.RowWalk(table, rows)
    for distance in (-1, 1025, 2**63 - 1):
        with pytest.raises(ValueError, match="prefetch_distance"):
            walk.gather(distance, 1)
        with pytest.raises(ValueError, match="prefetch_distance"):
            walk.scatter(distance, 1)
    with pytest.raises(ValueError, match="threads"):
        walk.gather(0, 0)


def test_fork_join_comes_back() -> None:
    kernels.fork_join(10, 3)
    kernels.fork_join(0, 1)
    with pytest.raises(ValueError, match="threads"):
        kernels.fork_join(1, 0)
