"""The passes of a step in order, with their work and the arrays they touch: from the model alone, no table in memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from autotune.config.model import FLOAT_BYTES, DataSpec, Model
from autotune.data.batches import make_source
from autotune.data.popularity import Popularity, counted, uniform, zipf
from autotune.ops import embedding_bag, interaction, loss
from autotune.ops.base import RowAccess, Work
from autotune.ops.mlp import LayerPass
from autotune.ops.mlp import Pass as LayerPassKind

Kind = Literal[
    "forward", "backward_data", "backward_weights", "embedding_forward", "embedding_update",
    "interaction_forward", "interaction_backward", "loss", "other", "select", "optimizer",
]  # fmt: skip
"""What a pass is, whichever layer or table it is of: passes of one kind share a law."""

OTHER = "other"
_LINE_BYTES = 64
"""What a float of state, alone on its line, costs."""
ROWS = "rows"
"""The array that stands for the table rows of a batch."""


@dataclass(frozen=True, eq=False)
class TableShare:
    """What one rank walks of one table, in one pass."""

    rows: int
    row_bytes: int
    lookups: float
    """Expected."""
    bags: int
    popularity: Popularity
    """Of the whole table; a row-wise part expects its share of everything."""
    part: float = 1.0
    """Rows of the part over those of the table."""

    @functools.cached_property
    def unique(self) -> float:
        """Distinct rows met, expected."""
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


@dataclass(frozen=True)
class Touch:
    """An array, or a stretch of one, that a pass reads or writes."""

    name: str
    size_bytes: float


@dataclass(frozen=True, eq=False)
class PassShape:
    """One pass of a step on one rank."""

    key: str
    kind: Kind
    work: Work
    touches: tuple[Touch, ...]
    size: dict[str, float]
    """Its shape by name: what the law of its kind is about, and what calibration is compared with."""
    tables: tuple[TableShare, ...] = ()


def popularity(model: Model, t: int) -> Popularity:
    """Of the look-ups into table `t`: closed forms for uniform and Zipf; of histograms and files one batch is sampled."""
    data, rows = model.data, model.tables[t].rows
    if data.distribution == "zipf" and data.alpha is not None:
        return zipf(rows, data.alpha)
    if data.distribution in ("histogram", "criteo"):
        return _sampled(model.hash(), model, data)[t]
    return uniform(rows)


_SAMPLES: dict[str, tuple[Popularity, ...]] = {}


def _sampled(key: str, model: Model, data: DataSpec) -> tuple[Popularity, ...]:
    """From one batch of the model's own source, kept by the model's hash."""
    if key not in _SAMPLES:
        batch, samples = make_source(model, data).batch(0), model.minibatch
        ends = batch.offsets[::samples].tolist()
        found = []
        for table, (low, high) in zip(model.tables, pairwise(ends), strict=True):
            counts = np.unique(batch.indices[low:high].numpy(), return_counts=True)[1].astype(np.int64)
            found.append(counted(counts, table.rows))
        _SAMPLES[key] = tuple(found)
    return _SAMPLES[key]


def element_bytes(model: Model) -> int:
    """Of a weight as forward and backward-data read it; activations are fp32 always."""
    return 2 if model.dtype == "bf16" else FLOAT_BYTES


def whole_tables(model: Model) -> tuple[TableShare, ...]:
    """Every table of the model on one socket."""
    width, samples = element_bytes(model), model.minibatch
    return tuple(
        TableShare(table.rows, table.dim * width, samples * table.pooling, samples, popularity(model, t))
        for t, table in enumerate(model.tables)
    )


def step_passes(model: Model, tables: Sequence[TableShare], update: Sequence[TableShare] | None = None) -> list[PassShape]:
    """A step on one socket, in the order of `DLRM.step`.

    Args:
        model: With the minibatch of this rank.
        tables: What it looks up; `update` what it updates, where that differs.
    """
    builder = _Builder(model)
    return [
        *builder.bottom_forward(),
        builder.embedding("embedding_forward", tables),
        builder.interaction("forward"),
        *builder.top_forward(),
        builder.loss(),
        *builder.top_backward(),
        builder.interaction("backward"),
        builder.embedding("embedding_update", tables if update is None else update),
        *builder.bottom_backward(),
        builder.other(),
    ]


class _Builder:
    """Passes of one model."""

    def __init__(self, model: Model) -> None:
        self.model, self.samples, self.width = model, model.minibatch, element_bytes(model)
        self.index_bytes = 4 if model.index_dtype == "int32" else 8

    def _sizes(self, side: str) -> tuple[int, ...]:
        return self.model.bottom_mlp if side == "bottom" else self.model.top_sizes

    def _activation(self, side: str, i: int, gradient: bool = False) -> Touch:
        """What lies below layer `i`: its input."""
        sizes, prefix = self._sizes(side), "d_" if gradient else ""
        if side == "bottom" and i == len(sizes) - 1:
            return Touch(f"{prefix}dense_vector", self.samples * sizes[i] * FLOAT_BYTES)
        return Touch(f"{prefix}{side}.{i}", self.samples * sizes[i] * FLOAT_BYTES)

    def layer(self, side: str, i: int, which: LayerPassKind) -> PassShape:
        sizes = self._sizes(side)
        n, c, k = self.samples, sizes[i], sizes[i + 1]
        key, weight = f"{side}_mlp.{i}", c * k
        x, y = self._activation(side, i), self._activation(side, i + 1)
        dx, dy = self._activation(side, i, True), self._activation(side, i + 1, True)
        forward, backward = Touch(f"{key}.pf", weight * self.width), Touch(f"{key}.pb", weight * self.width)
        weights, packed = Touch(f"{key}.w", weight * FLOAT_BYTES), (forward, backward)
        masked = which == "backward_data" and i > 0
        touches = {
            "forward": (x, forward, y),
            "backward_data": (dy, backward, *((x,) if masked else ()), dx),
            "backward_weights": (dy, x, weights, *packed),
        }[which]
        operator = LayerPass("", which, n, c, k, "relu", masked, self.model.dtype, self.model.optimizer)
        last_bottom = side == "bottom" and which == "backward_weights" and i == len(sizes) - 2
        size = {"samples": float(n), "inputs": float(c), "outputs": float(k), "mask": float(n * k) if last_bottom else 0.0}
        size["masked"] = float(masked)
        return PassShape(f"{key}.{which}", which, operator.work(), touches, size)

    def bottom_forward(self) -> Iterator[PassShape]:
        for i in range(len(self.model.bottom_mlp) - 1):
            yield self.layer("bottom", i, "forward")

    def top_forward(self) -> Iterator[PassShape]:
        for i in range(len(self.model.top_mlp)):
            yield self.layer("top", i, "forward")

    def top_backward(self) -> Iterator[PassShape]:
        for i in reversed(range(len(self.model.top_mlp))):
            yield self.layer("top", i, "backward_data")
            yield self.layer("top", i, "backward_weights")

    def bottom_backward(self) -> Iterator[PassShape]:
        for i in reversed(range(len(self.model.bottom_mlp) - 1)):
            if i > 0:
                yield self.layer("bottom", i, "backward_data")
            yield self.layer("bottom", i, "backward_weights")

    def embedding(self, kind: Literal["embedding_forward", "embedding_update"], tables: Sequence[TableShare]) -> PassShape:
        """Both passes as `ops.embedding_bag` counts them, with expected numbers of distinct rows."""
        gather = kind == "embedding_forward"
        # Split bf16: the update joins the lower halves of the weights to the upper ones; row-wise Adagrad keeps a float a row.
        wide = 2 if self.model.dtype == "bf16" and not gather else 1
        rows = tuple(
            RowAccess(one.row_bytes * wide, round(one.lookups), max(round(one.unique), min(1, round(one.lookups))), one.table_bytes * wide)
            for one in tables
        )
        unique_bytes = sum(one.unique * one.row_bytes * wide for one in tables)
        stated = 0.0 if gather or self.model.optimizer == "sgd" else sum(one.unique for one in tables)
        state = FLOAT_BYTES * stated
        pooled = sum(one.bags * one.row_bytes for one in tables) * FLOAT_BYTES / self.width
        indices = sum(one.lookups + one.bags for one in tables) * self.index_bytes
        elements = sum(one.lookups * one.row_bytes for one in tables) / self.width
        work = Work(
            flops=round(elements if gather else 2 * elements),
            bytes_read=round(unique_bytes + indices + (0 if gather else pooled + state)),
            bytes_written=round(pooled if gather else unique_bytes + state),
            access="gather" if gather else "scatter",
            rows=rows,
            parallel_regions=2,
        )
        touches = (Touch("indices", indices), Touch(ROWS, unique_bytes), Touch("features" if gather else "d_features", pooled))
        lookups, bags = sum(one.lookups for one in tables), sum(one.bags for one in tables)
        size = {
            "lookups": lookups,
            "bags": float(bags),
            "row_bytes": float(np.mean([one.row_bytes for one in tables])) * wide if tables else 0.0,
            "table_bytes": float(np.mean([one.table_bytes for one in tables])) * wide if tables else 0.0,
            "pooling": lookups / bags if bags else 0.0,
            "hottest": max((one.popularity.hottest for one in tables), default=0.0),
            "state": _LINE_BYTES * stated,
        }
        key = embedding_bag.FORWARD if gather else embedding_bag.UPDATE
        return PassShape(key, kind, work, touches, size, tuple(tables))

    def interaction(self, direction: Literal["forward", "backward"]) -> PassShape:
        n, f, e = self.samples, self.model.num_features, self.model.embedding_dim
        work = interaction.Interaction(direction, n, f, e).work()
        tables, results = FLOAT_BYTES * n * (f - 1) * e, FLOAT_BYTES * n * (e + interaction.pairs(f))
        features, dense = Touch("features", tables), Touch("dense_vector", n * e * FLOAT_BYTES)
        results_touch = Touch("top.0", results) if direction == "forward" else Touch("d_top.0", results)
        touches: tuple[Touch, ...] = (features, dense, results_touch)
        if direction == "backward":
            touches += (Touch("d_features", tables), Touch("d_dense_vector", n * e * FLOAT_BYTES))
        kind: Kind = "interaction_forward" if direction == "forward" else "interaction_backward"
        return PassShape(f"interaction.{direction}", kind, work, touches, {"samples": float(n), "features": float(f), "dim": float(e)})

    def loss(self) -> PassShape:
        n = self.samples
        return PassShape(loss.KEY, "loss", loss.Loss(n).work(), (), {"samples": float(n)})

    def other(self) -> PassShape:
        layers = len(self.model.bottom_mlp) - 1 + len(self.model.top_mlp)
        size = {"passes": 3.0 * layers + 4, "samples": float(self.samples)}
        return PassShape(OTHER, "other", Work(0, 0, 0, parallel_regions=0), (), size)


@dataclass(frozen=True)
class Residence:
    """Where the bytes of a pass are found."""

    memory_bytes: float
    shared_bytes: float
    """In the last-level cache, outside the cores' own."""
    rows_kept: float
    """Share of the rows, of all that it touches first, that are still in the last-level cache."""


_WALKS = 6
"""Steps until what a cache holds at one place of a step hardly changes from one step to the next."""


def residences(passes: Sequence[PassShape], own_bytes: float, shared_bytes: float) -> list[Residence]:
    """For every pass of a step in the steady state: where its arrays are found.

    Args:
        own_bytes: Of all cores' own caches together.
        shared_bytes: Of the last level.
    """
    own, shared = _Cache(own_bytes), _Cache(shared_bytes)
    found: list[Residence] = []
    for _ in range(_WALKS):
        found = []
        for one in passes:
            memory = far = kept = 0.0
            for touch in one.touches:
                in_shared = shared.held(touch.name)
                if touch.name == ROWS:
                    kept = in_shared
                else:
                    memory += touch.size_bytes * (1 - in_shared)
                    far += touch.size_bytes * max(0.0, in_shared - own.held(touch.name))
            found.append(Residence(memory, far, kept))
            sizes = {touch.name: touch.size_bytes for touch in one.touches}
            # Rows and pooled vectors are touched in turns, other arrays one after another.
            for together in [sizes] if one.tables else [{name: size} for name, size in sizes.items()]:
                own.touch(together)
                shared.touch(together)
    return found


class _Cache:
    """What a cache still holds of arrays: after `d` bytes were fetched into it, exp(-d / capacity) of what was there before. That is random
    replacement, which hashed sets, and a last level shared with strangers, come near. What all fits is never driven out.

    Args:
        capacity_bytes: Of the cache.
    """

    def __init__(self, capacity_bytes: float) -> None:
        self._capacity_bytes = max(capacity_bytes, 1.0)
        self._touched: list[tuple[dict[str, float], float]] = []
        """Arrays touched together, in the order of their last touch, and what had to be fetched of them."""

    def held(self, name: str) -> float:
        """Share of an array."""
        since = 0.0
        for together, fetched_bytes in reversed(self._touched):
            passed = fetched_bytes / self._capacity_bytes
            if name in together:  # its first elements saw all of what was fetched beside them, its last ones nothing
                return math.exp(-since) * (-math.expm1(-passed) / passed if passed > 1e-9 else 1.0)
            since += passed
        return 0.0

    def touch(self, together: dict[str, float]) -> None:
        """Touch arrays, by name their bytes, element by element in turns."""
        fetched_bytes = sum(size * (1 - self.held(name)) for name, size in together.items())
        for earlier, _ in self._touched:
            for name in together:
                earlier.pop(name, None)
        while self._touched and not self._touched[0][0]:  # nobody asks what came before
            self._touched.pop(0)
        self._touched.append((dict(together), fetched_bytes))
