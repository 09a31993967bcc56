"""Which rows of a table a batch looks up: uniform, Zipf, or a published reuse histogram."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from autotune.errors import InputError

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

OPEN_BIN_FACTOR = 2
"""A histogram's open last bin ``(a+`` is read as ``(a, 2a]``: one more doubling, like every bin below it."""


class IndexDistribution(Protocol):
    """Draws the look-ups of one table."""

    def draw(self, rng: np.random.Generator, size: int) -> Int64Array:
        """`size` row numbers in ``[0, rows)``, in the order in which they fill the bags."""


class Scatter:
    """A seeded bijection of ``[0, rows)`` onto itself that leaves no neighbours together; nothing of the size of the table is stored.

    Rounds of odd multiplication, addition and xor-shift permute the smallest power of two that holds `rows`; a value that
    lands at or above `rows` is sent round again until it falls below (cycle walking), which keeps the map one-to-one.

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002 (cycle walking).
    """

    def __init__(self, rows: int, rng: np.random.Generator) -> None:
        bits = max(1, (rows - 1).bit_length())
        self.rows = rows
        self._mask = np.uint64((1 << bits) - 1)
        self._shift = np.uint64(max(1, bits // 2))
        keys = rng.integers(0, 2**63, size=(3, 2), dtype=np.uint64)
        self._rounds = [(multiplier | np.uint64(1), addend) for multiplier, addend in keys]

    def __call__(self, values: Int64Array) -> Int64Array:
        """Image of `values`, each in ``[0, rows)``."""
        out = self._permute(values.astype(np.uint64))
        outside = np.flatnonzero(out >= self.rows)
        while outside.size:
            walked = self._permute(out[outside])
            out[outside] = walked
            outside = outside[walked >= self.rows]
        return out.view(np.int64)

    def _permute(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        for multiplier, addend in self._rounds:
            x = (x * multiplier + addend) & self._mask
            x ^= x >> self._shift
        return x


@dataclass(frozen=True)
class Uniform:
    """Every row equally likely, draws independent."""

    rows: int

    def draw(self, rng: np.random.Generator, size: int) -> Int64Array:
        return rng.integers(0, self.rows, size=size, dtype=np.int64)


@dataclass(frozen=True)
class Zipf:
    """Rank k (1 is the hottest) drawn with probability ``k**-alpha / sum_j j**-alpha``, for any alpha >= 0."""

    rows: int
    alpha: float
    scatter: Scatter | None = None
    """Rank to row; None keeps the hot rows side by side at the front of the table."""

    def draw(self, rng: np.random.Generator, size: int) -> Int64Array:
        ranks = zipf_ranks(rng, self.rows, self.alpha, size)
        return ranks if self.scatter is None else self.scatter(ranks)


def zipf_ranks(rng: np.random.Generator, rows: int, alpha: float, size: int) -> Int64Array:
    """Exact draws of bounded Zipf ranks, 0 the hottest; time and memory per draw do not depend on `rows`.

    Rejection-inversion: with ``H(x)`` an antiderivative of the hat ``x**-alpha``, a uniform u in ``(H(1.5) - 1, H(rows + 0.5)]`` gives
    ``x = H^-1(u)`` and ``k = round(x)``; k stands when ``u >= H(k + 0.5) - k**-alpha``, which ``k - x <= c`` implies and spares computing.

    Args:
        rows: number of ranks.
        alpha: exponent, 0 (uniform) or more.
        size: draws.

    Returns:
        int64 [size], each in ``[0, rows)``.

    Source: Hörmann and Derflinger, Rejection-inversion to generate variates from monotone discrete distributions, 1996.
    """
    q = 1.0 - alpha

    def hat_integral(x: FloatArray) -> FloatArray:
        log_x = np.log(x)
        return log_x if q == 0 else np.expm1(q * log_x) / q

    def inverse(u: FloatArray) -> FloatArray:
        return np.exp(u if q == 0 else np.log1p(np.maximum(q * u, -1.0)) / q)

    out = np.empty(size, dtype=np.int64)
    with np.errstate(divide="ignore", over="ignore"):
        low, second, high = hat_integral(np.array([1.5, 2.5, rows + 0.5]))
        low -= 1.0
        squeeze = 2.0 - inverse(np.array([second - 2.0**-alpha]))[0]
        open_slots = np.arange(size)
        while open_slots.size:
            u = high + rng.random(open_slots.size) * (low - high)
            x = inverse(u)
            k = np.clip(np.rint(x), 1, rows)
            accepted = k - x <= squeeze
            doubtful = np.flatnonzero(~accepted)
            accepted[doubtful] = u[doubtful] >= hat_integral(k[doubtful] + 0.5) - k[doubtful] ** -alpha
            out[open_slots[accepted]] = k[accepted].astype(np.int64) - 1
            open_slots = open_slots[~accepted]
    return out


@dataclass(frozen=True)
class ReuseHistogram:
    """How often a distinct row is used within one batch, as Meta published it for its embedding tables.

    The published file calls the number of times that one distinct row (a "col") is looked up within one batch its col size.
    Of every block two tables are read, over the same bins ``(low, high]``: the share of distinct rows in a bin ("Histogram of col
    sizes") and the share of look-ups that go to those rows ("Ratio of index distribution").

    Source: github.com/facebookresearch/dlrm_datasets (embedding_bag traces of 2021 and 2022, locality statistics).
    """

    name: str
    """First line of the block."""
    average_reuse: float
    """Look-ups per distinct row."""
    bins: tuple[tuple[int, int], ...]
    """``(low, high]`` of each bin, uses of a row within one batch."""
    row_share: tuple[float, ...]
    """Share of the distinct rows in each bin, as printed."""
    lookup_share: tuple[float, ...]
    """Share of the look-ups in each bin, as printed."""

    @cached_property
    def bin_means(self) -> FloatArray:
        """Mean reuse count of each bin when drawn log-uniformly: ``sum_k k ln(k / (k-1)) / ln(high / low)`` over ``low < k <= high``."""
        means = []
        for low, high in self.bins:
            k = np.arange(max(low, 1) + 1, high + 1, dtype=np.float64)
            means.append(float(np.sum(k * np.log(k / (k - 1))) / math.log(high / low)) if low else (1 + high) / 2)
        return np.array(means)

    @cached_property
    def row_probability(self) -> FloatArray:
        """Probability that a distinct row falls in each bin, sum 1.

        Both tables are printed to three decimals, so the hot bins read 0.000 by rows although they serve most look-ups. Of each bin
        the table with the larger printed value, hence the smaller rounding error, is believed: the row share itself, or
        look-up share x average reuse / mean reuse in the bin.
        """
        rows, lookups = np.array(self.row_share), np.array(self.lookup_share)
        probability = np.where(rows >= lookups, rows, lookups * self.average_reuse / self.bin_means)
        return np.asarray(probability / probability.sum())

    def sample(self, rng: np.random.Generator, total: int) -> Int64Array:
        """Reuse counts of distinct rows, independent draws until they sum to `total` look-ups; the last one is cut to fit.

        A bin is drawn by `row_probability`, the count within it log-uniformly.

        Returns:
            int64 [distinct rows], each at least 1, sum `total`.
        """
        cumulative = np.cumsum(self.row_probability)
        low = np.array([max(low, 1) for low, _ in self.bins], dtype=np.float64)
        high = np.array([high for _, high in self.bins], dtype=np.float64)
        single = np.array([low == 0 for low, _ in self.bins])
        parts, missing = [np.empty(0, dtype=np.int64)], total
        while missing > 0:
            draws = int(missing / self.average_reuse) + 16
            b = np.minimum(np.searchsorted(cumulative, rng.random(draws), side="right"), len(self.bins) - 1)
            u = rng.random(draws)
            inside = np.ceil(low[b] * (high[b] / low[b]) ** u)
            counts = np.where(single[b], np.ceil(u * high[b]), np.maximum(inside, low[b] + 1)).astype(np.int64)
            counts = np.clip(counts, 1, missing)
            sums = np.cumsum(counts)
            keep = int(np.searchsorted(sums, missing)) + 1
            counts = counts[:keep]
            if keep <= draws:
                counts[-1] -= sums[keep - 1] - missing
            parts.append(counts)
            missing -= int(counts.sum())
        return np.concatenate(parts)


@dataclass(frozen=True)
class Reuse:
    """Rows re-used within a batch as a `ReuseHistogram` says: distinct rows uniform, their look-ups shuffled over the bags.

    Every batch draws its hot rows anew. Where a table has fewer rows than the histogram wants distinct ones, rows take
    several of its counts, so that the number of look-ups stands and the reuse is higher.
    """

    rows: int
    histogram: ReuseHistogram

    def draw(self, rng: np.random.Generator, size: int) -> Int64Array:
        counts = self.histogram.sample(rng, size)
        if counts.size > self.rows:
            counts = np.bincount(np.arange(counts.size) % self.rows, weights=counts).astype(np.int64)
        distinct = Scatter(self.rows, rng)(np.arange(counts.size, dtype=np.int64))
        indices = np.repeat(distinct, counts)
        rng.shuffle(indices)
        return indices


_AVERAGE = re.compile(r"Avg (# of indices|# of unique cols|col size):\s*(\S+)\s*$")
_BIN = re.compile(r"\((\d+)(?:,\s*(\d+)\]|\+):\s*(\S+)\s*$")
_TABLES = {"Histogram of col sizes:": "rows", "Ratio of index distribution at different column sizes:": "lookups"}


def read_histograms(path: str | Path) -> tuple[ReuseHistogram, ...]:
    """All blocks of a file of locality statistics, in its order. Blocks are parted by blank lines; unknown lines are skipped.

    Raises:
        InputError: the file cannot be read, holds no block, or a block lacks a table or has a number that is none.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise InputError(f"a reuse histogram must be a regular file, got a folder or device ({path}); correct data.path")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"a reuse histogram must be a readable text file, got {error} ({path}); correct data.path") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    blocks = (list(block) for filled, block in itertools.groupby(lines, key=lambda numbered: bool(numbered[1])) if filled)
    histograms = tuple(_parse_block(path, block) for block in blocks)
    if not histograms:
        raise InputError(f"a reuse histogram file must hold at least one block, got an empty file ({path}); correct data.path")
    return histograms


def read_histogram(path: str | Path, name: str | None = None) -> ReuseHistogram:
    """The block called `name` of a file of locality statistics, or its first.

    Raises:
        InputError: as `read_histograms`, or no block has that name.
    """
    histograms = read_histograms(path)
    chosen = next((histogram for histogram in histograms if name in (None, histogram.name)), None)
    if chosen is None:
        names = ", ".join(histogram.name for histogram in histograms)
        raise InputError(f"no block has the name asked for, got {name!r} ({path}); take one of {names}")
    return chosen


def _parse_block(path: str | Path, block: list[tuple[int, str]]) -> ReuseHistogram:
    first, name = block[0]
    averages: dict[str, float] = {}
    tables: dict[str, dict[tuple[int, int], float]] = {"rows": {}, "lookups": {}}
    current: dict[tuple[int, int], float] | None = None
    for number, line in block[1:]:
        if line.startswith("["):
            current = None
        elif (average := _AVERAGE.match(line)) is not None:
            averages[average[1]] = _number(path, number, average[2], "an average", math.inf)
        elif line in _TABLES:
            current = tables[_TABLES[line]]
        elif current is not None:
            fields = _BIN.match(line)
            if fields is None:
                raise InputError(f"a bin must read '(low, high]: share', got {line[:60]!r} ({path}: line {number}); correct that line")
            low = int(fields[1])
            high = int(fields[2]) if fields[2] else low * OPEN_BIN_FACTOR
            if high <= low:
                raise InputError(f"a bin must end above its start, got {line[:60]!r} ({path}: line {number}); correct that line")
            current[low, high] = _number(path, number, fields[3], "a share", 1.0)
    place = f"({path}: block {name[:60]!r}, line {first})"
    if not tables["rows"] or tables["rows"].keys() != tables["lookups"].keys():
        rule = "a block must hold 'Histogram of col sizes' and 'Ratio of index distribution' over the same bins"
        got = f"{len(tables['rows'])} and {len(tables['lookups'])} bins"
        raise InputError(f"{rule}, got {got} {place}; complete the block or correct data.path")
    if not (sum(tables["rows"].values()) > 0 and sum(tables["lookups"].values()) > 0):
        raise InputError(f"the shares of a block must not all be 0 {place}; complete the block")
    indices, distinct = averages.get("# of indices", 0.0), averages.get("# of unique cols", 0.0)
    average_reuse = indices / distinct if indices and distinct else averages.get("col size", 0.0)
    if average_reuse < 1:
        rule = "a block must tell how often a row is used on average ('Avg # of indices' and 'Avg # of unique cols')"
        raise InputError(f"{rule}, got {average_reuse:g} {place}; complete the block")
    bins = tuple(tables["rows"])
    return ReuseHistogram(name, average_reuse, bins, tuple(tables["rows"].values()), tuple(tables["lookups"][edges] for edges in bins))


def _number(path: str | Path, line: int, text: str, what: str, limit: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value <= limit and math.isfinite(value)):
        bound = "not negative" if math.isinf(limit) else f"between 0 and {limit:g}"
        raise InputError(f"{what} must be a number {bound}, got {text[:60]!r} ({path}: line {line}); correct that line")
    return value
