"""What a shard costs the rank that holds it, in one iteration on the global minibatch: time and memory.

Seconds come from the features, fitted weights and network fits with which `perf.estimate` predicts a step. Passes over tables add up over
the shards that they walk, so a shard takes what it adds to passes that run anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from autotune.config.model import FLOAT_BYTES, Model
from autotune.dlrm.schedule import table_loads, table_options
from autotune.dlrm.sharding import equal_tables, part_memory_bytes, reduced_densely
from autotune.ops.all_reduce import AllReduce
from autotune.ops.embedding_bag import FORWARD, UPDATE, EmbeddingForward, EmbeddingUpdate
from autotune.ops.optimizer import DenseOptimizer
from autotune.ops.sharded import ReplicaGradient
from autotune.ops.shards import Part
from autotune.perf.collectives import Collectives
from autotune.perf.predictor import Predictor


@dataclass(frozen=True)
class Shard:
    """What is placed as one: a whole table, rows or columns of it, or whole tables that stay together."""

    table: int
    """The first one, of tables that stay together."""
    rows: tuple[int, int]
    """[begin, end)."""
    time_s: float
    """Seconds per iteration on the rank that holds it."""
    memory_bytes: int
    columns: tuple[int, int] | None = None
    """[begin, end); None: all."""
    beside: tuple[int, ...] = ()
    """Further whole tables on the same rank; time and memory are of all."""
    ranks: frozenset[int] | None = None
    """Ranks where it may lie; None: any."""

    def may_use(self, rank: int) -> bool:
        return self.ranks is None or rank in self.ranks


@dataclass
class ShardCosts:
    """Prices of shards on one kind of machine.

    Args:
        model: with the global minibatch; its data tell how look-ups spread.
        ranks: among which samples are shared.
        predictor: of a rank's share of the machine, and of its network.
        threads: of a rank.
    """

    model: Model
    ranks: int
    predictor: Predictor
    threads: int
    _known_s: dict[tuple[int, int, int], float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._collectives = Collectives(self.predictor.profile.network, self.ranks)
        self._options, self._equal = table_options(self.model), equal_tables(self.model)

    def shard(self, t: int, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> Shard:
        """A part of table `t`.

        Zipf data scatter their hot rows over a table (`data.distributions.Scatter`), so that every row-wise part expects its share of
        look-ups and of distinct rows alike; which part meets the hottest row is not known here. A row-wise part exchanges whole pooled
        rows; a column-wise one has every look-up, at its narrower row, and exchanges its own columns.
        """
        table = self.model.tables[t]
        part = Part(t, rows, columns or (0, table.dim))
        key = (self._equal[t], rows[1] - rows[0], part.width)
        if key not in self._known_s:
            loads = table_loads(self.model, (part,), self.model.minibatch)
            passes = (EmbeddingForward(FORWARD, loads, **self._options), EmbeddingUpdate(UPDATE, loads, **self._options))
            self._known_s[key] = self._added_s(*passes) + self.exchange_s(part.width)
        return Shard(t, rows, self._known_s[key], part_memory_bytes(self.model, part), columns)

    def exchange_s(self, width: int) -> float:
        """Seconds of the network for `width` pooled columns: those of all samples leave, and their gradients come, less the rank's own."""
        return 2 * self._collectives.added_s("all_to_all", FLOAT_BYTES * self.model.minibatch * width * (1.0 - 1.0 / self.ranks))

    def replicated_s(self, t: int) -> float:
        """Seconds on every rank for a table of which each has a copy: its samples' look-ups, and the gradient by the rule of
        `dlrm.sharding.reduced_densely`."""
        table, samples = self.model.tables[t], self.model.minibatch
        part = Part(t, (0, table.rows), (0, table.dim))
        own = table_loads(self.model, (part,), -(-samples // self.ranks))
        forward = EmbeddingForward(FORWARD, own, **self._options)
        if reduced_densely(self.model, t):
            reduction = AllReduce("", 0, (("", (table.rows, table.dim)),), self.ranks).work()
            gradient = ReplicaGradient(UPDATE, own, **self._options)
            step = DenseOptimizer("", (), 0, copied=table.rows * table.dim)
            return self._added_s(forward, gradient, step) + self._collectives.added_s("all_reduce", reduction.message_bytes)
        every = EmbeddingUpdate(UPDATE, table_loads(self.model, (part,), samples), **self._options)
        sent_bytes = FLOAT_BYTES * samples * table.dim * (1.0 - 1.0 / self.ranks)
        return self._added_s(forward, every) + self._collectives.added_s("all_to_all", sent_bytes)

    def _added_s(self, *operators: EmbeddingForward | EmbeddingUpdate | DenseOptimizer) -> float:
        return sum(self.predictor.added_s(operator, self.threads, self.model.dtype) for operator in operators)
