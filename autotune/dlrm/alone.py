"""Embedding tables one by one, to be timed alone: what a step does to all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from autotune.ops.embedding_bag import EmbeddingBags, EmbeddingForward, EmbeddingUpdate, Lookups, table_by_table


class TableAlone(NamedTuple):
    """One table, or one part of a table, with its two passes."""

    table: int
    """Its number in the model."""
    slot: int
    """Its place among the tables that one call updates."""
    rows: int
    forward: EmbeddingForward
    update: EmbeddingUpdate
    indices: torch.Tensor
    """Of one batch."""


def tables_alone(bags: EmbeddingBags, numbers: Sequence[int], batches: Sequence[Lookups], samples: int) -> list[TableAlone]:
    """Every table of `bags`, whose numbers in the model are `numbers`, on the same live weights."""
    found = zip(numbers, bags.rows, table_by_table(bags, batches, samples), strict=True)
    return [TableAlone(table, slot, rows, *of_table) for slot, (table, rows, of_table) in enumerate(found)]
