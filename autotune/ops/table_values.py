"""What the values of a table, or of a part of it, are drawn from: the same in every partition."""

from __future__ import annotations

import math

from autotune.machine.activity import advanced
from autotune.ops.native import empty, kernels, torch, zeros

FILL_ROWS = 1 << 16
"""Rows drawn, split or rounded at a time: 32 MiB at 128 columns."""


def stream(seed: int, table: int, row: int = 0, column: int = 0) -> int:
    """What a table draws its initial values from, and its part from that row and column on its roundings: 64 bits."""
    return (seed * 1_000_003 + table + row * _ROW_STREAM + column * _COLUMN_STREAM) % 2**64


_ROW_STREAM, _COLUMN_STREAM = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
"""Odd numbers without pattern: sums of few multiples do not meet."""


def initial_weights(
    rows: int,
    dim: int,
    table: int,
    seed: int,
    *,
    row_range: tuple[int, int] | None = None,
    column_range: tuple[int, int] | None = None,
    huge_pages: bool = True,
    threads: int = 1,
) -> torch.Tensor:
    """A table, or one part of it, with the values that it has in the whole: uniform in +-1/sqrt(rows), as in the public DLRM.

    Args:
        rows, dim: of the whole table.
        table: its number in the model; each has a stream of its own.
        row_range, column_range: the part, [begin, end); None takes all.

    Returns:
        fp32 [rows of the part, columns of the part], on pages of its own.
    """
    advanced()
    (low, high), (left, right) = row_range or (0, rows), column_range or (0, dim)
    bound, drawn_from = math.sqrt(1.0 / rows), stream(seed, table)
    if right - left == dim:
        part = empty((high - low) * dim, huge_pages).view(high - low, dim)
        kernels.fill_uniform(part.view(-1), -bound, bound, drawn_from, threads, low * dim)
        return part
    part = zeros(high - low, right - left, huge_pages=huge_pages, threads=threads)
    drawn = torch.empty(min(FILL_ROWS, high - low), dim)
    for first in range(low, high, len(drawn)):
        some = drawn[: min(len(drawn), high - first)]
        kernels.fill_uniform(some.view(-1), -bound, bound, drawn_from, threads, first * dim)
        part[first - low : first - low + len(some)] = some[:, left:right]
    return part
