"""How a table is divided, and what its parts cost."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from autotune.config.partition import Kind
from autotune.plan.constraints import SPLIT_COLUMNS, Freedom
from autotune.plan.cost import Costs, Item

SPLITS: tuple[Kind, ...] = ("row_wise", "column_wise")


class Division(NamedTuple):
    """How a table is placed: whole as one part."""

    kind: Kind
    parts: int


class Parts:
    """Tables as the items of a division, each priced once."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self._known: dict[tuple[int, Division], list[Item]] = {}

    def of(self, freedom: Freedom, division: Division) -> list[Item]:
        """Equal parts; whole tables that stay together are one item."""
        key = (freedom.tables[0], division)
        if key not in self._known:
            self._known[key] = [replace(item, ranks=freedom.ranks) for item in self._priced(freedom, *division)]
        return self._known[key]

    def _priced(self, freedom: Freedom, kind: Kind, count: int) -> list[Item]:
        (t, *beside), item = freedom.tables, self.costs.item
        rows, dim = self.costs.model.tables[t].rows, self.costs.model.tables[t].dim
        if kind == "row_wise":
            return [item(t, (rows * i // count, rows * (i + 1) // count)) for i in range(count)]
        if kind == "column_wise":
            units = dim // SPLIT_COLUMNS
            bounds = [SPLIT_COLUMNS * (units * i // count) for i in range(count)] + [dim]
            return [item(t, (0, rows), (bounds[i], bounds[i + 1])) for i in range(count)]
        first = item(t, (0, rows))
        others = [item(other, (0, self.costs.model.tables[other].rows)) for other in beside]
        time_s, memory = (first.time_s + sum(one.time_s for one in others), first.memory_bytes + sum(one.memory_bytes for one in others))
        return [replace(first, time_s=time_s, memory_bytes=memory, beside=tuple(beside))]

    def whole(self, freedom: Freedom) -> Item:
        return self.of(freedom, Division("table_wise", 1))[0]
