"""A partition without a profile: balanced by the row bytes that pass, whatever the machine."""

from __future__ import annotations

from autotune.config.model import FLOAT_BYTES, Model, Table
from autotune.config.partition import Partition, Placement


def even_partition(model: Model, ranks: int) -> Partition:
    """Whole tables, the heaviest first, each to the rank with the least so far; replicated where that moves fewer bytes.

    A replicated table reduces its gradient, 2*rows rows through every rank; owned by one rank, its pooled rows and their gradients
    travel, 2*N rows. Under half of that it is replicated. A table that weighs more than a rank's fair share is split by rows.
    """
    replicate = [2 * table.rows <= model.minibatch for table in model.tables]
    weights = [_row_bytes(table, model.minibatch) for table in model.tables]
    fair = sum(weight for weight, copied in zip(weights, replicate, strict=True) if not copied) / ranks
    placements: list[Placement] = [Placement(kind="replicated")] * model.num_tables
    loads = [0.0] * ranks
    for t in sorted(range(model.num_tables), key=lambda t: -weights[t]):
        rows = model.tables[t].rows
        if replicate[t]:
            continue
        if weights[t] > fair and rows >= ranks > 1:
            bounds = tuple(rows * r // ranks for r in range(ranks + 1))
            placements[t] = Placement(kind="row_wise", ranks=tuple(range(ranks)), bounds=bounds)
            loads = [load + weights[t] / ranks for load in loads]
            continue
        rank = min(range(ranks), key=loads.__getitem__)
        placements[t] = Placement(kind="table_wise", ranks=(rank,))
        loads[rank] += weights[t]
    return Partition(ranks=ranks, tables=tuple(placements))


def _row_bytes(table: Table, samples: int) -> float:
    """Rows read by the forward, read and written by the update, and pooled rows out and back."""
    lookups = samples * table.pooling
    return (3 * lookups + 2 * samples) * table.dim * FLOAT_BYTES
