"""Shapes of a layer's passes, and how blocks fill them. No torch here: what only explains needs them too."""

from __future__ import annotations

from typing import Literal

Pass = Literal["forward", "backward_data", "backward_weights"]


def shape_of(which: Pass, samples: int, inputs: int, outputs: int) -> tuple[int, int, int]:
    """Rows, columns and reduction of a pass's output: forward N x K over C, backward-data N x C over K, backward-weights K x C over N."""
    return {
        "forward": (samples, outputs, inputs),
        "backward_data": (samples, inputs, outputs),
        "backward_weights": (outputs, inputs, samples),
    }[which]


def padded(columns: int, width: int) -> int:
    """Columns that panels of `width` cover."""
    return -(-columns // width) * width


def busiest_over_mean(blocks: int, workers: int) -> float:
    """Blocks of the busiest worker over the mean, dealt out as evenly as whole blocks can be."""
    return -(-blocks // workers) * workers / blocks
