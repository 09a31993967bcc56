"""What a part of a table costs the rank that holds it, in one iteration on the global minibatch: time and memory.

Forward and update walk the look-ups as `perf.roofline.limits` counts them: distinct rows once at the bandwidth of that row width and part
size, rows met before at that of the distinct rows, which a cache may hold; the update reads and writes. Exchange: pooled columns of all
samples leave, and their gradients come, less the rank's own.

A row-wise part has its share of the look-ups and exchanges whole pooled rows; a column-wise part has every look-up, at its narrower row,
and exchanges its own columns only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from autotune.config.model import FLOAT_BYTES, Model, Table
from autotune.config.profile import Ceilings
from autotune.data.popularity import distinct, distinct_zipf
from autotune.perf.roofline import row_ceiling
from autotune.plan.reuse import Reuse

# Where there is no profile: the ratio of row bandwidth to network bandwidth is what matters, and it is assumed. A row costs one cache line
# beside its own: rows of one line reach half the bandwidth of long ones. Rows of a working set that a last-level cache holds come faster.
_ROW_BYTES_PER_S = 2e10
_ROW_START_BYTES = 64
_CACHE_BYTES = 32 << 20
_CACHE_GAIN = 3.0
_NETWORK_BYTES_PER_S = 5e9

@dataclass(frozen=True)
class Item:
    """What is placed as one: a whole table, a row- or column-wise part of it, or whole tables that stay together."""

    table: int
    """The first one, of tables that stay together."""
    rows: tuple[int, int]
    """[begin, end)."""
    time_s: float
    """Per iteration on the rank that holds it."""
    memory_bytes: int
    columns: tuple[int, int] | None = None
    """[begin, end); None: all."""
    beside: tuple[int, ...] = ()
    """Further whole tables on the same rank; time and memory are of all."""
    ranks: frozenset[int] | None = None
    """Where it may lie; None: anywhere."""

    def may_use(self, rank: int) -> bool:
        return self.ranks is None or rank in self.ranks


@dataclass(frozen=True)
class Costs:
    """Rates of one kind of machine.

    Args:
        model: with the global minibatch; its data tell how look-ups spread.
        ranks: among which samples are shared.
        ceilings: of one socket; None assumes rates, so that times compare with each other only.
        threads: of a rank.
        network_bytes_per_s: what one rank sends per second; None assumes a rate.
        state_bytes_per_row: what an optimizer keeps for a whole row, in memory only.
        reuse: of every table, where only a file knows; None takes such data as uniform.
    """

    model: Model
    ranks: int
    ceilings: Ceilings | None = None
    threads: int = 1
    network_bytes_per_s: float | None = None
    state_bytes_per_row: int = 0
    reuse: tuple[Reuse, ...] | None = None
    _rates: dict[tuple[str, int, float], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def item(self, t: int, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> Item:
        """A part of table `t`.

        Zipf data scatter their hot rows over a table (`dlrm.distributions.Scatter`), so that every row-wise part expects its share of
        look-ups and of distinct rows alike; which part meets the hottest row is not known here.
        """
        table, size = self.model.tables[t], rows[1] - rows[0]
        dim = table.dim if columns is None else columns[1] - columns[0]
        share = size / table.rows
        lookups = self.model.minibatch * table.pooling
        touched, unique = lookups * share, self.distinct(t, lookups) * share
        rows_s = sum(self._rows_s(access, dim, size, touched, unique) for access in ("gather", "scatter"))
        exchange_s = 2 * self.model.minibatch * dim * FLOAT_BYTES * self._away() / self._network()
        return Item(t, rows, rows_s + exchange_s, self.memory_bytes(table, size, dim), columns)

    def memory_bytes(self, table: Table, rows: int, dim: int) -> int:
        """Weights and optimizer state. State is split with the columns, but every part keeps a float of it at least: one value a row."""
        state = min(self.state_bytes_per_row, max(FLOAT_BYTES, -(-self.state_bytes_per_row * dim // table.dim)))
        return rows * (dim * FLOAT_BYTES + state)

    def replicated_s(self, t: int) -> float:
        """On every rank: its samples' look-ups, and the cheaper gradient: dense rows reduced, or all samples' pooled gradients gathered."""
        table, samples = self.model.tables[t], self.model.minibatch
        dense = 2 * table.rows <= samples
        moved_rows = 2 * table.rows if dense else samples
        lookups = samples * table.pooling
        own = lookups / self.ranks
        own_unique = self.distinct(t, own)
        time_s = self._rows_s("gather", table.dim, table.rows, own, own_unique)
        if dense:
            time_s += self._rows_s("scatter", table.dim, table.rows, own, own_unique)
            time_s += self._rows_s("scatter", table.dim, table.rows, table.rows, table.rows)
        else:
            time_s += self._rows_s("scatter", table.dim, table.rows, lookups, self.distinct(t, lookups))
        return time_s + moved_rows * table.dim * FLOAT_BYTES * self._away() / self._network()

    def distinct(self, t: int, lookups: float) -> float:
        """Expected distinct rows of a whole table."""
        table, data = self.model.tables[t], self.model.data
        if self.reuse is not None:
            return min(self.reuse[t].distinct(lookups), float(table.rows))
        if data.distribution == "zipf" and data.alpha is not None:
            return distinct_zipf(table.rows, lookups, data.alpha)
        return distinct(table.rows, lookups)

    def _rows_s(self, access: Literal["gather", "scatter"], dim: int, rows: int, touched: float, unique: float) -> float:
        """Rows touched, `unique` of them for the first time; a scattered row is read and written."""
        if touched <= 0:
            return 0.0
        gathered = access == "gather"
        element = FLOAT_BYTES // 2 if gathered and self.model.dtype == "bf16" else FLOAT_BYTES  # the upper halves
        state = FLOAT_BYTES if not gathered and self.model.optimizer == "adagrad" else 0
        width, unique = dim * element + state, min(unique, touched)
        first = self._rate(access, width, rows * width)
        again = max(first, self._rate(access, width, unique * width))
        return (1 if gathered else 2) * width * (unique / first + (touched - unique) / again)

    def _rate(self, access: Literal["gather", "scatter"], width: int, working_set_bytes: float) -> float:
        key = (access, width, working_set_bytes)
        if key not in self._rates:
            self._rates[key] = self._fresh_rate(*key)
        return self._rates[key]

    def _fresh_rate(self, access: Literal["gather", "scatter"], width: int, working_set_bytes: float) -> float:
        if self.ceilings is None:
            cached = _CACHE_GAIN if working_set_bytes <= _CACHE_BYTES else 1.0
            return cached * _ROW_BYTES_PER_S * width / (width + _ROW_START_BYTES)
        # Rows narrower than any measured take the time of the narrowest: a column-wise part must not look cheaper than it is known to be.
        points = self.ceilings.gather if access == "gather" else self.ceilings.scatter
        known = max(width, min((point.row_bytes for point in points), default=width))
        return row_ceiling(self.ceilings, access, known, working_set_bytes, self.threads).bandwidth_bytes_per_s * width / known

    def _away(self) -> float:
        """Share of the samples that other ranks work on."""
        return 1.0 - 1.0 / self.ranks

    def _network(self) -> float:
        return self.network_bytes_per_s or _NETWORK_BYTES_PER_S
