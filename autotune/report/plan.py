"""A plan as a table for a terminal."""

from __future__ import annotations

from itertools import groupby

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.planning.planner import Plan
from autotune.report.layout import Column, table
from autotune.units import format_bytes, format_time

_SHOWN_TABLES = 12


def plan(result: Plan, width: int = 80) -> RenderableType:
    """One row a rank."""
    kinds = [placement.kind for placement in result.partition.tables]
    counted = ", ".join(f"{kinds.count(kind)} {kind.replace('_', '-')}" for kind in dict.fromkeys(kinds))
    head = f"{result.model} on {result.partition.ranks} sockets, global minibatch {result.minibatch}: {counted}"
    limit = result.memory_per_rank_bytes
    slowest = f"slowest rank {format_time(result.slowest_s)} for tables and exchange, {result.imbalance:.2f}x the mean"
    kept_limit = f"; at most {format_bytes(limit)} a socket" if limit is not None else ""
    facts = f"{slowest}; iteration {format_time(result.iteration.time_s)}{kept_limit}"
    kept = [Text(f"kept: {', '.join(result.constraints.words)}")] if result.constraints.words else []
    columns = [
        Column("rank", [str(rank.rank) for rank in result.ranks]),
        Column("computing", [format_time(rank.time_s) for rank in result.ranks]),
        Column("in tables", [format_time(rank.tables_s) for rank in result.ranks]),
        Column("exchange", [format_time(rank.exchange_s) for rank in result.ranks]),
        Column("memory", [format_bytes(rank.memory_bytes) for rank in result.ranks]),
        Column("tables", [str(len(rank.tables)) for rank in result.ranks]),
        Column("which", [_ranges(rank.tables) for rank in result.ranks], justify="left"),
    ]
    return Group(Text(head), Text(facts), *kept, Text(""), table(columns, width), *(Text(f"note: {note}") for note in result.notes))


def _ranges(numbers: tuple[int, ...]) -> str:
    """``0-3 7``."""
    groups = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in groups]
    return " ".join(words if len(words) <= _SHOWN_TABLES else [*words[:_SHOWN_TABLES], "..."])
