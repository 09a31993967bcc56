"""Embedding bags as operators: pooled look-ups of all tables of a rank, and their backward fused with the update.

The tables in memory are those of `embedding_tables`, a rank's parts of them those of `shards`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from autotune.config.knobs import Knobs, RunConfig
from autotune.config.model import FLOAT_BYTES, Dtype, Optimizer, TableStorage
from autotune.config.profile import Topology
from autotune.errors import InputError
from autotune.ops.base import Case, Family, Features, Operator, Rates, Residence, RowAccess, Work
from autotune.ops.embedding_case import EmbeddingCase
from autotune.ops.embedding_tables import (
    OWNED,
    EmbeddingForwardKnobs,
    EmbeddingUpdateKnobs,
    Strategy,
    strategies,
)
from autotune.ops.memory import Memory
from autotune.ops.native import torch
from autotune.ops.shards import Part, Shard

FORWARD = "embedding_bag.forward"
UPDATE = "embedding_bag.update"
EMBEDDING_FORWARD = Family("embedding forward", "#2a78d6")
EMBEDDING_UPDATE = Family("embedding update", "#7fb2ec")

_STATE_LINE_BYTES = 64
"""Traffic of one fp32 of Adagrad's state: it lies alone on its cache line."""
_SMALL_PAGES_REACH_BYTES = 8 << 20
"""What the second-level TLB of a current core reaches with 4 KiB pages: 1536 to 3072 entries."""
_WALK_CYCLES = 100.0


class Popularity(Protocol):
    """How likely look-ups are to meet each row; see `data.popularity`."""

    @property
    def hottest(self) -> float: ...
    def distinct(self, lookups: float) -> float: ...
    def misses(self, lookups: float, capacity: float) -> float: ...


@dataclass(frozen=True, eq=False)
class TableLoad:
    """What one rank walks of one table, or of its part of it, in one pass."""

    rows: int
    row_bytes: int
    """As the forward pass reads a row: half of fp32's where the table is of 16 bits."""
    lookups: float
    """Expected number of look-ups."""
    bags: int
    popularity: Popularity
    """Popularity of the rows of the whole table; a row-wise part expects its share of everything."""
    part: float = 1.0
    """Rows of the part over those of the table."""
    counted: float | None = None
    """Distinct rows, where a batch was counted."""

    @functools.cached_property
    def unique(self) -> float:
        """Distinct rows met."""
        if self.counted is not None:
            return self.counted
        return min(self.lookups, self.popularity.distinct(self.lookups / self.part) * self.part) if self.lookups else 0.0

    @property
    def table_bytes(self) -> int:
        return self.rows * self.row_bytes

    def misses(self, capacity_bytes: float) -> float:
        """Look-ups that a cache of this size has to fetch; it is empty at first."""
        if not self.lookups:
            return 0.0
        capacity = capacity_bytes / self.row_bytes / self.part
        return min(self.lookups, self.popularity.misses(self.lookups / self.part, capacity) * self.part)

    def split(self, threads: int) -> TableLoad:
        """The share of one thread that draws look-ups from the whole table."""
        return TableLoad(self.rows, self.row_bytes, self.lookups / threads, self.bags, self.popularity, self.part)


@dataclass(frozen=True)
class Source:
    """A shard with what is looked up in it and where its pooled rows, or their gradients, lie."""

    shard: str
    parts: tuple[Part, ...]
    lookups: str
    """Name in `Memory.lookups`."""
    buffer: str
    """fp32 [samples, columns]."""
    first: int = 0
    """First column of the shard in the buffer."""

    def matrix(self, memory: Memory) -> torch.Tensor:
        """The shard's columns of the buffer, fp32 [samples, width of the shard]."""
        width = memory.modules[f"shard.{self.shard}"].width
        return memory.buffers[self.buffer][:, self.first : self.first + width]


@dataclass(eq=False)
class _Embedding(Operator):
    """What forward and update share.

    Args:
        loads: one a table or part.
        sources: the shards that the pass walks.
        dtype, storage, optimizer: of the tables.
        index_bytes: of one index.
    """

    loads: tuple[TableLoad, ...]
    sources: tuple[Source, ...] = ()
    dtype: Dtype = "fp32"
    storage: TableStorage = "split"
    optimizer: Optimizer = "sgd"
    index_bytes: int = 8
    uniform: bool = False
    """Whether every row is as likely as any other."""

    interleaved: ClassVar[bool] = True
    gather: ClassVar[bool]

    @property
    def _element_bytes(self) -> int:
        return 2 if self.dtype == "bf16" else FLOAT_BYTES

    @property
    def _halves(self) -> int:
        """Arrays that hold a row: an update of split tables joins the lower halves to the upper ones."""
        return 2 if self.dtype == "bf16" and self.storage == "split" and not self.gather else 1

    @property
    def bags(self) -> int:
        """Bags of all tables."""
        return sum(load.bags for load in self.loads)

    @property
    def lookups(self) -> float:
        return sum(load.lookups for load in self.loads)

    @property
    def unique_bytes(self) -> float:
        """Bytes of the distinct rows."""
        return sum(load.unique * load.row_bytes for load in self.loads) * self._halves

    @property
    def pooled_bytes(self) -> float:
        """fp32 bytes of the pooled vectors."""
        return sum(load.bags * load.row_bytes for load in self.loads) * FLOAT_BYTES / self._element_bytes

    @property
    def indices_bytes(self) -> float:
        return sum(load.lookups + load.bags for load in self.loads) * self.index_bytes

    @property
    def dim(self) -> int:
        return max((load.row_bytes for load in self.loads), default=0) // self._element_bytes

    @property
    def _stated_rows(self) -> float:
        """Distinct rows with a state to update."""
        return 0.0 if self.gather or self.optimizer == "sgd" else sum(load.unique for load in self.loads)

    def work(self) -> Work:
        """Forward: L*E adds; U distinct rows and the indices are read, N*T pooled rows written. Update: L*E multiply-adds; U distinct rows,
        with their state, are read and written, the pooled gradients and the indices read. L rows pass through the caches."""
        gather, state = self.gather, FLOAT_BYTES * self._stated_rows
        beside = FLOAT_BYTES if not gather and self.optimizer == "adagrad" else 0
        rows = tuple(
            RowAccess(
                load.row_bytes * self._halves + beside,
                round(load.lookups),
                max(round(load.unique), min(1, round(load.lookups))),
                load.table_bytes * self._halves + beside * load.rows,
            )
            for load in self.loads
        )
        elements = sum(load.lookups * load.row_bytes for load in self.loads) / self._element_bytes
        return Work(
            flops=round(elements if gather else 2 * elements),
            bytes_read=round(self.unique_bytes + self.indices_bytes + (0 if gather else self.pooled_bytes + state)),
            bytes_written=round(self.pooled_bytes if gather else self.unique_bytes + state),
            access="gather" if gather else "scatter",
            rows=rows,
            parallel_regions=2,  # the indices are checked in a region of their own
        )

    def size(self) -> Mapping[str, float]:
        lookups, bags = self.lookups, self.bags
        return {
            "lookups": lookups,
            "bags": float(bags),
            "row_bytes": float(np.mean([load.row_bytes for load in self.loads])) * self._halves if self.loads else 0.0,
            "table_bytes": float(np.mean([load.table_bytes for load in self.loads])) * self._halves if self.loads else 0.0,
            "pooling": lookups / bags if bags else 0.0,
            "hottest": max((load.popularity.hottest for load in self.loads), default=0.0),
            "state": _STATE_LINE_BYTES * self._stated_rows,
        }

    def features(self, knobs: Knobs | None, residence: Residence, rates: Rates) -> Features:
        access: Literal["gather", "scatter"] = "gather" if self.gather else "scatter"
        threads, ways = rates.threads, (1 if self.gather else 2) * self._halves
        l2, l3 = rates.l2_bytes / 2, rates.l3_bytes / 2
        terms = dict.fromkeys(("rows_memory", "rows_shared", "rows_own", "walk"), 0.0)
        cached = 0.0
        for load in self.loads:
            memory, shared, own = self._row_sources(load, residence.rows_kept, rates)
            width, size = load.row_bytes, load.table_bytes
            # An owner of a hot row has more to do than its share.
            hottest = load.popularity.hottest
            uneven = 1.0 if self.gather else (hottest + (1 - hottest) / threads) * threads
            terms["rows_memory"] += ways * memory * width / rates.rows_per_s(access, width, max(size, 4 * l3)) * uneven
            terms["rows_shared"] += ways * shared * width / rates.rows_per_s(access, width, l3) * uneven
            terms["rows_own"] += ways * own * width / rates.rows_per_s(access, width, l2 if self.gather else l2 * threads) * uneven
            cached += ways * (shared + own) * width / rates.rows_per_s(access, width, l3)
            if not rates.huge_pages and size > _SMALL_PAGES_REACH_BYTES:
                terms["walk"] += (memory + shared) * _WALK_CYCLES * rates.cycle_s / threads
        vectors = sum(load.lookups * -(-load.row_bytes // (4 * rates.lanes)) for load in self.loads)
        terms["lookups"] = self.lookups / threads * rates.cycle_s
        terms["vectors"] = vectors / threads * rates.cycle_s
        terms["bags"] = self.bags / threads * rates.cycle_s
        terms["tables"] = len(self.loads) * 1e-7
        return terms | self._strategy_features(knobs, cached, vectors, rates)

    def _strategy_features(self, knobs: Knobs | None, cached_s: float, vectors: float, rates: Rates) -> Features:
        """What the strategy adds.

        Args:
            cached_s: time of the rows that caches hold.
            vectors: of all look-ups.
        """
        return {}

    def _row_sources(self, load: TableLoad, kept: float, rates: Rates) -> tuple[float, float, float]:
        """Rows that come from memory, from the last-level cache and from a core's own, by the hit rates of caches that begin empty.

        Args:
            kept: share of the rows of the last pass over them that the last level still holds.
        """
        threads = rates.threads
        # Forward, each thread draws its share of the look-ups from the whole table; in the update it has rows of its own.
        from_own = threads * load.split(threads).misses(rates.own_bytes / threads) if self.gather else load.misses(rates.own_bytes)
        from_shared = min(from_own, load.misses(rates.shared_bytes))
        # Rows met in the last step: those of this one are found among them as often as they are of the table, for the update always.
        again = min(1.0, load.unique / max(1.0, load.rows)) if self.gather else 1.0
        memory = max(0.0, from_shared - load.unique * kept * again)
        return memory, max(0.0, from_own - memory), max(0.0, load.lookups - from_own)

    def prepare(self, memory: Memory, knobs: Any, config: RunConfig) -> None:
        for source in self.sources:
            huge_pages, threads = config.huge_pages, config.threads
            make = functools.partial(Shard, source.parts, memory.model, memory.seed, huge_pages=huge_pages, threads=threads)
            memory.module(f"shard.{source.shard}", make).move(huge_pages, threads)

    def case(self, seed: int, warm: bool = False) -> Case:
        """The heaviest group of tables of one width, on the model's own weights and look-ups."""
        if self.live is None:
            raise InputError(f"{self.key} is timed on a model's tables; ask the model for its operators")
        groups = [
            (bags, [batch[source.lookups][number] for batch in self.live.batches])
            for source in self.sources
            for number, (_, bags) in enumerate(self.live.memory.modules[f"shard.{source.shard}"].groups)
        ]
        bags, batches = max(groups, key=lambda group: group[1][0].indices.numel() * group[0].dim)
        samples = (batches[0].offsets.numel() - 1) // len(bags.rows)
        return EmbeddingCase(bags, batches, samples, seed, warm, update=not self.gather)


@dataclass(eq=False)
class EmbeddingForward(_Embedding):
    """Pooled look-ups of all tables of a rank."""

    kind: ClassVar[str] = FORWARD
    family: ClassVar[Family] = EMBEDDING_FORWARD
    shortest_words: ClassVar[Mapping[str, str]] = {"embedding_bag": "emb", "forward": "fwd"}
    gather: ClassVar[bool] = True
    knobs_type: ClassVar[type[Knobs]] = EmbeddingForwardKnobs
    prior: ClassVar[Mapping[str, float]] = {
        "rows_memory": 0.87, "rows_shared": 0.1, "rows_own": 0.2, "walk": 0.05, "lookups": 0.1, "vectors": 1.5, "bags": 0.1, "tables": 0.3,
        "call": 33.0, "fork": 2.2, "memory": 2.6, "shared": 3.0,
    }  # fmt: skip

    def default(self, threads: int, lanes: int = 0) -> EmbeddingForwardKnobs:
        return default_forward(max((load.bags for load in self.loads), default=1), len(self.loads), self.dim, threads)

    def candidates(self, machine: Topology, threads: int) -> Sequence[EmbeddingForwardKnobs]:
        """Distances around the memory latency over the time of a row; both hints; tasks finer and coarser; both stores."""
        default, distances = self.default(threads), (0, 4, 8, 16, 32, 64)
        changes: list[dict[str, Any]] = [{"prefetch_distance": d, "streaming_stores": store} for d in distances for store in (False, True)]
        changes += [{"prefetch_distance": distance, "prefetch_hint": "t1"} for distance in (8, 16)]
        changes += [{"bags_per_task": bags} for bags in (64, 512, max(load.bags for load in self.loads))]
        return list(dict.fromkeys([default, *(default.model_copy(update=change) for change in changes)]))

    def run(self, memory: Memory, knobs: EmbeddingForwardKnobs, threads: int) -> None:
        for source in self.sources:
            shard: Shard = memory.modules[f"shard.{source.shard}"]
            shard.forward(memory.lookups[source.lookups], source.matrix(memory), knobs, threads)


@dataclass(eq=False)
class EmbeddingUpdate(_Embedding):
    """Backward of the pooled look-ups, fused with the optimizer."""

    repeatable: bool = False
    """Whether additions must have a fixed order, since other ranks hold copies of the same rows."""

    kind: ClassVar[str] = UPDATE
    family: ClassVar[Family] = EMBEDDING_UPDATE
    gather: ClassVar[bool] = False
    knobs_type: ClassVar[type[Knobs]] = EmbeddingUpdateKnobs
    prior: ClassVar[Mapping[str, float]] = {
        "rows_memory": 1.0, "rows_shared": 0.2, "rows_own": 0.1, "walk": 0.05, "lookups": 1.8, "vectors": 1.7, "bags": 26.0, "tables": 0.1,
        "alternate": 0.25, "scan": 1.9, "file": 14.0, "call": 56.0, "fork": 2.3, "memory": 0.7, "shared": 2.7,
        # No calibration run has these: strategies that are baselines, and Adagrad. Estimates.
        "atomic": 20.0, "unfused": 1.5, "state": 2.0,
    }  # fmt: skip

    def default(self, threads: int, lanes: int = 0) -> EmbeddingUpdateKnobs:
        return default_update(self.dim, threads, self.uniform)

    def candidates(self, machine: Topology, threads: int) -> Sequence[EmbeddingUpdateKnobs]:
        """Race-free strategies at every distance; the atomic and unfused baselines once, where the tables take them."""
        chosen = [self.default(threads)]
        for strategy in OWNED:
            chosen += [EmbeddingUpdateKnobs(strategy=strategy, prefetch_distance=distance) for distance in (8, 4, 16, 32, 64, 0)]
        taken = strategies(self.dtype, self.optimizer)
        chosen += [EmbeddingUpdateKnobs(strategy=strategy) for strategy in taken if strategy not in OWNED]
        return list(dict.fromkeys(chosen))

    def check_knobs(self, knobs: Knobs, threads: int) -> None:
        super().check_knobs(knobs, threads)
        assert isinstance(knobs, EmbeddingUpdateKnobs)
        taken = strategies(self.dtype, self.optimizer)
        if knobs.strategy not in taken:
            rule = f"the strategy of an update in {self.dtype} with {self.optimizer} must be one of {', '.join(taken)}"
            raise InputError(f"{rule}, got {knobs.strategy} (config: operators.{self.key}); choose one of them")

    def _strategy_features(self, knobs: Knobs | None, cached_s: float, vectors: float, rates: Rates) -> Features:
        chosen = knobs if isinstance(knobs, EmbeddingUpdateKnobs) else self.default(rates.threads)
        strategy, threads, lookups = chosen.strategy, rates.threads, self.lookups
        return {
            # Rows side by side that different cores own: each core's prefetches take them from the other.
            "alternate": cached_s if strategy == "race_free_modulo" and threads > 1 else 0.0,
            "scan": lookups * rates.cycle_s if strategy in ("race_free_range", "race_free_modulo") else 0.0,
            "file": lookups / threads * rates.cycle_s if strategy == "bucketed" else 0.0,
            "atomic": vectors * rates.lanes / threads * rates.cycle_s if strategy == "atomic" else 0.0,
            "unfused": 3 * lookups * self.size()["row_bytes"] / rates.stream_bytes_per_s if strategy == "unfused" else 0.0,
            "state": self.size()["state"] / rates.stream_bytes_per_s,
        }

    def run(self, memory: Memory, knobs: EmbeddingUpdateKnobs, threads: int) -> None:
        chosen = knobs.repeatable() if self.repeatable else knobs
        for source in self.sources:
            shard: Shard = memory.modules[f"shard.{source.shard}"]
            shard.update(memory.lookups[source.lookups], source.matrix(memory), memory.model.learning_rate, chosen, threads)


def default_forward(samples: int, tables: int, dim: int, threads: int) -> EmbeddingForwardKnobs:
    """32 tasks a thread, equal in look-ups, so that no thread waits longer than 3 % of the pass for the last; at least 16 bags, so that
    claiming and finding a task (0.3 us) stays below a few per cent, since rows are prefetched within a task."""
    return EmbeddingForwardKnobs(prefetch_distance=_distance(dim), bags_per_task=max(16, -(-samples * tables // (32 * threads))))


def default_update(dim: int, threads: int, uniform: bool = False) -> EmbeddingUpdateKnobs:
    """The scan of two owners costs less than filing by bucket; its total work grows with the owners, that of the buckets does not.

    By modulo where rows may be hot, so that hot rows side by side have different owners; by range where all are alike, so that rows side by
    side, which a core prefetches together, have one owner. Measured on 2 cores, range, modulo, bucketed: dlrm-dcnv2 cut to 500,000 rows
    11.5, 10.1, 13.3 ms under Zipf(1.05), 9.1, 8.2, 12.3 under a published reuse histogram (Zen 5). Uniform: small 16.5, 16.9, 19.9; rm2
    50.8, 52.0, 63.6; 40 tables of 100,000 rows 34.6, 47.1, 47.7; one of 1478 rows beside one of 185,510 2.0, 4.0, 2.4 (Zen 4).

    Args:
        uniform: whether every row is as likely as any other.
    """
    owned: Strategy = "race_free_range" if uniform else "race_free_modulo"
    return EmbeddingUpdateKnobs(strategy=owned if threads <= 2 else "bucketed", prefetch_distance=_distance(dim))


def _distance(dim: int) -> int:
    """About 8 KiB of rows in flight: what 100 ns of latency hold at 80 GB/s, more than two cores draw.

    Measured for rows of 256 B on 2 Zen 5 cores, at distances 8, 16, 32 and 64: forward 17.2, 14.7, 13.0, 13.2 ms, update 33.9, 28.5, 27.6,
    27.4 ms. For rows of 512 B, 8 to 64 are within noise.
    """
    return max(4, min(32, 8192 // (4 * dim)))
