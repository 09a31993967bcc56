"""Embedding tables in memory, in fp32 or 16 bits, with their optimizer: pooled look-ups, and their backward fused with the update.

Source of the update strategies and of split storage: arXiv 2005.04680.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from autotune.config.knobs import MAX_SIZE, Knobs
from autotune.config.model import DTYPES, OPTIMIZERS, TABLE_STORAGES, Dtype, Optimizer, TableStorage
from autotune.errors import InputError
from autotune.ops.native import ADAGRAD_EPSILON, kernels, torch, zeros
from autotune.ops.table_values import FILL_ROWS, initial_weights, stream

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

    Stochastic rounding (``storage="stochastic"``, of bf16 alone) keeps the upper half and nothing else: an update widens it, steps in fp32
    and rounds up or down by chance, so that the mean is the fp32 result. The chance is a hash of the table's stream, the number of the
    update, row, column and look-up: the same bits for any team and strategy. What is loaded is rounded to the nearest.

    Row-wise Adagrad (``optimizer="adagrad"``) keeps one number a row: with G the sum of the row's gradients over the batch,
    ``state += mean(G^2)``, ``row -= learning_rate * G / (sqrt(state) + 1e-10)``.

    Args:
        rows: rows of each table.
        dim: E.
        huge_pages: ask the kernel for 2 MiB pages.
        threads: team that touches the pages first.
        seed: initial weights are uniform in +-1/sqrt(rows), as in the public DLRM; the same for any team size and dtype.
        dtype: fp32, or bf16 for 16-bit storage.
        optimizer: sgd, or adagrad for row-wise Adagrad.
        storage: of bf16: split or stochastic.
        streams: a number of each table, from which its roundings are drawn, see `stream`; None: those of the seed.
        values: weights instead of those of the seed: fp32 [last - first, E] for table t and its rows [first, last). fp32 tables are asked
            for whole and kept; 16-bit ones some rows at a time, so that they never exist in fp32 as a whole.

    Raises:
        InputError: an unknown dtype, storage or optimizer, or stochastic storage of fp32.
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
        storage: TableStorage = "split",
        streams: Sequence[int] | None = None,
        values: Callable[[int, int, int], torch.Tensor] | None = None,
    ) -> None:
        choices = (("dtype", dtype, DTYPES), ("storage", storage, TABLE_STORAGES), ("optimizer", optimizer, OPTIMIZERS))
        for what, value, known in choices:
            if value not in known:
                raise InputError(f"{what} of embedding tables must be one of {', '.join(known)}, got {value!r}; choose one of them")

        stochastic = storage == "stochastic"
        if stochastic and dtype == "fp32":
            raise InputError("stochastic storage needs tables of dtype bf16, got fp32; choose bf16, or split storage")

        def drawn(t: int, first: int, last: int) -> torch.Tensor:
            return initial_weights(rows[t], dim, t, seed, row_range=(first, last), huge_pages=huge_pages, threads=threads)

        def halves(shift: int) -> list[torch.Tensor]:
            return [_array((count, dim), huge_pages, threads, torch.int16, shift) for count in rows]

        values, narrow = values or drawn, dtype == "bf16"
        self.huge_pages, self.optimizer = huge_pages, optimizer
        self._weights = [] if narrow else [values(t, 0, count) for t, count in enumerate(rows)]
        self._upper = halves(0) if narrow else []
        self._lower = halves(_LOWER_SHIFT) if narrow and not stochastic else []
        self._streams = list(streams or (stream(seed, t) for t in range(len(rows)))) if stochastic else []
        self._steps = torch.zeros((), dtype=torch.int64)
        self._state = [zeros(count, huge_pages=huge_pages, threads=threads) for count in rows] if optimizer == "adagrad" else []
        self._make_handle()
        if narrow:
            for t, count in enumerate(rows):
                for first in range(0, count, FILL_ROWS):
                    self._narrow(t, values(t, first, min(count, first + FILL_ROWS)), first)

    @classmethod
    def of(cls, weights: Sequence[torch.Tensor], *, dtype: Dtype = "fp32", optimizer: Optimizer = "sgd") -> EmbeddingBags:
        """Tables, or parts of tables, that exist: contiguous fp32 [rows, E] each, of one E. fp32 uses them as they are, not copied; bf16
        copies them into halves."""
        rows, dim = [len(table) for table in weights], weights[0].shape[1]
        return cls(rows, dim, dtype=dtype, optimizer=optimizer, values=lambda t, first, last: weights[t][first:last])

    def _make_handle(self) -> None:
        self._handle = self._handle_of(slice(None))

    def _handle_of(self, some: slice) -> kernels.EmbeddingTables:
        state = self._state[some] or None
        if self._weights:
            return kernels.EmbeddingTables(self._weights[some], state, ADAGRAD_EPSILON)
        if self._lower:
            return kernels.EmbeddingTables.split(self._upper[some], self._lower[some], state, ADAGRAD_EPSILON)
        return kernels.EmbeddingTables.rounded(self._upper[some], self._streams[some], state, ADAGRAD_EPSILON)

    @property
    def weights(self) -> list[torch.Tensor]:
        """The live tables, fp32 [rows, E] each.

        Raises:
            InputError: the tables are of bf16, so that none of fp32 exists; `table` makes one, `load` takes one.
        """
        if not self._weights:
            raise InputError("live weights need fp32 tables, got dtype bf16; read with table(t), write with load(t, values)")
        return self._weights

    @property
    def dtype(self) -> Dtype:
        return "fp32" if self._weights else "bf16"

    @property
    def storage(self) -> TableStorage:
        return "stochastic" if self._streams else "split"

    @property
    def steps(self) -> int:
        """Updates of stochastic storage so far, but for those at learning rate 0, after those that `continue_from` told."""
        return int(self._steps)

    def continue_from(self, steps: int) -> None:
        """Round from now on as after that many updates: so a run that goes on is one that never ended."""
        self._steps.fill_(steps)

    @property
    def dim(self) -> int:
        return self._handle.dim

    @property
    def rows(self) -> list[int]:
        """Rows of each table."""
        return self._handle.rows

    def table(self, t: int) -> torch.Tensor:
        """Table t, fp32 [rows, E]: the live one, or a fresh one widened, joined from its halves where it is split."""
        if self._weights:
            return self._weights[t]
        if not self._lower:
            return self._upper[t].view(torch.bfloat16).float()
        joined = torch.empty(self._upper[t].shape)
        _halves(joined, 1).copy_(self._upper[t])
        _halves(joined, 0).copy_(self._lower[t])
        return joined

    def load(self, t: int, values: torch.Tensor) -> None:
        """Copy fp32 [rows, E] into table t, rounded to the nearest bf16 where its storage is stochastic.

        Raises:
            InputError: another shape.
        """
        self._check_shape(t, values, (self.rows[t], self.dim), "a table")
        if self._weights:
            self._weights[t].copy_(values)
            return
        for first in range(0, len(values), FILL_ROWS):
            self._narrow(t, values[first : first + FILL_ROWS], first)

    def descend(self, gradients: Sequence[torch.Tensor], learning_rate: float, threads: int) -> None:
        """One step of the optimizer on every table along its dense gradient, fp32 [rows, E], as those of small replicated tables are."""
        for t, gradient in enumerate(gradients):
            state = self.state(t)
            if self._streams:  # an update that looks up every row once, rounds
                offsets = torch.arange(len(gradient) + 1)
                self._handle_of(slice(t, t + 1)).update(
                    offsets[:-1], offsets, gradient[:, None], learning_rate, None, False, "race_free_range", 0, threads, self.steps
                )
                continue
            table = self.table(t)
            if state is None:
                table.add_(gradient, alpha=-learning_rate)
            else:
                state.add_(gradient.square().mean(1))
                table.sub_(learning_rate * gradient / (state.sqrt() + ADAGRAD_EPSILON)[:, None])
            if not self._weights:
                self.load(t, table)
        self._count(learning_rate)

    def _count(self, learning_rate: float) -> None:
        if self._streams and learning_rate:
            self._steps += 1

    def _narrow(self, t: int, values: torch.Tensor, first: int) -> None:
        values = values.detach().float().contiguous()
        if not self._lower:
            self._upper[t][first : first + len(values)].copy_(values.bfloat16().view(torch.int16))
            return
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
        """Every live array by name: ``table_{t}``, or ``upper_{t}`` and ``lower_{t}`` (int16 bit patterns), and ``state_{t}``. Stochastic
        storage has no ``lower_{t}``, but ``steps``, the number of updates."""
        groups = {"table": self._weights, "upper": self._upper, "lower": self._lower, "state": self._state}
        arrays = {f"{name}_{t}": array for name, group in groups.items() for t, array in enumerate(group)}
        return arrays | {"steps": self._steps} if self._streams else arrays

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
            ValueError: shapes, strides or offsets that do not fit; a strategy that 16-bit tables or Adagrad do not take (see `strategies`).
        """
        self._handle.update(
            lookups.indices, lookups.offsets, gradient, learning_rate, lookups.per_sample_weights, mean,
            knobs.strategy, knobs.prefetch_distance, threads, self.steps,
        )  # fmt: skip
        self._count(learning_rate)


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
    exchange is of one word, not of halves."""
    if optimizer == "adagrad":
        return OWNED
    return (*OWNED, "unfused") if dtype == "bf16" else (*OWNED, "atomic", "unfused")
