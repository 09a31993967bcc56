"""Embedding tables one by one: what a step does to all of them at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from autotune.config.model import FLOAT_BYTES
from autotune.ops.base import Case
from autotune.ops.embedding_bag import FORWARD, UPDATE, EmbeddingForward, EmbeddingUpdate, TableLoad
from autotune.ops.embedding_case import EmbeddingCase
from autotune.ops.embedding_tables import EmbeddingBags, Lookups, Strategy
from autotune.ops.native import torch


@dataclass(frozen=True)
class TableAlone:
    """One table, or one part of a table, with its two passes on live weights, to be timed alone."""

    table: int
    """Its number in the model."""
    rows: int
    dim: int
    forward: EmbeddingForward
    update: EmbeddingUpdate
    cases: Callable[[], tuple[Case, Case]]
    """Makes the cases of the two passes."""
    idle: Callable[[], tuple[Case, Case]]
    """Makes cases over no look-up of one sample: what a call takes by itself."""
    indices: Any
    """int64 [L] of one batch."""
    owner_sizes: Callable[[Strategy, int], list[int]]
    """Strategy with owners and number of threads -> look-ups of that batch that each thread applies, counted by the kernel."""


def tables_alone(bags: EmbeddingBags, numbers: Sequence[int], batches: Sequence[Lookups], samples: int) -> Iterator[TableAlone]:
    """Every table of `bags`, whose numbers in the model are `numbers`, on the same live weights.

    Args:
        batches: table-major look-ups of all tables.
        samples: bags of each table in a batch.
    """
    for slot, (number, rows) in enumerate(zip(numbers, bags.rows, strict=True)):
        single, lookups = _single(bags, slot), []
        for batch in batches:
            offsets = batch.offsets[slot * samples : (slot + 1) * samples + 1]
            lookups.append(Lookups(batch.table(slot, samples), offsets - offsets[0]))
        yield _table_alone(single, number, slot, rows, lookups, samples)


def _table_alone(bags: EmbeddingBags, number: int, slot: int, rows: int, lookups: list[Lookups], samples: int) -> TableAlone:
    indices = lookups[0].indices
    unique, counts = torch.unique(indices, return_counts=True)
    row_bytes = bags.dim * (2 if bags.dtype == "bf16" else FLOAT_BYTES)
    load = TableLoad(rows, row_bytes, indices.numel(), samples, _Counted(counts), counted=float(unique.numel()))
    tables = {"dtype": bags.dtype, "storage": bags.storage, "optimizer": bags.optimizer}
    kept: dict[str, Any] = tables | {"index_bytes": indices.element_size()}

    nothing = Lookups(indices[:0], torch.zeros_like(lookups[0].offsets[:2]))
    forward, update = EmbeddingForward(FORWARD, (load,), **kept), EmbeddingUpdate(UPDATE, (load,), **kept)
    cases, idle = functools.partial(_both, bags, lookups, samples), functools.partial(_both, bags, [nothing], 1)
    sizes = functools.partial(bags.owner_sizes, lookups[0], samples, first_table=slot)
    return TableAlone(number, rows, bags.dim, forward, update, cases, idle, indices, sizes)


def _both(bags: EmbeddingBags, lookups: Sequence[Lookups], samples: int) -> tuple[Case, Case]:
    forward, update = (EmbeddingCase(bags, lookups, samples, 0, False, update=which) for which in (False, True))
    return forward, update


@dataclass(frozen=True)
class _Counted:
    """The popularity that one batch showed."""

    counts: Any

    @property
    def hottest(self) -> float:
        return float(self.counts.max()) / float(self.counts.sum()) if len(self.counts) else 0.0

    def distinct(self, lookups: float) -> float:
        return float(len(self.counts))

    def misses(self, lookups: float, capacity: float) -> float:
        return min(lookups, float(len(self.counts)))


def _single(bags: EmbeddingBags, t: int) -> EmbeddingBags:
    """Table t by itself: the same live arrays, not copies."""
    single = copy(bags)
    single._weights, single._upper, single._lower, single._state = (
        group[t : t + 1] for group in (bags._weights, bags._upper, bags._lower, bags._state)
    )
    single._streams = bags._streams[t : t + 1]
    single._make_handle()
    return single
