"""Embedding bags as operators: their work, their knobs, and cases to time them alone.

Source of the byte model: the operators' compulsory traffic; of the tables: `embedding_tables`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Self

import torch

from autotune.config.knobs import EmbeddingForwardKnobs, EmbeddingUpdateKnobs
from autotune.config.profile import Topology
from autotune.ops.base import Case, Check, Operator, RowAccess, Work
from autotune.ops.embedding_tables import OWNED, EmbeddingBags, Lookups, Strategy, initial_weights, strategies
from autotune.ops.native import kernels, target, zeros

__all__ = [
    "FORWARD",
    "UPDATE",
    "EmbeddingBags",
    "EmbeddingForward",
    "EmbeddingUpdate",
    "Lookups",
    "default_forward",
    "default_update",
    "initial_weights",
    "strategies",
]

FORWARD = "embedding_bag.forward"
UPDATE = "embedding_bag.update"

_EPSILON = 2.0**-23


class _EmbeddingOperator(Operator):
    """What forward and update share: live tables, and a few batches of look-ups to rotate through."""

    def __init__(self, bags: EmbeddingBags, batches: Sequence[Lookups], samples: int) -> None:
        self._bags = bags
        self._batches = tuple(batches)
        self._samples = samples
        first = batches[0]
        of_tables = [first.table(t, samples) for t in range(len(bags.rows))]
        self._rows = tuple(
            RowAccess(self._row_bytes, indices.numel(), len(torch.unique(indices)), rows * self._row_bytes)
            for rows, indices in zip(bags.rows, of_tables, strict=True)
        )
        self._lookups = sum(rows.touched for rows in self._rows)
        self._unique = sum(rows.unique for rows in self._rows)
        self._index_bytes = (first.indices.numel() + first.offsets.numel()) * first.indices.element_size()

    @property
    def dim(self) -> int:
        return self._bags.dim

    def idle(self) -> Self:
        """The same pass on no look-up of one sample: what a call takes by itself."""
        first = self._batches[0]
        return type(self)(self._bags, [Lookups(first.indices[:0], torch.zeros_like(first.offsets[: len(self._bags.rows) + 1]))], 1)

    @property
    @abstractmethod
    def _row_bytes(self) -> int:
        """Of a row of a table, as far as this pass touches it."""

    @property
    def _pooled_bytes(self) -> int:
        return self._samples * len(self._bags.rows) * self._bags.dim * 4


class EmbeddingForward(_EmbeddingOperator):
    """Pooled look-ups of all tables."""

    key = FORWARD

    @property
    def _row_bytes(self) -> int:
        return self._bags.dim * (2 if self._bags.dtype == "bf16" else 4)

    def work(self) -> Work:
        """Adds: L*E. Bytes: U distinct rows and the indices are read, N*T pooled rows written; L rows pass through the caches."""
        return Work(
            flops=self._lookups * self._bags.dim,
            bytes_read=self._unique * self._row_bytes + self._index_bytes,
            bytes_written=self._pooled_bytes,
            access="gather",
            rows=self._rows,
            parallel_regions=2,  # the indices are checked in a region of their own
        )

    def default(self, machine: Topology) -> EmbeddingForwardKnobs:
        return default_forward(self._samples, len(self._bags.rows), self._bags.dim, machine.physical_cores)

    def candidates(self, machine: Topology, threads: int) -> Sequence[EmbeddingForwardKnobs]:
        """Distances around the memory latency over the time of a row; both hints; tasks finer and coarser; both stores."""
        default = self.default(machine)
        chosen = [default]
        for distance in (0, 4, 8, 16, 32, 64):
            chosen.append(default.model_copy(update={"prefetch_distance": distance}))
            chosen.append(default.model_copy(update={"prefetch_distance": distance, "streaming_stores": True}))
        for distance in (8, 16):
            chosen.append(default.model_copy(update={"prefetch_distance": distance, "prefetch_hint": "t1"}))
        for bags in (64, 512, self._samples):
            chosen.append(default.model_copy(update={"bags_per_task": bags}))
        return list(dict.fromkeys(chosen))

    def case(self, seed: int, warm: bool = False) -> Case:
        return _EmbeddingCase(self._bags, self._batches, self._samples, seed, warm, update=False)


class EmbeddingUpdate(_EmbeddingOperator):
    """Backward of the pooled look-ups, fused with the optimizer."""

    key = UPDATE

    @property
    def _row_bytes(self) -> int:
        return self._bags.dim * 4 + (4 if self._bags.optimizer == "adagrad" else 0)

    def work(self) -> Work:
        """Multiply-adds: L*E. Bytes: U distinct rows, with their state, are read and written, the N*T pooled gradients and the indices
        read."""
        return Work(
            flops=2 * self._lookups * self._bags.dim,
            bytes_read=self._unique * self._row_bytes + self._pooled_bytes + self._index_bytes,
            bytes_written=self._unique * self._row_bytes,
            access="scatter",
            rows=self._rows,
            parallel_regions=2,  # the indices are checked in a region of their own
        )

    def default(self, machine: Topology) -> EmbeddingUpdateKnobs:
        return default_update(self._bags.dim, machine.physical_cores)

    def candidates(self, machine: Topology, threads: int) -> Sequence[EmbeddingUpdateKnobs]:
        """Race-free strategies at every distance; the atomic and unfused baselines once, where the tables take them."""
        taken = strategies(self._bags.dtype, self._bags.optimizer)
        chosen = [self.default(machine)]
        for strategy in OWNED:
            chosen += [EmbeddingUpdateKnobs(strategy=strategy, prefetch_distance=distance) for distance in (8, 4, 16, 32, 64, 0)]
        chosen += [EmbeddingUpdateKnobs(strategy=strategy) for strategy in taken if strategy not in OWNED]
        return list(dict.fromkeys(chosen))

    def case(self, seed: int, warm: bool = False) -> Case:
        return _EmbeddingCase(self._bags, self._batches, self._samples, seed, warm, update=True)


def table_by_table(
    bags: EmbeddingBags, batches: Sequence[Lookups], samples: int
) -> Iterator[tuple[EmbeddingForward, EmbeddingUpdate, torch.Tensor]]:
    """Both passes on every table alone, on the live weights, and its look-ups in the first batch."""
    for t in range(len(bags.rows)):
        one = _alone(bags, t)
        of_table = []
        for batch in batches:
            offsets = batch.offsets[t * samples : (t + 1) * samples + 1]
            of_table.append(Lookups(batch.table(t, samples), offsets - offsets[0]))
        yield EmbeddingForward(one, of_table, samples), EmbeddingUpdate(one, of_table, samples), of_table[0].indices


def _alone(bags: EmbeddingBags, t: int) -> EmbeddingBags:
    """Table t by itself: the same live arrays, not copies."""
    one = copy(bags)
    one._weights, one._upper, one._lower, one._state = (
        group[t : t + 1] for group in (bags._weights, bags._upper, bags._lower, bags._state)
    )
    one._make_handle()
    return one


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


class _EmbeddingCase(Case):
    """Both passes on the live tables. The update runs with nothing to add, the same traffic: at learning rate 0, and from a gradient of
    zeros where Adagrad would sum up its squares. Not a bit of a table or its state changes."""

    def __init__(self, bags: EmbeddingBags, batches: Sequence[Lookups], samples: int, seed: int, warm: bool, *, update: bool) -> None:
        self._bags, self._update = bags, update
        self._batches = batches[:1] if warm else batches
        self._pooled = zeros(samples, len(bags.rows), bags.dim)
        self._seed, self._next = seed, 0
        if update and bags.optimizer == "sgd":
            kernels.fill_uniform(self._pooled.view(-1), -1.0, 1.0, seed, 1)

    def __del__(self) -> None:
        # Not when knobs change: a step that is timed would have to touch the memory anew.
        if self._update:
            self._bags.release_workspace()

    def run(self, knobs: EmbeddingForwardKnobs | EmbeddingUpdateKnobs, threads: int) -> None:
        lookups = self._batches[self._next % len(self._batches)]
        self._next += 1
        if isinstance(knobs, EmbeddingUpdateKnobs):
            self._bags.update(lookups, self._pooled, 0.0, knobs, threads)
        else:
            self._bags.forward(lookups, self._pooled, knobs, threads)

    def check(self, knobs: EmbeddingForwardKnobs | EmbeddingUpdateKnobs, threads: int) -> Check:
        """On small tables of the same dim, with collisions and empty bags: the reference walks every row."""
        generator = torch.Generator().manual_seed(self._seed)
        rows, samples = (97, 3, 1000), 37
        lengths = torch.randint(0, 20, (len(rows) * samples,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        counts = lengths.view(len(rows), samples).sum(1).tolist()
        drawn = [torch.randint(0, limit, (count,), generator=generator) for limit, count in zip(rows, counts, strict=True)]
        indices = torch.cat(drawn)
        gradient = torch.rand(samples, len(rows), self._bags.dim, generator=generator) - 0.5
        dtype = self._batches[0].indices.dtype
        lookups = Lookups(indices.to(dtype), offsets.to(dtype))

        def outcome() -> torch.Tensor:
            bags = EmbeddingBags(
                rows, self._bags.dim, huge_pages=False, seed=self._seed, dtype=self._bags.dtype, optimizer=self._bags.optimizer
            )
            if isinstance(knobs, EmbeddingUpdateKnobs):
                bags.update(lookups, gradient, 0.1, knobs, threads)
                states = [state for t in range(len(rows)) if (state := bags.state(t)) is not None]
                return torch.cat([part.reshape(-1) for part in (*map(bags.table, range(len(rows))), *states)])
            out = torch.empty(samples, len(rows), self._bags.dim)
            bags.forward(lookups, out, knobs, threads)
            return out.reshape(-1)

        got = outcome()
        with target("reference"):
            wanted = outcome()
        # Every element is a sum of at most `longest` terms below 1: each addition rounds by half an epsilon of the sum so far.
        longest = int(indices.bincount().max()) if self._update else 20
        worst = (got - wanted).abs()
        return Check(float(worst.max()), longest * _EPSILON * max(1.0, float(wanted.abs().max())), f"element {int(worst.argmax())}")
