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
_NEWTON_STEPS = 60


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
        return float(np.sum(self.count * -np.expm1(lookups * self._log_missed)))

    def misses(self, lookups: float, capacity: float) -> float:
        """Look-ups that a cache of `capacity` rows, empty at first and replacing the least recently used, has to fetch.

        The cache is full after T look-ups, where T meets `capacity` distinct rows; from then on it hits a row that was met among the
        last T. Misses: U(L) where U(L) fits, else capacity + (L - T) (1 - h), h the share of look-ups that hit (`_hits`).

        Source: H. Che, Y. Tung, Z. Wang, Hierarchical Web caching systems, IEEE JSAC 20(7), 2002.
        """
        key = (lookups, capacity)
        if key not in self._known:
            met = self.distinct(lookups)
            if met > capacity:
                full = min(lookups, self._filled(capacity))
                met = min(lookups, max(met, capacity + (lookups - full) * max(0.0, 1.0 - self._hits(full))))
            self._known[key] = met
        return self._known[key]

    def _filled(self, capacity: float) -> float:
        """Look-ups that meet `capacity` distinct rows. Newton's method from below: distinct rows are concave in the look-ups, so that no
        step passes the root."""
        lookups = capacity
        for _ in range(_NEWTON_STEPS):
            step = (capacity - self.distinct(lookups)) / max(self._new_rows(lookups), 1e-300)
            lookups += step
            if step <= 1e-9 * lookups:
                break
        return lookups

    def _new_rows(self, lookups: float) -> float:
        """Share of the look-ups that meet a new row after `lookups`: the derivative of `distinct`."""
        return float(np.sum(-self.count * self._log_missed * np.exp(lookups * self._log_missed)))

    def _hits(self, window: float) -> float:
        """Share of the look-ups whose row was met among the `window` before: sum_k n_k p_k (1 - (1 - p_k)^W)."""
        return float(np.sum(self.count * self.share * -np.expm1(window * self._log_missed)))

    @cached_property
    def _log_missed(self) -> FloatArray:
        """log(1 - p) of each row; finite for a row that every look-up meets."""
        log_missed: FloatArray = np.log1p(-np.minimum(self.share, 1.0 - 1e-16))
        return log_missed


@dataclass(frozen=True, eq=False)
class CountedPopularity(Popularity):
    """Rows of one batch by how often it met them: `count` rows in `share` of its look-ups each.

    Expectations are over parts of the batch drawn without replacement, so that the whole batch has the distinct rows that it had.
    """

    lookups: float = 0.0
    """Look-ups of the batch."""
    rows: float = 0.0
    """Rows of the table."""

    @property
    def _times(self) -> FloatArray:
        return self.share * self.lookups

    def distinct(self, lookups: float) -> float:
        """sum_c n_c (1 - (1 - L / T)^c) of the batch's T look-ups; beyond them new rows are met as often as in its last tenth."""
        if lookups > self.lookups:
            everything = self.distinct(self.lookups)
            tenths = 10.0 * (lookups / self.lookups - 1.0)
            return min(self.rows, everything + tenths * (everything - self.distinct(0.9 * self.lookups)))
        return float(np.sum(self.count * (1.0 - (1.0 - lookups / self.lookups) ** self._times)))

    def _filled(self, capacity: float) -> float:
        return self.lookups if capacity >= float(np.sum(self.count)) else super()._filled(capacity)

    def _new_rows(self, lookups: float) -> float:
        left = max(0.0, 1.0 - lookups / self.lookups)
        return float(np.sum(self.count * self.share * left ** (self._times - 1.0)))

    def _hits(self, window: float) -> float:
        """A look-up's row hits where one of its other look-ups lies in the window."""
        left = max(0.0, 1.0 - window / self.lookups)
        return float(np.sum(self.count * self.share * (1.0 - left ** (self._times - 1.0))))


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
        nodes, node_weights = np.polynomial.legendre.leggauss(4)
        tail = np.exp(((edges[:-1] + half)[:, None] + half * nodes).ravel())
        hot, weights = np.concatenate([hot, tail]), np.concatenate([weights, np.tile(half * node_weights, _TAIL_BINS) * tail])
    share = np.exp(-alpha * np.log(hot))
    return Popularity(share / np.sum(weights * share), weights)


def counted(counts: npt.NDArray[np.int64], rows: int) -> Popularity:
    """From how often one batch met each of its distinct rows; uniform where it met none."""
    times, count = np.unique(counts, return_counts=True)
    total = float(counts.sum())
    return CountedPopularity(times[::-1] / total, count[::-1].astype(float), lookups=total, rows=rows) if total else uniform(rows)


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
_MOST_LOOKUPS = 4_000_000
"""Look-ups that are counted: a second or two, and under 100 MB. Of larger minibatches the first samples are."""


def _sampled(model: Model) -> tuple[Popularity, ...]:
    """From one batch of the model's own source, kept by the model's hash."""
    key = model.hash()
    if key not in _SAMPLES:
        from autotune.data.batches import make_source  # brings torch, which closed forms do without

        lookups = model.minibatch * sum(table.pooling for table in model.tables)
        samples = max(1, round(model.minibatch * min(1.0, _MOST_LOOKUPS / max(lookups, 1.0))))
        batch = make_source(model, minibatch=samples).batch(0)
        ends = batch.offsets[::samples].tolist()
        popularities = []
        for table, (low, high) in zip(model.tables, pairwise(ends), strict=True):
            counts = np.unique(batch.indices[low:high].numpy(), return_counts=True)[1].astype(np.int64)
            popularities.append(counted(counts, table.rows))
        _SAMPLES[key] = tuple(popularities)
    return _SAMPLES[key]
