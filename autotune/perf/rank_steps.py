"""One rank's step on several sockets: its shares of the tables, its passes, and what it sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from autotune.config.knobs import RunConfig
from autotune.config.model import FLOAT_BYTES, Model, Table
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.dlrm.parallel import OPTIMIZER, SELECT
from autotune.ops.all_to_all import sample_bounds
from autotune.ops.base import Work
from autotune.perf.steps import PassShape, TableShare, element_bytes, popularity, step_passes

PLACE = "all_to_all.place"
"""Copying what came to where the interaction reads it, and gradients back; part of the exchanges in a measured table."""


@dataclass(frozen=True)
class Layout:
    """What one rank owns."""

    owned: tuple[tuple[int, int, int, bool], ...]
    """Table, rows, columns, and whether its pooled rows are partial sums; sorted, so that ranks of equal load have equal layouts."""
    copied: tuple[int, ...]
    """Tables that every rank holds whole."""

    @property
    def columns(self) -> int:
        """Of its pooled rows, side by side."""
        return sum(columns for _, _, columns, _ in self.owned)


@dataclass(frozen=True)
class Crowd:
    """What a rank has to know of all ranks together, itself included."""

    ranks: int
    columns: int
    owners: int
    """Ranks that own something."""
    parts: int

    @classmethod
    def of(cls, everybody: Sequence[Layout]) -> Crowd:
        owners = [one for one in everybody if one.owned]
        return cls(len(everybody), sum(one.columns for one in owners), len(owners), sum(len(one.owned) for one in owners))


def layouts(model: Model, partition: Partition) -> list[Layout]:
    """Of every rank. Equal tables go by the number of the first of them, so that ranks of equal load have equal layouts."""
    same: dict[Table, int] = {}
    first = [same.setdefault(table.model_copy(update={"name": None}), t) for t, table in enumerate(model.tables)]
    owned: list[list[tuple[int, int, int, bool]]] = [[] for _ in range(partition.ranks)]
    copied = []
    for t, (placement, table) in enumerate(zip(partition.tables, model.tables, strict=True)):
        if placement.kind == "replicated":
            copied.append(t)
        elif placement.kind == "table_wise":
            owned[placement.ranks[0]].append((first[t], table.rows, table.dim, False))
        else:
            by_rows = placement.kind == "row_wise"
            for rank, (low, high) in zip(placement.ranks, pairwise(placement.bounds), strict=True):
                rows, columns = (high - low, table.dim) if by_rows else (table.rows, high - low)
                owned[rank].append((first[t], rows, columns, by_rows))
    return [Layout(tuple(sorted(parts)), tuple(copied)) for parts in owned]


@dataclass(frozen=True)
class RankShape:
    """The step of one rank, apart from its times."""

    passes: tuple[PassShape, ...]
    """In the order in which they run; `rank_timeline` knows where the exchanges stand among them."""
    sent_forward_bytes: int
    """By this rank to all others."""
    sent_backward_bytes: int
    reduced: tuple[tuple[str, int], ...]
    """Gradient buckets in the order in which they go out: the pass after which, and bytes."""
    memory_bytes: int
    tables: int
    messages: tuple[int, int]
    """Sent by this rank, forward and backward."""


def rank_shape(model: Model, layout: Layout, crowd: Crowd, config: RunConfig, samples: int) -> RankShape:
    """One rank's passes, after `ParallelDLRM.step`.

    Args:
        model: With the global minibatch.
        crowd: All ranks.
        samples: That this rank works on.
    """
    knobs = config.communication or CommunicationKnobs()
    width, ranks, of_all = FLOAT_BYTES, crowd.ranks, model.minibatch
    own = [_share(model, t, rows, columns, of_all) for t, rows, columns, _ in layout.owned]
    copies = [_share(model, t, model.tables[t].rows, model.tables[t].dim, samples) for t in layout.copied]
    dense = [t for t in layout.copied if 2 * model.tables[t].rows <= of_all]
    sparse = [t for t in layout.copied if t not in dense]
    updated = [
        *own,
        *(_share(model, t, model.tables[t].rows, model.tables[t].dim, of_all) for t in sparse),
        *(_share(model, t, model.tables[t].rows, model.tables[t].dim, samples) for t in dense),
    ]
    local = model.model_copy(update={"minibatch": samples})
    lookups = sum(one.lookups for one in updated)
    weights, per_row = FLOAT_BYTES * model.dense_parameters, 2 * 8 * round(lookups)
    arriving = crowd.columns
    # Weights step once all gradients are in, and are packed then: gradient and weight are read, weight and two packed copies written.
    passes = (
        PassShape(SELECT, "select", Work(0, per_row, per_row), (), {"lookups": lookups}),
        *step_passes(local, [*own, *copies], updated),
        PassShape(PLACE, "select", Work(0, 2 * width * samples * arriving, 2 * width * samples * arriving), (), {"lookups": lookups}),
        PassShape(OPTIMIZER, "optimizer", Work(weights // 2, 3 * weights, 3 * weights), (), {"weights": float(weights)}),
    )
    wire = 2 if knobs.wire_dtype == "bf16" else FLOAT_BYTES
    copied_columns = sum(model.tables[t].dim for t in sparse)
    by_part = knobs.all_to_all == "scatter_list"
    others = (crowd.parts - len(layout.owned)) if by_part else crowd.owners - bool(layout.owned)
    return RankShape(
        passes=passes,
        sent_forward_bytes=(of_all - samples) * layout.columns * wire,
        sent_backward_bytes=samples * (arriving - layout.columns + copied_columns * (ranks - 1)) * wire,
        reduced=_buckets(model, dense, knobs.bucket_bytes),
        memory_bytes=rank_memory_bytes(model, layout, samples),
        tables=len(layout.owned),
        messages=((len(layout.owned) if by_part else bool(layout.owned)) * (ranks - 1), others),
    )


def _share(model: Model, t: int, rows: int, columns: int, samples: int) -> TableShare:
    table = model.tables[t]
    part = rows / table.rows
    return TableShare(rows, columns * element_bytes(model), samples * table.pooling * part, samples, popularity(model, t), part)


def _buckets(model: Model, dense: Sequence[int], bucket_bytes: int) -> tuple[tuple[str, int], ...]:
    """Gradients in the order in which they become ready; a bucket goes out with the pass that fills it."""
    ready = [("interaction.backward", sum(model.tables[t].rows * model.tables[t].dim for t in dense) + 16)]
    for side, sizes in (("top", model.top_sizes), ("bottom", model.bottom_mlp)):
        for i in reversed(range(len(sizes) - 1)):
            ready.append((f"{side}_mlp.{i}.backward_weights", sizes[i] * sizes[i + 1] + sizes[i + 1]))
    buckets, filled = [], 0
    for number, (key, elements) in enumerate(ready):
        filled += FLOAT_BYTES * elements
        if filled >= bucket_bytes or number == len(ready) - 1:
            buckets.append((key, filled))
            filled = 0
    return tuple(buckets)


def rank_memory_bytes(model: Model, layout: Layout, samples: int) -> int:
    """Tables and copies with their optimizer state, dense layers, and the activations of its samples."""
    state = FLOAT_BYTES if model.optimizer == "adagrad" else 0
    parts = sum(rows * (columns * FLOAT_BYTES + state) for _, rows, columns, _ in layout.owned)
    copies = sum(model.tables[t].rows * (model.tables[t].dim * FLOAT_BYTES + state) for t in layout.copied)
    return parts + copies + model.dense_bytes + model.model_copy(update={"minibatch": samples}).activation_bytes


def samples_of(model: Model, ranks: int) -> list[int]:
    """Of every rank."""
    return [high - low for low, high in pairwise(sample_bounds(model.minibatch, ranks))]
