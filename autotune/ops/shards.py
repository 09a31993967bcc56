"""The tables, or parts of tables, that one rank holds, in memory, and the look-ups of a batch that are theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from autotune.config.model import Model
from autotune.ops.embedding_tables import EmbeddingBags, EmbeddingForwardKnobs, EmbeddingUpdateKnobs, Lookups
from autotune.ops.native import torch
from autotune.ops.table_values import initial_weights, stream


class Batch(Protocol):
    """What is read of a minibatch."""

    @property
    def dense(self) -> torch.Tensor: ...
    @property
    def indices(self) -> torch.Tensor: ...
    @property
    def offsets(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class Part:
    """Rows and columns of one table, [begin, end) each."""

    table: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    sums: bool = False
    """Whether its pooled rows are partial sums, to be added to those of other ranks: a row-wise part."""

    @property
    def width(self) -> int:
        return self.columns[1] - self.columns[0]


class Shard:
    """Parts in memory with the values that they have in the whole model.

    Args:
        parts: in the order of `dlrm.sharding.parts_of_ranks`; pooled, they lie side by side in that order.
        model: gives the shapes of the tables.
        seed: of the initial weights.
    """

    def __init__(self, parts: Sequence[Part], model: Model, seed: int, *, huge_pages: bool, threads: int) -> None:
        self.parts, self._model = tuple(parts), model
        self.groups: list[tuple[tuple[Part, ...], EmbeddingBags]] = []
        """Parts of one width, and the bags that hold them."""
        for width, members in groupby(self.parts, key=lambda part: part.width):
            group = tuple(members)

            def values(t: int, first: int, last: int, group: tuple[Part, ...] = group) -> torch.Tensor:
                part, whole = group[t], model.tables[group[t].table]
                rows = (part.rows[0] + first, part.rows[0] + last)
                return initial_weights(
                    whole.rows, whole.dim, part.table, seed,
                    row_range=rows, column_range=part.columns, huge_pages=huge_pages, threads=threads,
                )  # fmt: skip

            bags = EmbeddingBags(
                [part.rows[1] - part.rows[0] for part in group], width, values=values,
                huge_pages=huge_pages, threads=threads, dtype=model.dtype, storage=model.table_storage, optimizer=model.optimizer,
                streams=[stream(seed, part.table, part.rows[0], part.columns[0]) for part in group],
            )  # fmt: skip
            self.groups.append((group, bags))
        self.width = sum(part.width for part in self.parts)
        """Columns of all parts."""
        self._whole = (
            len(self.groups) == 1
            and [part.table for part in self.parts] == list(range(model.num_tables))
            and not any(part.sums for part in self.parts)
        )

    @property
    def tables(self) -> list[tuple[Part, EmbeddingBags, int]]:
        """Every part, with the bags that hold it and its number among them."""
        return [(part, bags, t) for group, bags in self.groups for t, part in enumerate(group)]

    def move(self, huge_pages: bool, threads: int) -> None:
        """Put the weights on pages of the other size."""
        for _, bags in self.groups:
            bags.move(huge_pages, threads)

    def select(self, batch: Batch, samples: tuple[int, int] | None = None) -> list[Lookups]:
        """The look-ups of these parts by group, for the samples [begin, end) of the batch, or all of them.

        Raises:
            IndexError: a look-up of a row-wise table lies outside the whole table.
        """
        if self._whole and samples is None:
            return [Lookups(batch.indices, batch.offsets)]
        return [_select(batch, self._model, group, samples) for group, _ in self.groups]

    def forward(self, lookups: Sequence[Lookups], out: torch.Tensor, knobs: EmbeddingForwardKnobs, threads: int) -> None:
        """Pool into out, fp32 [samples, width]. Raises as `EmbeddingBags.forward` does."""
        for (_, bags), group_lookups, pooled in zip(self.groups, lookups, self._columns(out), strict=True):
            bags.forward(group_lookups, pooled, knobs, threads)

    def update(
        self, lookups: Sequence[Lookups], gradient: torch.Tensor, learning_rate: float, knobs: EmbeddingUpdateKnobs, threads: int
    ) -> None:
        """One step from the gradient of what `forward` gave, fp32 [samples, width]. Raises as `EmbeddingBags.update` does."""
        for (_, bags), group_lookups, pooled in zip(self.groups, lookups, self._columns(gradient), strict=True):
            bags.update(group_lookups, pooled, learning_rate, knobs, threads)

    def _columns(self, matrix: torch.Tensor) -> Iterator[torch.Tensor]:
        """The vectors of each group in [samples, width], [samples, parts of the group, their width], without a copy."""
        column = 0
        for group, bags in self.groups:
            width = len(group) * bags.dim
            yield matrix[:, column : column + width].view(-1, len(group), bags.dim)
            column += width


def _select(batch: Batch, model: Model, parts: Sequence[Part], samples: tuple[int, int] | None) -> Lookups:
    total = batch.dense.shape[0]
    low, high = samples or (0, total)
    indices, offsets, filled = [], [], 0
    for part in parts:
        bounds = batch.offsets[part.table * total + low : part.table * total + high + 1]
        first, last = int(bounds[0]), int(bounds[-1])
        chosen, begins = batch.indices[first:last], bounds[:-1] - first
        if part.sums:
            chosen, begins = _own_rows(chosen, begins, part, model.tables[part.table].rows)
        indices.append(chosen)
        offsets.append(begins + filled)
        filled += chosen.numel()
    end = batch.offsets.new_tensor([filled])
    return Lookups(torch.cat(indices), torch.cat([*offsets, end]))


def _own_rows(indices: torch.Tensor, begins: torch.Tensor, part: Part, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Look-ups of a row-wise part, counted from its first row; bags keep their order and may become empty."""
    outside = torch.nonzero((indices < 0) | (indices >= rows))
    if len(outside):
        bad = int(outside[0])
        raise IndexError(f"index {int(indices[bad])} of table {part.table} (look-up {bad}) must be 0 to {rows - 1}")
    low, high = part.rows
    own = (indices >= low) & (indices < high)
    before = torch.cat([begins.new_zeros(1), own.cumsum(0).to(begins.dtype)])
    return indices[own] - low, before[begins.long()]
