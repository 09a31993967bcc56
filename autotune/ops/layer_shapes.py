"""Shapes of a layer's passes, and how blocks fill them. No torch here: what only explains needs them too."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

Direction = Literal["forward", "backward_data", "backward_weights"]


def shape_of(which: Direction, samples: int, inputs: int, outputs: int) -> tuple[int, int, int]:
    """Rows, columns and reduction of a pass's output: forward N x K over C, backward-data N x C over K, backward-weights K x C over N."""
    return {
        "forward": (samples, outputs, inputs),
        "backward_data": (samples, inputs, outputs),
        "backward_weights": (outputs, inputs, samples),
    }[which]


def padded(columns: int, width: int) -> int:
    """Columns that panels, or vectors, of `width` cover."""
    return -(-columns // width) * width


def busiest(size: int, block: int, workers: int) -> int:
    """Rows, or columns, of the worker that has most of them: whole blocks are dealt out in order, and the last one may be a part."""
    blocks = -(-size // block)
    ends = [min(size, blocks * worker // workers * block) for worker in range(workers + 1)]
    return max(end - begin for begin, end in pairwise(ends))


def vector_groups(columns: int, panel: int, lanes: int) -> dict[int, int]:
    """Vectors of output columns by how many a microtile holds at once, as the kernel parts panels: by four or three where there are 32
    registers (16 lanes), else by two, and what is left alone. Nothing is computed beyond the last vector.

    Args:
        columns: in panels of `panel` of them.
    """
    widths = (4, 3, 2, 1) if lanes == 16 else (2, 1)
    found = dict.fromkeys(widths, 0)
    for valid, times in ((min(panel, columns), columns // panel), (columns % panel, 1)):
        left = -(-valid // lanes)
        while left > 0 and times:
            width = next(width for width in widths if left % width == 0)
            found[width] += width * times
            left -= width
    return found
