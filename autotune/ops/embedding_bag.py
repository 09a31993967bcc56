"""Embedding bags of all tables: pooled look-ups, and their backward fused with the SGD update.

Source of the update strategies: arXiv 2005.04680, section III; of the byte model: its operators' compulsory traffic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from autotune.config.knobs import EmbeddingForwardKnobs, EmbeddingUpdateKnobs
from autotune.config.profile import Topology
from autotune.ops.base import Case, Check, Operator, RowAccess, Work
from autotune.ops.native import kernels, target, zeros

FORWARD = "embedding_bag.forward"
UPDATE = "embedding_bag.update"

_HINTS = {"t0": 0, "t1": 1}
_EPSILON = 2.0**-23


@dataclass(frozen=True, eq=False)
class Lookups:
    """Look-ups of T tables for N samples, table-major."""

    indices: torch.Tensor
    """int32 or int64 [L]."""
    offsets: torch.Tensor
    """Same dtype, [T*N + 1]: bag ``t*N + n`` is ``indices[offsets[t*N + n] : offsets[t*N + n + 1]]``."""
    per_sample_weights: torch.Tensor | None = None
    """fp32 [L]; sum pooling only."""

    def table(self, t: int, samples: int) -> torch.Tensor:
        """The indices of one table."""
        return self.indices[int(self.offsets[t * samples]) : int(self.offsets[(t + 1) * samples])]


class EmbeddingBags:
    """T tables of one dim E, fp32, each on pages of its own.

    Args:
        rows: rows of each table.
        dim: E.
        huge_pages: ask the kernel for 2 MiB pages.
        threads: team that touches the pages first.
        seed: initial weights are uniform in +-1/sqrt(rows), as in the public DLRM; the same for any team size.
    """

    def __init__(self, rows: Sequence[int], dim: int, *, huge_pages: bool = True, threads: int = 1, seed: int = 0) -> None:
        parts = [initial_weights(count, dim, t, seed, huge_pages=huge_pages, threads=threads) for t, count in enumerate(rows)]
        self._hold(parts, huge_pages)

    @classmethod
    def of(cls, weights: Sequence[torch.Tensor], *, huge_pages: bool = True) -> EmbeddingBags:
        """Tables, or parts of tables, that exist: contiguous fp32 [rows, E] each, of one E. They are used as they are, not copied."""
        self = cls.__new__(cls)
        self._hold(weights, huge_pages)
        return self

    def _hold(self, weights: Sequence[torch.Tensor], huge_pages: bool) -> None:
        self.huge_pages = huge_pages
        self.weights = list(weights)
        self._handle = kernels.EmbeddingTables(self.weights)

    @property
    def dim(self) -> int:
        return int(self.weights[0].shape[1])

    def move(self, huge_pages: bool, threads: int) -> None:
        """Put the tables on pages of the other size, one table at a time, so that one table more is the most that is needed."""
        if huge_pages == self.huge_pages:
            return
        del self._handle  # it keeps every table mapped
        try:
            for t, old in enumerate(self.weights):
                fresh = zeros(*old.shape, huge_pages=huge_pages, threads=threads)
                fresh.copy_(old)
                self.weights[t] = fresh
            self.huge_pages = huge_pages
        finally:
            self._handle = kernels.EmbeddingTables(self.weights)

    def release_workspace(self) -> None:
        """Free what updates keep between calls: `unfused` holds a gradient row for every look-up."""
        self._handle.release_workspace()

    def forward(self, lookups: Lookups, out: torch.Tensor, knobs: EmbeddingForwardKnobs, threads: int, *, mean: bool = False) -> None:
        """Pool every bag into out[n, t, :].

        Args:
            lookups: what to look up.
            out: fp32 [N, T, E], any strides with a contiguous last dimension; written.
            mean: divide by the bag's length (0 for an empty bag) instead of summing.

        Raises:
            IndexError: an index outside its table; names table, position, value and limit. Nothing is written.
            ValueError: shapes, strides or offsets that do not fit.
        """
        self._handle.forward(
            lookups.indices, lookups.offsets, out, lookups.per_sample_weights, mean,
            knobs.prefetch_distance, _HINTS[knobs.prefetch_hint], knobs.bags_per_task, knobs.streaming_stores, threads,
        )  # fmt: skip

    def update(
        self,
        lookups: Lookups,
        gradient: torch.Tensor,
        learning_rate: float,
        knobs: EmbeddingUpdateKnobs,
        threads: int,
        *,
        mean: bool = False,
    ) -> None:
        """table[row] -= learning_rate * gradient[n, t] for every look-up of every bag, without writing the gradient rows out.

        Args:
            gradient: fp32 [N, T, E] of the pooled vectors.

        Raises:
            IndexError: an index outside its table, before any table is changed.
            ValueError: shapes, strides or offsets that do not fit.
        """
        self._handle.update(
            lookups.indices, lookups.offsets, gradient, learning_rate, lookups.per_sample_weights, mean,
            knobs.strategy, knobs.prefetch_distance, threads,
        )  # fmt: skip


_FILL_ROWS = 1 << 16
"""Rows drawn at a time where only some columns are kept: 32 MiB at 128 columns."""


def initial_weights(
    rows: int,
    dim: int,
    table: int,
    seed: int,
    *,
    row_range: tuple[int, int] | None = None,
    column_range: tuple[int, int] | None = None,
    huge_pages: bool = True,
    threads: int = 1,
) -> torch.Tensor:
    """A table, or one part of it, with the values that it has in the whole: uniform in +-1/sqrt(rows), as in the public DLRM.

    Args:
        rows, dim: of the whole table.
        table: its number in the model; each has a stream of its own.
        row_range, column_range: the part, [begin, end); None takes all.

    Returns:
        fp32 [rows of the part, columns of the part], on pages of its own.
    """
    (low, high), (left, right) = row_range or (0, rows), column_range or (0, dim)
    bound, stream = math.sqrt(1.0 / rows), seed * 1_000_003 + table
    part = zeros(high - low, right - left, huge_pages=huge_pages, threads=threads)
    if right - left == dim:
        kernels.fill_uniform(part.view(-1), -bound, bound, stream, threads, low * dim)
        return part
    drawn = torch.empty(min(_FILL_ROWS, high - low), dim)
    for first in range(low, high, len(drawn)):
        some = drawn[: min(len(drawn), high - first)]
        kernels.fill_uniform(some.view(-1), -bound, bound, stream, threads, first * dim)
        part[first - low : first - low + len(some)] = some[:, left:right]
    return part


class _EmbeddingOperator(Operator):
    """What forward and update share: live tables, and a few batches of look-ups to rotate through."""

    def __init__(self, bags: EmbeddingBags, batches: Sequence[Lookups], samples: int) -> None:
        self._bags = bags
        self._batches = tuple(batches)
        self._samples = samples
        first = batches[0]
        row_bytes = bags.dim * 4
        self._rows = tuple(
            RowAccess(row_bytes, indices.numel(), len(torch.unique(indices)), table.numel() * 4)
            for table, indices in ((table, first.table(t, samples)) for t, table in enumerate(bags.weights))
        )
        self._lookups = sum(rows.touched for rows in self._rows)
        self._unique = sum(rows.unique for rows in self._rows)
        self._index_bytes = (first.indices.numel() + first.offsets.numel()) * first.indices.element_size()

    @property
    def _row_bytes(self) -> int:
        return self._bags.dim * 4

    @property
    def _pooled_bytes(self) -> int:
        return self._samples * len(self._bags.weights) * self._row_bytes


class EmbeddingForward(_EmbeddingOperator):
    """Pooled look-ups of all tables."""

    key = FORWARD

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
        return default_forward(self._samples, len(self._bags.weights), self._bags.dim, machine.physical_cores)

    def candidates(self, machine: Topology, threads: int) -> Sequence[EmbeddingForwardKnobs]:
        """Distances around the memory latency over the time of a row; both hints; tasks from one to 32 a thread; both stores."""
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
    """Backward of the pooled look-ups, fused with SGD."""

    key = UPDATE

    def work(self) -> Work:
        """Multiply-adds: L*E. Bytes: U distinct rows are read and written, the N*T pooled gradients and the indices read."""
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
        """Race-free strategies at every distance; the atomic and unfused baselines once, since skew may favour neither or both."""
        chosen = [self.default(machine)]
        for strategy in ("race_free_range", "bucketed", "race_free_modulo"):
            chosen += [EmbeddingUpdateKnobs(strategy=strategy, prefetch_distance=distance) for distance in (8, 4, 16, 32, 64, 0)]
        chosen += [EmbeddingUpdateKnobs(strategy="atomic"), EmbeddingUpdateKnobs(strategy="unfused")]
        return list(dict.fromkeys(chosen))

    def case(self, seed: int, warm: bool = False) -> Case:
        return _EmbeddingCase(self._bags, self._batches, self._samples, seed, warm, update=True)


def default_forward(samples: int, tables: int, dim: int, threads: int) -> EmbeddingForwardKnobs:
    """At least 8 tasks a thread, so that uneven tables even out; at least 16 bags, so that claiming a task (0.1 us) stays below 1 %."""
    wanted = -(-samples * tables // (8 * threads))
    return EmbeddingForwardKnobs(prefetch_distance=_distance(dim), bags_per_task=max(16, min(256, wanted)))


def default_update(dim: int, threads: int) -> EmbeddingUpdateKnobs:
    """The scan of two owners costs less than filing by bucket; its total work grows with the owners, that of the buckets does not."""
    return EmbeddingUpdateKnobs(strategy="race_free_range" if threads <= 2 else "bucketed", prefetch_distance=_distance(dim))


def _distance(dim: int) -> int:
    """About 8 KiB of rows in flight: what 100 ns of latency hold at 80 GB/s, more than two cores draw.

    Measured for rows of 256 B on 2 Zen 5 cores, at distances 8, 16, 32 and 64: forward 17.2, 14.7, 13.0, 13.2 ms, update 33.9, 28.5, 27.6,
    27.4 ms. For rows of 512 B, 8 to 64 are within noise.
    """
    return max(4, min(32, 8192 // (4 * dim)))


class _EmbeddingCase(Case):
    """Both passes on the live tables. The update runs at learning rate 0: the same traffic, and not a bit of a table changes."""

    def __init__(self, bags: EmbeddingBags, batches: Sequence[Lookups], samples: int, seed: int, warm: bool, *, update: bool) -> None:
        self._bags, self._update = bags, update
        self._batches = batches[:1] if warm else batches
        self._pooled = zeros(samples, len(bags.weights), bags.dim)
        self._seed, self._next = seed, 0
        if update:
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
            bags = EmbeddingBags(rows, self._bags.dim, huge_pages=False, seed=self._seed)
            if isinstance(knobs, EmbeddingUpdateKnobs):
                bags.update(lookups, gradient, 0.1, knobs, threads)
                return torch.cat([table.reshape(-1) for table in bags.weights])
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
