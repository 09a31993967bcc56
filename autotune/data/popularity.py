"""How look-ups meet rows: distinct rows of a batch, and how many of them a cache has to fetch. From the distribution alone, no table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from autotune.config.model import Model

FloatArray = npt.NDArray[np.float64]

# Zipf: the hottest ranks one by one, the rest as an integral over bins of equal ratio. Against the sum over all ranks the distinct rows
# differ by less than 1e-8 of it (2 to 3e6 rows, alpha 0.2 to 3, 1 to 1e6 look-ups).
_HOT_RANKS = 1024
_TAIL_BINS = 128
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(4)
_BISECTIONS = 50


def distinct(rows: float, lookups: float) -> float:
    """Expected distinct rows of uniform look-ups: R (1 - (1 - 1/R)^L)."""
    return rows if rows <= 1 else -rows * math.expm1(lookups * math.log1p(-1.0 / rows))


@dataclass(frozen=True, eq=False)
class Popularity:
    """Rows by how likely one look-up meets them: `count` rows of probability `share` each, hottest first."""

    share: FloatArray
    count: FloatArray
    _known: dict[tuple[float, float], float] = field(default_factory=dict, repr=False)

    @property
    def hottest(self) -> float:
        """Share of the look-ups that meet the hottest row."""
        return float(self.share[0])

    def distinct(self, lookups: float) -> float:
        """Expected distinct rows of `lookups` independent ones: sum_k n_k (1 - (1 - p_k)^L)."""
        return float(np.sum(self.count * self._met(lookups)))

    def misses(self, lookups: float, capacity: float) -> float:
        """Look-ups that a cache of `capacity` rows, empty at first and replacing the least recently used, has to fetch.

        The cache is full after T look-ups, where T meets `capacity` distinct rows; from then on it hits a row that was met among the
        last T. Misses: U(L) where U(L) fits, else capacity + (L - T) sum_k n_k p_k (1 - p_k)^T.

        Source: H. Che, Y. Tung, Z. Wang, Hierarchical Web caching systems, IEEE JSAC 20(7), 2002.
        """
        key = (lookups, capacity)
        if key not in self._known:
            self._known[key] = self._misses(lookups, capacity)
        return self._known[key]

    def _misses(self, lookups: float, capacity: float) -> float:
        met = self.distinct(lookups)
        if met <= capacity:
            return met
        low, high = 0.0, lookups
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.distinct(middle) < capacity else (low, middle)
        hit = float(np.sum(self.count * self.share * self._met(high)))
        return min(lookups, max(met, capacity + (lookups - high) * max(0.0, 1.0 - hit)))

    def _met(self, lookups: float) -> FloatArray:
        with np.errstate(divide="ignore"):
            met: FloatArray = -np.expm1(lookups * np.log1p(-np.minimum(self.share, 1.0)))
        return met


@lru_cache(maxsize=4096)
def uniform(rows: int) -> Popularity:
    """Every row alike."""
    return Popularity(np.array([1.0 / rows]), np.array([float(rows)]))


@lru_cache(maxsize=4096)
def zipf(rows: int, alpha: float) -> Popularity:
    """Rank k with p_k = k^-alpha / sum_j j^-alpha. Time does not depend on `rows`: ranks past the hottest are integrated over log-spaced
    bins, by Gauss's rule from K + 1/2 to R + 1/2."""
    hot = np.arange(1.0, min(rows, _HOT_RANKS) + 1)
    weights = np.ones_like(hot)
    if rows > _HOT_RANKS:
        edges = np.linspace(math.log(_HOT_RANKS + 0.5), math.log(rows + 0.5), _TAIL_BINS + 1)
        half = (edges[1] - edges[0]) / 2
        tail = np.exp(((edges[:-1] + half)[:, None] + half * _NODES).ravel())
        hot, weights = np.concatenate([hot, tail]), np.concatenate([weights, np.tile(half * _WEIGHTS, _TAIL_BINS) * tail])
    share = np.exp(-alpha * np.log(hot))
    return Popularity(share / np.sum(weights * share), weights)


@lru_cache(maxsize=65536)
def distinct_zipf(rows: int, lookups: float, alpha: float) -> float:
    """Expected distinct rows of Zipf look-ups."""
    if rows <= 1 or lookups <= 0:
        return float(rows if lookups > 0 else 0)
    return min(zipf(rows, alpha).distinct(lookups), float(rows), max(lookups, 1.0))


def counted(counts: npt.NDArray[np.int64], rows: int) -> Popularity:
    """From how often each distinct row of one sampled batch is met; rows that the sample did not meet are left out."""
    times, count = np.unique(counts, return_counts=True)
    total = float(counts.sum())
    return Popularity(times[::-1] / total, count[::-1].astype(np.float64)) if total else uniform(rows)


def popularity(model: Model, t: int) -> Popularity | SampledPopularity:
    """Popularity of the rows of table `t`: closed forms for uniform and Zipf; of histograms and files one batch is sampled."""
    data, rows = model.data, model.tables[t].rows
    if data.distribution == "zipf" and data.alpha is not None:
        return zipf(rows, data.alpha)
    if data.distribution in ("histogram", "criteo"):
        return SampledPopularity(model, t)
    return uniform(rows)


@dataclass(frozen=True, eq=False)
class SampledPopularity:
    """The popularity of one table's rows in a batch of the model's own data, drawn when it is first asked for: training never asks."""

    model: Model
    table: int

    @cached_property
    def _seen(self) -> Popularity:
        return _sampled(self.model)[self.table]

    @property
    def hottest(self) -> float:
        return self._seen.hottest

    def distinct(self, lookups: float) -> float:
        return self._seen.distinct(lookups)

    def misses(self, lookups: float, capacity: float) -> float:
        return self._seen.misses(lookups, capacity)


_SAMPLES: dict[str, tuple[Popularity, ...]] = {}


def _sampled(model: Model) -> tuple[Popularity, ...]:
    """From one batch of the model's own source, kept by the model's hash."""
    key = model.hash()
    if key not in _SAMPLES:
        from autotune.data.batches import make_source  # brings torch, which closed forms do without

        batch, samples = make_source(model).batch(0), model.minibatch
        ends = batch.offsets[::samples].tolist()
        popularities = []
        for table, (low, high) in zip(model.tables, pairwise(ends), strict=True):
            counts = np.unique(batch.indices[low:high].numpy(), return_counts=True)[1].astype(np.int64)
            popularities.append(counted(counts, table.rows))
        _SAMPLES[key] = tuple(popularities)
    return _SAMPLES[key]
