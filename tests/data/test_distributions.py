from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.data.distributions import (
    Reuse,
    ReuseHistogram,
    Scatter,
    Uniform,
    Zipf,
    read_histogram,
    read_histograms,
    zipf_ranks,
)
from autotune.errors import InputError

BLOCK = """{name}
Locality stats after processing 1 batches of size 65536
Avg # of indices: 4000
Avg # of unique cols: 1000
Avg col size: 4.0
Histogram of col sizes:
(0, 1]: 0.500
(1, 2]: 0.300
(2, 4]: 0.100
(16, 32]: 0.100
(1024+: 0.000
[0, 1, 2, 4, 16]
['0.0', '0.5', '0.8', '0.9', '1.0']
Ratio of index distribution at different column sizes:
(0, 1]: 0.125
(1, 2]: 0.150
(2, 4]: 0.085
(16, 32]: 0.570
(1024+: 0.070
[0, 1, 2, 4, 16]
"""


def write_histogram(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def chi_square(counts: np.ndarray, probability: np.ndarray) -> float:
    """Pearson's statistic in standard deviations above its mean."""
    expected = counts.sum() * probability
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.99, 1.0, 1.0 + 1e-12, 1.05, 2.0, 4.0])
@pytest.mark.parametrize("rows", [1, 2, 3, 50])
def test_zipf_frequencies_follow_the_law(rows: int, alpha: float) -> None:
    ranks = zipf_ranks(np.random.default_rng(1), rows, alpha, 200_000)
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -alpha
    probability = weights / weights.sum()
    counts = np.bincount(ranks, minlength=rows)
    assert len(counts) == rows
    # Cells that expect few draws are merged, as the chi-square approximation demands.
    frequent = probability * ranks.size >= 20
    cells = np.append(counts[frequent], counts[~frequent].sum())
    theory = np.append(probability[frequent], probability[~frequent].sum())
    if rows > 1:
        used = theory > 0
        assert chi_square(cells[used], theory[used]) < 5


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.05, 1.5])
def test_zipf_over_40_million_rows_follows_the_law_in_every_decade(alpha: int) -> None:
    rows = 40_000_000
    edges = np.append(10 ** np.arange(0, 8), rows + 1)
    ranks = zipf_ranks(np.random.default_rng(2), rows, alpha, 500_000) + 1
    counts = np.histogram(ranks, bins=edges)[0]
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -alpha
    mass = np.add.reduceat(weights, edges[:-1] - 1)
    kept = mass / mass.sum() * ranks.size >= 20
    assert chi_square(counts[kept], mass[kept] / mass[kept].sum()) < 5


@pytest.mark.parametrize("alpha", [50.0, 1000.0])
def test_a_very_steep_zipf_draws_the_hottest_row(alpha: float) -> None:
    assert not zipf_ranks(np.random.default_rng(3), 40_000_000, alpha, 10_000).any()


@given(rows=st.integers(1, 3000), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_scatter_is_a_bijection(rows: int, seed: int) -> None:
    image = Scatter(rows, np.random.default_rng(seed))(np.arange(rows))
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(rows))


def test_scatter_spreads_neighbours_over_the_table() -> None:
    rows = 1_000_003
    image = Scatter(rows, np.random.default_rng(4))(np.arange(10_000))
    assert np.abs(np.diff(image)).mean() == pytest.approx(rows / 3, rel=0.05)
    cells = np.histogram(image, bins=100, range=(0, rows))[0]
    assert chi_square(cells, np.full(100, 0.01)) < 5


def test_scattered_zipf_has_the_same_frequencies_on_other_rows() -> None:
    scatter = Scatter(1000, np.random.default_rng(5))
    near = np.bincount(Zipf(1000, 1.05).draw(np.random.default_rng(6), 50_000), minlength=1000)
    far = np.bincount(Zipf(1000, 1.05, scatter).draw(np.random.default_rng(6), 50_000), minlength=1000)
    assert np.array_equal(far[scatter(np.arange(1000))], near)
    assert near[:10].sum() > 5 * far[:10].sum()


def test_uniform_is_uniform() -> None:
    counts = np.bincount(Uniform(100).draw(np.random.default_rng(7), 100_000), minlength=100)
    assert len(counts) == 100
    assert chi_square(counts, np.full(100, 0.01)) < 5


def test_all_blocks_of_a_file_are_read(tmp_path: Path) -> None:
    path = write_histogram(tmp_path / "h.txt", BLOCK.format(name="first") + "\n" + BLOCK.format(name="second"))
    assert [one.name for one in read_histograms(path)] == ["first", "second"]
    assert read_histogram(path).name == "first"
    second = read_histogram(path, "second")
    assert second.average_reuse == 4.0
    assert second.bins == ((0, 1), (1, 2), (2, 4), (16, 32), (1024, 2048))
    assert second.row_share == (0.5, 0.3, 0.1, 0.1, 0.0)
    assert second.lookup_share == (0.125, 0.15, 0.085, 0.57, 0.07)


def test_bin_means_are_those_of_log_uniform_counts() -> None:
    histogram = ReuseHistogram("h", 1.0, ((0, 1), (1, 2), (2, 4), (8, 16)), (1, 0, 0, 0), (1, 0, 0, 0))
    u = np.random.default_rng(8).random(400_000)
    assert histogram.bin_means[:2].tolist() == [1.0, pytest.approx(2.0)]
    assert histogram.bin_means[2] == pytest.approx(np.ceil(2 * 2**u).mean(), rel=1e-3)
    assert histogram.bin_means[3] == pytest.approx(np.ceil(8 * 2**u).mean(), rel=1e-3)


def test_rare_hot_bins_come_from_the_share_of_look_ups(tmp_path: Path) -> None:
    histogram = read_histogram(write_histogram(tmp_path / "h.txt", BLOCK.format(name="one")))
    assert histogram.row_share[-1] == 0
    assert histogram.row_probability[-1] == pytest.approx(0.07 * 4 / histogram.bin_means[-1], rel=0.05)
    assert histogram.row_probability.sum() == pytest.approx(1)


@given(total=st.integers(0, 5000), rows=st.integers(1, 400), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_reuse_draws_exactly_the_look_ups_asked_for(total: int, rows: int, seed: int) -> None:
    histogram = ReuseHistogram("h", 4.0, ((0, 1), (1, 2), (8, 16), (1024, 2048)), (0.5, 0.3, 0.2, 0.0), (0.1, 0.2, 0.5, 0.2))
    indices = Reuse(rows, histogram).draw(np.random.default_rng(seed), total)
    assert indices.dtype == np.int64
    assert indices.shape == (total,)
    assert total == 0 or (indices.min() >= 0 and indices.max() < rows)
    assert histogram.sample(np.random.default_rng(seed), total).sum() == total


def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    path = write_histogram(tmp_path / "h.txt", BLOCK.format(name="one").split("Ratio")[0])
    with pytest.raises(InputError, match=r"same bins, got 5 and 0 bins .*block 'one', line 1"):
        read_histogram(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(1, 2]: 0.300", "(1, 2]: lots", r"share must be a number between 0 and 1, got 'lots' .*line 8"),
        ("(1, 2]: 0.300", "(1, 2]: 1.5", r"got '1.5' .*line 8"),
        ("(1, 2]: 0.300", "[1, 2]: 0.3", r"same bins"),
        ("(1, 2]: 0.300", "1-2: 0.3", r"a bin must read .*got '1-2: 0.3' .*line 8"),
        ("(1, 2]: 0.300", "(2, 1]: 0.3", r"end above its start"),
        ("Avg # of indices: 4000", "Avg # of indices: nan", r"average must be a number not negative, got 'nan' .*line 3"),
        ("Avg # of indices: 4000", "Avg # of indices: 4", r"used on average .*got 0.004"),
    ],
)
def test_malformed_histograms_are_refused_with_their_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_histograms(write_histogram(tmp_path / "h.txt", BLOCK.format(name="one").replace(old, new, 1)))


def test_missing_empty_and_unknown_histograms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="readable text file"):
        read_histogram(tmp_path / "none.txt")
    with pytest.raises(InputError, match="regular file"):
        read_histogram(tmp_path)
    with pytest.raises(InputError, match="at least one block"):
        read_histogram(write_histogram(tmp_path / "empty.txt", "\n\n"))
    with pytest.raises(InputError, match=r"got 'two' .*take one of one"):
        read_histogram(write_histogram(tmp_path / "h.txt", BLOCK.format(name="one")), "two")


@pytest.mark.parametrize(("year", "blocks", "average"), [("2021", 17, 6.906), ("2022", 16, 12.744)])
def test_the_published_histograms_are_reproduced(public_file: Callable[[str], Path], year: str, blocks: int, average: float) -> None:
    found = read_histograms(public_file(f"meta_embedding_locality_{year}.txt"))
    assert len(found) == blocks
    histogram = found[0]
    assert histogram.average_reuse == pytest.approx(average, abs=1e-3)
    # Two tables, one truth: what is drawn has the published average, which the drawing did not use directly.
    assert histogram.row_probability @ histogram.bin_means == pytest.approx(average, rel=0.02)
    rng = np.random.default_rng(9)
    reuse = np.concatenate([np.unique(Reuse(5_000_000, histogram).draw(rng, 1_000_000), return_counts=True)[1] for _ in range(4)])
    assert reuse.mean() == pytest.approx(average, rel=0.1)
    bounds = [low for low, _ in histogram.bins] + [histogram.bins[-1][1]]
    bins = np.digitize(reuse, bounds, right=True) - 1
    rows = np.bincount(bins, minlength=len(histogram.bins)) / reuse.size
    lookups = np.bincount(bins, weights=reuse, minlength=len(histogram.bins)) / reuse.sum()
    assert np.allclose(rows, histogram.row_share, atol=0.005)
    # Beyond 2048 uses a table of a million look-ups holds too few rows for a share to settle.
    settled = [i for i, (low, _) in enumerate(histogram.bins) if low < 1024]
    assert np.allclose(lookups[settled], np.array(histogram.lookup_share)[settled], atol=0.02)
