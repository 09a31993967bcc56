"""Batches to train on: drawn from a distribution, or read from Criteo rows; the same seed and number give the same batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from autotune.config.model import DataSpec, Model, Table
from autotune.data.categories import TABLES, mapping_of
from autotune.data.criteo import DENSE_FEATURES, CriteoFile
from autotune.data.distributions import IndexDistribution, Reuse, Scatter, Uniform, Zipf, read_histogram
from autotune.data.prepared import PREPARED_SUFFIX, PreparedFile
from autotune.errors import InputError

# First word of every random stream's seed: batches and row scatterings never share one.
_BATCH_STREAM, _TABLE_STREAM, _SCATTER_STREAM = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Batch:
    """One minibatch of N samples, D dense features and T tables: contiguous CPU tensors."""

    dense: torch.Tensor
    """float32 [N, D]."""
    indices: torch.Tensor
    """int32 or int64 [look-ups]: rows looked up, all tables one after the other."""
    offsets: torch.Tensor
    """Same dtype, [T * N + 1]: the bag of table t and sample n, b = t * N + n, spans ``offsets[b]:offsets[b + 1]``."""
    labels: torch.Tensor
    """float32 [N]: 0 or 1."""


class BatchSource(Protocol):
    """Gives any batch by its number."""

    has_labels: bool
    """Whether the labels are real, so that a loss or an AUC means something."""
    description: str
    """Where the data comes from, for people."""

    @property
    def mapping(self) -> str | None:
        """How categories became rows of the tables, by the name that a checkpoint keeps; None where indices are drawn."""

    def rows_within(self, limit: int | None) -> int | None:
        """Samples there are before they repeat, at most `limit`; None where they never do. A file is read as far for that."""

    def batch(self, i: int) -> Batch:
        """Batch `i` (0 or more): always the same for one source and seed, in whatever order batches are asked for."""


def make_source(
    model: Model,
    spec: DataSpec | None = None,
    minibatch: int | None = None,
    seed: int | None = None,
    *,
    scatter: bool = True,
    histogram: str | None = None,
) -> BatchSource:
    """The source of batches for `model`.

    Args:
        model: gives tables, dense features and index dtype, and the defaults of the next three.
        spec: distribution of the indices.
        minibatch: samples per batch.
        seed: of generated data; 0 or more.
        scatter: Zipf only: hot rows lie anywhere in a table; False leaves them side by side at its front.
        histogram: name of a block in a histogram file; None takes the first.

    Raises:
        InputError: a file is missing, unreadable or malformed, it does not fit the model, or a number is out of its range.
    """
    spec = model.data if spec is None else spec
    minibatch = model.minibatch if minibatch is None else minibatch
    seed = model.seed if seed is None else seed
    if minibatch < 1:
        raise InputError(f"minibatch must be positive, got {minibatch} (model {model.name}); set it to 1 or more")
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed} (model {model.name}); set it to 0 or more")
    if spec.distribution == "criteo":
        return CriteoSource(model, spec, minibatch)
    table_distribution, name = _synthetic(spec, seed, scatter, histogram)
    distributions = tuple(table_distribution(t, table.rows) for t, table in enumerate(model.tables))
    return SyntheticSource(model, distributions, spec.pooling_kind == "varying", minibatch, seed, name)


def _path(spec: DataSpec) -> str:
    if spec.path is None:
        raise InputError(f"a {spec.distribution} distribution reads a file, got none (data.path); set path to that file")
    return spec.path


def _synthetic(spec: DataSpec, seed: int, scatter: bool, block: str | None) -> tuple[Callable[[int, int], IndexDistribution], str]:
    """Table number and rows to the distribution of that table; and the name of it all."""
    if spec.distribution == "uniform":
        return lambda _, rows: Uniform(rows), "uniform indices"
    if spec.distribution == "zipf":
        alpha = spec.alpha or 0.0

        def zipf(t: int, rows: int) -> Zipf:
            return Zipf(rows, alpha, Scatter(rows, _rng(_SCATTER_STREAM, 0, t, seed)) if scatter else None)

        return zipf, f"Zipf({alpha:g}) indices, hot rows {'scattered' if scatter else 'side by side'}"
    path = _path(spec)
    reuse = read_histogram(path, block)
    return lambda _, rows: Reuse(rows, reuse), f"indices re-used as in {reuse.name} ({Path(path).name})"


def _rng(stream: int, i: int, t: int, seed: int) -> np.random.Generator:
    return np.random.default_rng((stream, i, t, seed))


class SyntheticSource:
    """Drawn batches: indices by one distribution per table, standard normal dense features, labels by the toss of a coin.

    A whole pooling factor of a fixed kind gives every bag that many look-ups. Otherwise bag lengths are Poisson with that mean, so
    bags may be empty.
    """

    has_labels = False
    mapping: str | None = None

    def __init__(
        self, model: Model, distributions: tuple[IndexDistribution, ...], varying: bool, minibatch: int, seed: int, description: str
    ) -> None:
        self.description = description
        self._model, self._distributions = model, distributions
        self._varying, self._minibatch, self._seed = varying, minibatch, seed

    def rows_within(self, limit: int | None) -> int | None:
        """None, see `BatchSource`."""

    def batch(self, i: int) -> Batch:
        """Batch `i`, see `BatchSource`.

        Raises:
            InputError: more look-ups than the model's index dtype can count.
        """
        n, tables = self._minibatch, self._model.tables
        rngs = [_rng(_TABLE_STREAM, i, t, self._seed) for t in range(len(tables))]
        lengths = np.stack([self._lengths(table, rng) for table, rng in zip(tables, rngs, strict=True)])
        offsets = np.zeros(lengths.size + 1, dtype=np.int64)
        np.cumsum(lengths.ravel(), out=offsets[1:])
        dtype = np.dtype(self._model.index_dtype)
        if offsets[-1] > np.iinfo(dtype).max:
            rule = f"{dtype} offsets count up to {np.iinfo(dtype).max} look-ups per batch"
            raise InputError(f"{rule}, got {offsets[-1]} (model {self._model.name}); set index_dtype: int64 or a smaller minibatch")
        indices = np.empty(offsets[-1], dtype=dtype)
        for t, (distribution, rng) in enumerate(zip(self._distributions, rngs, strict=True)):
            start, end = int(offsets[t * n]), int(offsets[(t + 1) * n])
            indices[start:end] = distribution.draw(rng, end - start)
        rng = _rng(_BATCH_STREAM, i, 0, self._seed)
        dense = rng.standard_normal((n, self._model.dense_features), dtype=np.float32)
        labels = rng.integers(0, 2, size=n).astype(np.float32)
        return _batch(dense, indices, offsets.astype(dtype, copy=False), labels)

    def _lengths(self, table: Table, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Look-ups of every bag of one table: [N]."""
        if self._varying or not table.pooling.is_integer():
            return rng.poisson(table.pooling, size=self._minibatch).astype(np.int64, copy=False)
        return np.full(self._minibatch, int(table.pooling), dtype=np.int64)


class CriteoSource:
    """Rows of a Criteo file in their order, N at a time; after the last row it begins again with the first.

    Every category is one look-up, whatever pooling factor the model gives its tables.
    """

    has_labels = True

    def __init__(self, model: Model, spec: DataSpec, minibatch: int) -> None:
        if model.dense_features != DENSE_FEATURES or model.num_tables != TABLES:
            rule = f"Criteo rows need bottom_mlp to begin with {DENSE_FEATURES} and {TABLES} tables"
            got = f"{model.dense_features} and {model.num_tables}"
            raise InputError(f"{rule}, got {got} (model {model.name}); take a model of that shape, such as mlperf-1m, or other data")
        path, table_rows = _path(spec), [table.rows for table in model.tables]
        prepared = path.endswith(PREPARED_SUFFIX)
        mapping = mapping_of(spec, prepared)
        self._file = PreparedFile(path, table_rows, mapping) if prepared else CriteoFile(path, table_rows, mapping)
        self._minibatch = minibatch
        self._dtype = np.dtype(model.index_dtype)
        self.mapping: str | None = mapping.name
        how = "as row numbers" if mapping.how == "rows" else f"by {mapping.name}" if mapping.dictionaries else mapping.how
        self.description = f"Criteo rows, {self._file.layout}, {how} ({Path(path).name})"

    def rows_within(self, limit: int | None) -> int:
        """Rows of the file, see `BatchSource`."""
        return self._file.count_within(limit)

    def batch(self, i: int) -> Batch:
        """Batch `i`, see `BatchSource`.

        Raises:
            InputError: a row is malformed; file, line, column and value are named.
        """
        rows = self._file.rows(i * self._minibatch, self._minibatch)
        offsets = np.arange(rows.indices.size + 1, dtype=self._dtype)
        return _batch(rows.dense, rows.indices.astype(self._dtype).ravel(), offsets, rows.labels)


def _batch(
    dense: npt.NDArray[np.float32],
    indices: npt.NDArray[np.signedinteger],
    offsets: npt.NDArray[np.signedinteger],
    labels: npt.NDArray[np.float32],
) -> Batch:
    return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in (dense, indices, offsets, labels)))
