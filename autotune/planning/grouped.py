"""Partitions that are not searched: a plan for very many sockets by groups of them, and the column split of published runs."""

from __future__ import annotations

import math

from autotune.config.model import Model
from autotune.config.partition import Partition, Placement
from autotune.planning.constraints import SPLIT_COLUMNS

MOST_RANKS = 512
"""Up to here every rank is planned for. The planner's time grows with ranks x parts: 4 s for 1000 ranks and 1000 tables."""


def group_size(ranks: int) -> int:
    """Sockets planned for as one: the fewest that leave at most 512 groups."""
    return max(1, math.ceil(ranks / MOST_RANKS))


def spread(model: Model, grouped: Partition, ranks: int) -> Partition:
    """From a plan for groups of sockets to one for all: what a group holds goes to its members in turn, split by columns while there are
    members without a part.

    Args:
        grouped: With a rank for every group of sockets, no more groups than sockets.
        ranks: Of the result.
    """
    members = [range(ranks * group // grouped.ranks, ranks * (group + 1) // grouped.ranks) for group in range(grouped.ranks)]
    held = [0] * grouped.ranks
    for placement in grouped.tables:
        for rank in placement.ranks:
            held[rank] += 1
    turn = [0] * grouped.ranks
    placed = []
    for placement, table in zip(grouped.tables, model.tables, strict=True):
        if placement.kind == "replicated":
            placed.append(placement)
            continue
        bounds = placement.bounds or (0, table.dim)
        ends, owners = [0], []
        for i, group in enumerate(placement.ranks):
            some = members[group]
            low, high = bounds[i], bounds[i + 1]
            whole = placement.kind == "row_wise" or model.optimizer == "adagrad"
            units = 1 if whole else max(1, (high - low) // SPLIT_COLUMNS)
            parts = max(1, min(units, len(some) // held[group], len(some)))
            for part in range(parts):
                owners.append(some[turn[group] % len(some)])
                turn[group] += 1
                ends.append(high if part == parts - 1 else low + SPLIT_COLUMNS * (units * (part + 1) // parts))
        kind = placement.kind if placement.kind == "row_wise" else "table_wise" if len(owners) == 1 else "column_wise"
        placed.append(Placement(kind=kind, ranks=tuple(owners), bounds=() if kind == "table_wise" else tuple(ends)))
    return Partition(ranks=ranks, tables=tuple(placed))


def columns_partition(model: Model, ranks: int, replicate_below: int) -> Partition:
    """Tables of fewer rows replicated, every other one split by columns over as many sockets as leave 16 columns each, in turn."""
    placed, turn = [], 0
    for table in model.tables:
        if table.rows < replicate_below:
            placed.append(Placement(kind="replicated"))
            continue
        units = max(1, table.dim // SPLIT_COLUMNS)
        parts = min(ranks, units)
        owners = tuple((turn + part) % ranks for part in range(parts))
        turn += parts
        if parts == 1:
            placed.append(Placement(kind="table_wise", ranks=owners))
            continue
        ends = [SPLIT_COLUMNS * (units * part // parts) for part in range(parts)]
        placed.append(Placement(kind="column_wise", ranks=owners, bounds=(*ends, table.dim)))
    return Partition(ranks=ranks, tables=tuple(placed))
