"""What a part of a table costs the rank that holds it, in one iteration on the global minibatch: time and memory.

Forward: every look-up of the part is one row at the gather bandwidth of that row width and part size. Update: every distinct row is read
and written once at the scatter bandwidth. Exchange: pooled columns of all samples leave, and their gradients come, less the rank's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autotune.config.model import FLOAT_BYTES, Model, Table
from autotune.config.profile import Ceilings
from autotune.perf.roofline import row_ceiling

# Where there is no profile: the ratio of row bandwidth to network bandwidth is what matters, and it is assumed.
_ROW_BYTES_PER_S = 2e10
_NETWORK_BYTES_PER_S = 5e9


@dataclass(frozen=True)
class Item:
    """A whole table or one row-wise part of it."""

    table: int
    rows: tuple[int, int]
    """[begin, end)."""
    time_s: float
    """Per iteration on the rank that holds it."""
    memory_bytes: int


def distinct(rows: float, lookups: float) -> float:
    """Expected distinct rows of uniform look-ups: R (1 - (1 - 1/R)^L)."""
    return rows if rows <= 1 else -rows * math.expm1(lookups * math.log1p(-1.0 / rows))


@dataclass(frozen=True)
class Costs:
    """Rates of one kind of machine.

    Args:
        model: with the global minibatch.
        ranks: among which samples are shared.
        ceilings: of one socket; None assumes rates, so that times compare with each other only.
        threads: of a rank.
        network_bytes_per_s: what one rank sends per second; None assumes a rate.
    """

    model: Model
    ranks: int
    ceilings: Ceilings | None = None
    threads: int = 1
    network_bytes_per_s: float | None = None

    def item(self, t: int, rows: tuple[int, int]) -> Item:
        """A part of table `t`; row-wise parts have their share of the look-ups, and whole pooled rows to exchange."""
        table, size = self.model.tables[t], rows[1] - rows[0]
        lookups = self.model.minibatch * table.pooling * size / table.rows
        away = 1.0 - 1.0 / self.ranks
        exchange_s = 2 * self.model.minibatch * table.dim * FLOAT_BYTES * away / self._network()
        memory = size * table.dim * FLOAT_BYTES
        return Item(t, rows, self._rows_s(table, size, lookups, 2 * distinct(size, lookups)) + exchange_s, memory)

    def replicated_s(self, t: int) -> float:
        """On every rank: its samples' look-ups, and the cheaper gradient: dense rows reduced, or all samples' pooled gradients gathered."""
        table, samples = self.model.tables[t], self.model.minibatch
        away = 1.0 - 1.0 / self.ranks
        dense = 2 * table.rows <= samples
        moved_rows = 2 * table.rows if dense else samples
        updated = 2.0 * table.rows if dense else 2 * distinct(table.rows, samples * table.pooling)
        lookups = samples * table.pooling / self.ranks
        return self._rows_s(table, table.rows, lookups, updated) + moved_rows * table.dim * FLOAT_BYTES * away / self._network()

    def _rows_s(self, table: Table, rows: int, gathered: float, scattered: float) -> float:
        """Rows gathered, and rows moved by the update: a row read and written counts two."""
        width = table.dim * FLOAT_BYTES
        gather = scatter = _ROW_BYTES_PER_S
        if self.ceilings is not None:
            gather = row_ceiling(self.ceilings, "gather", width, rows * width, self.threads).bandwidth_bytes_per_s
            scatter = row_ceiling(self.ceilings, "scatter", width, rows * width, self.threads).bandwidth_bytes_per_s
        return width * (gathered / gather + scattered / scatter)

    def _network(self) -> float:
        return self.network_bytes_per_s or _NETWORK_BYTES_PER_S
