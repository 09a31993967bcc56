"""Look-ups and rows in expectation, against draws."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.data.batches import make_source
from autotune.data.distributions import Uniform, Zipf
from autotune.data.popularity import Popularity, counted, popularity, uniform, zipf
from tests.support.histograms import HISTOGRAM, of_histogram


def drawn_misses(indices: np.ndarray, capacity: int) -> int:
    """Of a cache of so many rows, empty at first, that replaces the least recently used: the obvious way."""
    cache: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for row in indices.tolist():
        if row in cache:
            cache.move_to_end(row)
            continue
        misses += 1
        cache[row] = None
        if len(cache) > capacity:
            cache.popitem(last=False)
    return misses


@pytest.mark.parametrize(("rows", "alpha"), [(500, 0.0), (20_000, 0.0), (500, 1.05), (20_000, 0.8), (20_000, 1.4)])
@pytest.mark.parametrize("capacity", [50, 400, 30_000])
def test_misses_are_those_of_drawn_look_ups(rows: int, alpha: float, capacity: int) -> None:
    known = zipf(rows, alpha) if alpha else uniform(rows)
    distribution = Zipf(rows, alpha) if alpha else Uniform(rows)
    indices = distribution.draw(np.random.default_rng(3), 20_000)
    expected = drawn_misses(indices, capacity)
    assert known.misses(20_000, capacity) == pytest.approx(expected, rel=0.1)
    assert known.distinct(20_000) == pytest.approx(len(np.unique(indices)), rel=0.05)


@given(rows=st.integers(1, 10**7), alpha=st.floats(0.1, 2.0), lookups=st.floats(1, 1e7), capacity=st.floats(1, 1e6))
@settings(max_examples=50, deadline=None)
def test_misses_lie_between_the_distinct_rows_and_all(rows: int, alpha: float, lookups: float, capacity: float) -> None:
    known = zipf(rows, alpha)
    found = known.misses(lookups, capacity)
    assert found >= min(known.distinct(lookups), lookups) * 0.99
    assert found <= lookups * (1 + 1e-9)
    assert known.misses(lookups, 2 * capacity) <= found * (1 + 1e-6) + 1e-6


def test_shares_add_up_and_the_hottest_comes_first() -> None:
    for known in (uniform(10), zipf(10, 1.0), zipf(10**6, 1.0), counted(np.array([5, 1, 1, 3]), 100)):
        assert float(np.sum(known.share * known.count)) == pytest.approx(1.0, rel=1e-6)
        assert known.hottest == known.share.max()


def test_a_sample_without_look_ups_counts_as_uniform() -> None:
    assert isinstance(counted(np.zeros(0, dtype=np.int64), 7), Popularity)
    assert counted(np.zeros(0, dtype=np.int64), 7).hottest == pytest.approx(1 / 7)


def test_distinct_rows_of_a_sample_are_those_of_other_batches(tmp_path: Path) -> None:
    path = tmp_path / "histogram"
    path.write_text(HISTOGRAM, encoding="utf-8")
    model = of_histogram(path)
    sampled = [popularity(model, t) for t in range(3)]
    batch = make_source(model).batch(3)
    of_first = batch.indices[: int(batch.offsets[4000])].numpy()
    assert sampled[0].distinct(12_000) == pytest.approx(len(np.unique(of_first)), rel=0.1)
    # A part of one batch: what a rank's own samples meet.
    assert sampled[0].distinct(3_000) == pytest.approx(len(np.unique(of_first[:3_000])), rel=0.1)
    assert sampled[0].distinct(12_000) < 0.5 * uniform(1_000_000).distinct(12_000), "far from uniform"
    # More look-ups than were seen meet more rows, but not more than there are.
    assert sampled[0].distinct(12_000) < sampled[0].distinct(24_000) <= 2 * sampled[0].distinct(12_000)
    assert sampled[1].distinct(1e9) == 300
    for capacity in (50, 400, 5_000):
        assert sampled[0].misses(12_000, capacity) == pytest.approx(drawn_misses(of_first, capacity), rel=0.1)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.floats(0.01, 3.0), st.floats(0.01, 300.0))
@settings(deadline=None)
def test_misses_of_a_sample_lie_between_its_distinct_rows_and_all(counts: list[int], batches: float, capacity: float) -> None:
    known = counted(np.array(counts), 1000)
    lookups = batches * sum(counts)
    assert known.distinct(sum(counts)) == pytest.approx(len(counts))
    assert min(known.distinct(lookups), lookups) * (1 - 1e-9) <= known.misses(lookups, capacity) <= max(lookups, 1.0) * (1 + 1e-9)


@given(rows=st.integers(1, 10_000), lookups=st.integers(0, 10_000))
def test_distinct_rows_lie_between_the_least_and_the_most(rows: int, lookups: int) -> None:
    met = uniform(rows).distinct(lookups)
    assert met <= min(rows, max(lookups, 1)) * (1 + 1e-9)
    assert lookups == 0 or rows == 1 or met > 0


def test_distinct_rows_are_those_that_draws_have() -> None:
    generator = np.random.default_rng(0)
    drawn = [len(np.unique(generator.integers(0, 500, 700))) for _ in range(200)]
    assert uniform(500).distinct(700) == pytest.approx(np.mean(drawn), rel=0.01)
