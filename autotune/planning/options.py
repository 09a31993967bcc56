"""The ways to place a table, and the shards that each gives."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from autotune.config.partition import Kind
from autotune.planning.constraints import SPLIT_COLUMNS, AllowedSharding
from autotune.planning.cost import Shard, ShardCosts

SPLITS: tuple[Kind, ...] = ("row_wise", "column_wise")


class ShardingOption(NamedTuple):
    """How a table is placed: whole as one shard, or as `shards` equal parts."""

    kind: Kind
    shards: int


WHOLE = ShardingOption("table_wise", 1)


class Shards:
    """Tables as the shards of an option, each priced once."""

    def __init__(self, costs: ShardCosts) -> None:
        self.costs = costs
        self._known: dict[tuple[int, ShardingOption], list[Shard]] = {}

    def of(self, allowed: AllowedSharding, option: ShardingOption) -> list[Shard]:
        """Equal parts of a table; whole tables that stay together are one shard."""
        key = (allowed.tables[0], option)
        if key not in self._known:
            self._known[key] = [replace(shard, ranks=allowed.ranks) for shard in self._priced(allowed, *option)]
        return self._known[key]

    def whole(self, allowed: AllowedSharding) -> Shard:
        return self.of(allowed, WHOLE)[0]

    def _priced(self, allowed: AllowedSharding, kind: Kind, count: int) -> list[Shard]:
        (t, *beside), shard, tables = allowed.tables, self.costs.shard, self.costs.model.tables
        rows, dim = tables[t].rows, tables[t].dim
        if kind == "row_wise":
            return [shard(t, (rows * i // count, rows * (i + 1) // count)) for i in range(count)]
        if kind == "column_wise":
            units = dim // SPLIT_COLUMNS
            bounds = [SPLIT_COLUMNS * (units * i // count) for i in range(count)] + [dim]
            return [shard(t, (0, rows), (bounds[i], bounds[i + 1])) for i in range(count)]
        wholes = [shard(table, (0, tables[table].rows)) for table in allowed.tables]
        time_s, memory = sum(whole.time_s for whole in wholes), sum(whole.memory_bytes for whole in wholes)
        return [replace(wholes[0], time_s=time_s, memory_bytes=memory, beside=tuple(beside))]
