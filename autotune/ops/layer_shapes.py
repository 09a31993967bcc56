"""Shapes of a layer's passes, and how blocks fill them. No torch here: what only explains needs them too."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from autotune.config.model import Dtype

Direction = Literal["forward", "backward_data", "backward_weights"]


@dataclass(frozen=True)
class Gemm:
    """One pass of a layer as a matrix product."""

    direction: Direction
    samples: int
    """N."""
    inputs: int
    """C."""
    outputs: int
    """K."""
    dtype: Dtype = "fp32"

    @property
    def dims(self) -> tuple[int, int, int]:
        """Rows, columns and reduction of the output: forward N x K over C, backward-data N x C over K, backward-weights K x C over N."""
        return {
            "forward": (self.samples, self.outputs, self.inputs),
            "backward_data": (self.samples, self.inputs, self.outputs),
            "backward_weights": (self.outputs, self.inputs, self.samples),
        }[self.direction]

    @property
    def element_bytes(self) -> int:
        """Bytes of an operand's element."""
        return 4 if self.dtype == "fp32" else 2


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
    vectors = dict.fromkeys(widths, 0)
    for valid, times in ((min(panel, columns), columns // panel), (columns % panel, 1)):
        left = -(-valid // lanes)
        while left > 0 and times:
            width = next(width for width in widths if left % width == 0)
            vectors[width] += width * times
            left -= width
    return vectors
