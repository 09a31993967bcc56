"""Interactions by the names that a model may give: how wide the top MLP's input is behind each."""

from __future__ import annotations

from collections.abc import Callable

DOT_WITH_DIAGONAL = "dot_with_diagonal"
CONCATENATION = "concatenation"


def pairs(vectors: int, diagonal: bool) -> int:
    """Dot products in a lower triangle of F vectors: F(F-1)/2; with the product of each vector with itself F(F+1)/2."""
    return vectors * (vectors - 1 + 2 * diagonal) // 2


def dot_width(vectors: int, dim: int) -> int:
    """The first vector, then the dot product of every two."""
    return dim + pairs(vectors, diagonal=False)


def _with_diagonal_width(vectors: int, dim: int) -> int:
    return dim + pairs(vectors, diagonal=True)


def _concatenated_width(vectors: int, dim: int) -> int:
    return vectors * dim


INTERACTIONS: dict[str, Callable[[int, int], int]] = {
    "dot": dot_width,
    DOT_WITH_DIAGONAL: _with_diagonal_width,
    CONCATENATION: _concatenated_width,
}
"""Input size of the top MLP from F and E, by the interaction's name. Each name has a schedule (`dlrm.schedule.register`)."""
