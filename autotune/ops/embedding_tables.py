"""Embedding tables in memory, fp32 or split, with their optimizer: pooled look-ups, and their backward fused with the update.

Source of the update strategies and of split storage: arXiv 2005.04680.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from autotune.config.knobs import MAX_SIZE, Knobs
from autotune.config.model import DTYPES, OPTIMIZERS, Dtype, Optimizer
from autotune.errors import InputError
from autotune.machine.activity import advanced
from autotune.ops.native import ADAGRAD_EPSILON, kernels, torch, zeros

Strategy = Literal["race_free_range", "race_free_modulo", "bucketed", "atomic", "unfused"]
OWNED: tuple[Strategy, ...] = ("race_free_range", "bucketed", "race_free_modulo")
"""Every row has one owner, which sees its look-ups in their order."""

_HINTS = {"t0": 0, "t1": 1}


class EmbeddingForwardKnobs(Knobs):
    """How pooled look-ups are gathered."""

    kind: Literal["embedding_forward"] = "embedding_forward"
    prefetch_distance: int = Field(8, ge=0, le=128)
    """Rows ahead of the one being summed; 0 leaves it to the hardware."""
    prefetch_hint: Literal["t0", "t1"] = "t0"
    """Cache level the row is brought to: t0 is L1, t1 is L2."""
    bags_per_task: int = Field(256, ge=1, le=MAX_SIZE)
    """Bags of one table that one task pools."""
    streaming_stores: bool = False
    """Write pooled rows past the caches."""


class EmbeddingUpdateKnobs(Knobs):
    """How gradients reach the tables."""

    kind: Literal["embedding_update"] = "embedding_update"
    strategy: Strategy = "bucketed"
    """Who writes a row: its owner by range, by modulo, by bucket; anybody, atomically; or a second pass over written-out gradients."""
    prefetch_distance: int = Field(8, ge=0, le=128)
    """Rows ahead of the one being updated."""

    def repeatable(self) -> EmbeddingUpdateKnobs:
        """The same with additions in a fixed order: copies of a table on several ranks stay equal only so."""
        return self.model_copy(update={"strategy": "bucketed"}) if self.strategy == "atomic" else self


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
    """T tables of one dim E, each on pages of its own, and the optimizer that updates them.

    Split-SGD-BF16 (``dtype="bf16"``) keeps an fp32 weight as two 16-bit halves. The upper is its bf16 truncation, all that the forward
    pass reads; an update joins both, steps in fp32 and splits again, so no copy is kept and nothing is lost.

    Row-wise Adagrad (``optimizer="adagrad"``) keeps one number a row: with G the sum of the row's gradients over the batch,
    ``state += mean(G^2)``, ``row -= learning_rate * G / (sqrt(state) + 1e-10)``.

    Args:
        rows: rows of each table.
        dim: E.
        huge_pages: ask the kernel for 2 MiB pages.
        threads: team that touches the pages first.
        seed: initial weights are uniform in +-1/sqrt(rows), as in the public DLRM; the same for any team size and dtype.
        dtype: fp32, or bf16 for split storage.
        optimizer: sgd, or adagrad for row-wise Adagrad.
        values: weights instead of those of the seed: fp32 [last - first, E] for table t and its rows [first, last). fp32 tables are asked
            for whole and kept; split ones some rows at a time, so that they never exist in fp32 as a whole.

    Raises:
        InputError: an unknown dtype or optimizer.
    """

    def __init__(
        self,
        rows: Sequence[int],
        dim: int,
        *,
        huge_pages: bool = True,
        threads: int = 1,
        seed: int = 0,
        dtype: Dtype = "fp32",
        optimizer: Optimizer = "sgd",
        values: Callable[[int, int, int], torch.Tensor] | None = None,
    ) -> None:
        for what, value, known in (("dtype", dtype, DTYPES), ("optimizer", optimizer, OPTIMIZERS)):
            if value not in known:
                raise InputError(f"{what} of embedding tables must be one of {', '.join(known)}, got {value!r}; choose one of them")

        def drawn(t: int, first: int, last: int) -> torch.Tensor:
            return initial_weights(rows[t], dim, t, seed, row_range=(first, last), huge_pages=huge_pages, threads=threads)

        def halves(shift: int) -> list[torch.Tensor]:
            return [_array((count, dim), huge_pages, threads, torch.int16, shift) for count in rows]

        values, split = values or drawn, dtype == "bf16"
        self.huge_pages, self.optimizer = huge_pages, optimizer
        self._weights = [] if split else [values(t, 0, count) for t, count in enumerate(rows)]
        self._upper, self._lower = (halves(0), halves(_LOWER_SHIFT)) if split else ([], [])
        self._state = [zeros(count, huge_pages=huge_pages, threads=threads) for count in rows] if optimizer == "adagrad" else []
        self._make_handle()
        if split:
            for t, count in enumerate(rows):
                for first in range(0, count, _FILL_ROWS):
                    self._split(t, values(t, first, min(count, first + _FILL_ROWS)), first)

    @classmethod
    def of(cls, weights: Sequence[torch.Tensor], *, dtype: Dtype = "fp32", optimizer: Optimizer = "sgd") -> EmbeddingBags:
        """Tables, or parts of tables, that exist: contiguous fp32 [rows, E] each, of one E. fp32 uses them as they are, not copied; bf16
        copies them into halves."""
        rows, dim = [len(table) for table in weights], weights[0].shape[1]
        return cls(rows, dim, dtype=dtype, optimizer=optimizer, values=lambda t, first, last: weights[t][first:last])

    def _make_handle(self) -> None:
        state = self._state or None
        if self._weights:
            self._handle = kernels.EmbeddingTables(self._weights, state, ADAGRAD_EPSILON)
        else:
            self._handle = kernels.EmbeddingTables.split(self._upper, self._lower, state, ADAGRAD_EPSILON)

    @property
    def weights(self) -> list[torch.Tensor]:
        """The live tables, fp32 [rows, E] each.

        Raises:
            InputError: the tables are split, so that none of fp32 exists; `table` joins one, `load` splits one.
        """
        if not self._weights:
            raise InputError("live weights need fp32 tables, got dtype bf16 (split halves); read with table(t), write with load(t, values)")
        return self._weights

    @property
    def dtype(self) -> Dtype:
        return "fp32" if self._weights else "bf16"

    @property
    def dim(self) -> int:
        return self._handle.dim

    @property
    def rows(self) -> list[int]:
        """Rows of each table."""
        return self._handle.rows

    def table(self, t: int) -> torch.Tensor:
        """Table t, fp32 [rows, E]: the live one, or a fresh one joined from its halves."""
        if self._weights:
            return self._weights[t]
        joined = torch.empty(self._upper[t].shape)
        _halves(joined, 1).copy_(self._upper[t])
        _halves(joined, 0).copy_(self._lower[t])
        return joined

    def load(self, t: int, values: torch.Tensor) -> None:
        """Copy fp32 [rows, E] into table t.

        Raises:
            InputError: another shape.
        """
        self._check_shape(t, values, (self.rows[t], self.dim), "a table")
        if self._weights:
            self._weights[t].copy_(values)
            return
        for first in range(0, len(values), _FILL_ROWS):
            self._split(t, values[first : first + _FILL_ROWS], first)

    def descend(self, t: int, gradient: torch.Tensor, learning_rate: float) -> None:
        """One step of the optimizer on all of table t along a dense gradient, fp32 [rows, E], as that of a small replicated table is."""
        state, table = self.state(t), self.table(t)
        if state is None:
            table.add_(gradient, alpha=-learning_rate)
        else:
            state.add_(gradient.square().mean(1))
            table.sub_(learning_rate * gradient / (state.sqrt() + ADAGRAD_EPSILON)[:, None])
        if not self._weights:
            self.load(t, table)

    def _split(self, t: int, values: torch.Tensor, first: int) -> None:
        values = values.detach().float().contiguous()
        self._upper[t][first : first + len(values)].copy_(_halves(values, 1))
        self._lower[t][first : first + len(values)].copy_(_halves(values, 0))

    def state(self, t: int) -> torch.Tensor | None:
        """What Adagrad has summed up for each row of table t, fp32 [rows], live; None for SGD."""
        return self._state[t] if self._state else None

    def load_state(self, t: int, values: torch.Tensor) -> None:
        """Copy fp32 [rows] into the state of table t.

        Raises:
            InputError: another shape, or an optimizer without state.
        """
        if not self._state:
            raise InputError(f"only Adagrad keeps a state of a table, got optimizer {self.optimizer} (table {t}); choose adagrad")
        self._check_shape(t, values, (self.rows[t],), "the state of a table")
        self._state[t].copy_(values)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Every live array by name: ``table_{t}``, or ``upper_{t}`` and ``lower_{t}`` (int16 bit patterns), and ``state_{t}``."""
        groups = {"table": self._weights, "upper": self._upper, "lower": self._lower, "state": self._state}
        return {f"{name}_{t}": array for name, group in groups.items() for t, array in enumerate(group)}

    def _check_shape(self, t: int, values: torch.Tensor, shape: tuple[int, ...], what: str) -> None:
        if tuple(values.shape) != shape:
            raise InputError(f"{what} must have shape {list(shape)}, got {list(values.shape)} (table {t}); load the one that belongs here")

    def move(self, huge_pages: bool, threads: int) -> None:
        """Put the tables on pages of the other size, one array at a time, so that one array more is the most that is needed."""
        if huge_pages == self.huge_pages:
            return
        del self._handle  # it keeps every table mapped
        try:
            for arrays in (self._weights, self._upper, self._lower, self._state):
                for t, old in enumerate(arrays):
                    shift = _LOWER_SHIFT if arrays is self._lower else 0
                    fresh = _array(tuple(old.shape), huge_pages, threads, old.dtype, shift)
                    fresh.copy_(old)
                    arrays[t] = fresh
            self.huge_pages = huge_pages
        finally:
            self._make_handle()

    def release_workspace(self) -> None:
        """Free what updates keep between calls: `unfused` holds a gradient row for every look-up."""
        self._handle.release_workspace()

    def owner_sizes(self, lookups: Lookups, samples: int, strategy: Strategy, threads: int, *, first_table: int = 0) -> list[int]:
        """Look-ups that each thread applies in an update, these tables being numbers `first_table` and up of those updated together."""
        return self._handle.owner_sizes(lookups.indices, lookups.offsets, samples, strategy, threads, first_table)

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
        """One step of the optimizer, without writing the gradient rows out. SGD: table[row] -= learning_rate * gradient[n, t] for every
        look-up of every bag; row-wise Adagrad: see the class.

        Args:
            gradient: fp32 [N, T, E] of the pooled vectors.

        Raises:
            IndexError: an index outside its table, before any table is changed.
            ValueError: shapes, strides or offsets that do not fit; a strategy that split tables or Adagrad do not take (see `strategies`).
        """
        self._handle.update(
            lookups.indices, lookups.offsets, gradient, learning_rate, lookups.per_sample_weights, mean,
            knobs.strategy, knobs.prefetch_distance, threads,
        )  # fmt: skip


_FILL_ROWS = 1 << 16
"""Rows drawn or split at a time: 32 MiB at 128 columns."""


_LOWER_SHIFT = 64 * 33
"""Elements before the lower halves, 4 KiB and two lines. On pages of their own, the halves of a row would lie a multiple of 2 MiB apart: in
the same sets of every cache and the same bank. Measured on 2 Zen 5 cores, update of 2.6 M rows of 256 B: 117 ms at 0, 70 at 1056, 61 here,
55 in fp32."""


def _array(shape: tuple[int, ...], huge_pages: bool, threads: int, dtype: torch.dtype, shift: int) -> torch.Tensor:
    count = math.prod(shape)
    return zeros(shift + count, huge_pages=huge_pages, threads=threads, dtype=dtype)[shift:].view(shape)


def _halves(table: torch.Tensor, which: int) -> torch.Tensor:
    """A view of the lower (0) or upper (1) 16 bits of every weight, int16 [rows, E]; little-endian, as the CPUs torch runs on are."""
    return table.view(torch.int16).view(*table.shape, 2)[..., which]


def strategies(dtype: Dtype, optimizer: Optimizer) -> tuple[Strategy, ...]:
    """The update strategies that these tables take: Adagrad steps a row by the sum of its gradients, which one owner must see; the atomic
    exchange is of one word, not of two halves."""
    if optimizer == "adagrad":
        return OWNED
    return (*OWNED, "unfused") if dtype == "bf16" else (*OWNED, "atomic", "unfused")


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
    advanced()
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
