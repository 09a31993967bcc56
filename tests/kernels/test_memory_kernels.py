"""Pages and their first values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from autotune import _kernels as kernels


@pytest.mark.parametrize("huge_pages", [False, True])
@pytest.mark.parametrize("count", [1, 1000, 2**19 - 1, 2**19, 2**19 + 1])
def test_allocate_gives_zeros_aligned_to_huge_pages(count: int, huge_pages: bool) -> None:
    data = kernels.allocate(count, huge_pages)
    assert data.shape == (count,)
    assert data.dtype == np.float32
    assert data.flags.writeable
    assert data.ctypes.data % 2**21 == 0
    assert not data.any()
    data[:] = 1.0  # every page is there


def test_a_small_array_takes_no_huge_page() -> None:
    """Sixteen floats take a small page, not 2 MiB."""
    before = psutil.Process().memory_info().rss
    arrays = [kernels.allocate(16, True) for _ in range(64)]
    for array in arrays:
        kernels.fill_zero(array, 1)
    assert psutil.Process().memory_info().rss - before < 64 * 2**18


def test_allocate_nothing() -> None:
    assert kernels.allocate(0, True).shape == (0,)


@pytest.mark.parametrize("count", [-1, 2**46 + 1])
def test_allocate_refuses(count: int) -> None:
    with pytest.raises(ValueError, match="count must be between 0 and"):
        kernels.allocate(count, False)


def test_more_than_the_address_space_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        kernels.allocate(2**46, False)


def test_a_view_keeps_the_pages() -> None:
    view = torch.from_numpy(kernels.allocate(4096, True))[1000:2000]
    others = [kernels.allocate(4096, True) for _ in range(4)]
    view.fill_(3.0)
    assert not any(other.any() for other in others)
    assert view.sum() == 3000.0


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.25, 0.25), (5.0, 5.0)])
@pytest.mark.parametrize("count", [1, 17, 20011])
def test_fill_uniform_is_the_same_at_any_team_size(count: int, low: float, high: float, guarded: Any) -> None:
    filled = []
    for threads in (1, 2, 3, 5):
        data = guarded(count)
        kernels.fill_uniform(data.view, low, high, 7, threads)
        data.assert_untouched()
        filled.append(data.view)
    assert all(torch.equal(data, filled[0]) for data in filled)
    assert float(filled[0].min()) >= low
    assert float(filled[0].max()) <= high


def test_fill_uniform_has_the_mean_and_variance_of_the_distribution() -> None:
    count = 200_000
    data = torch.empty(count)
    kernels.fill_uniform(data, -1.0, 3.0, 11, 2)
    deviation = 4.0 / math.sqrt(12)
    assert abs(float(data.double().mean()) - 1.0) < 5 * deviation / math.sqrt(count)
    assert float(data.double().std()) == pytest.approx(deviation, rel=0.01)
    counts = torch.histc(data, 16, -1.0, 3.0)
    assert float(((counts - count / 16) ** 2 / (count / 16)).sum()) < 50  # chi-square, 15 degrees of freedom: 1 in 10^5


def test_seeds_and_prefixes() -> None:
    first, second, longer = torch.empty(100), torch.empty(100), torch.empty(200)
    kernels.fill_uniform(first, 0.0, 1.0, 1, 1)
    kernels.fill_uniform(second, 0.0, 1.0, 2, 1)
    kernels.fill_uniform(longer, 0.0, 1.0, 1, 2)
    assert torch.equal(longer[:100], first)
    assert len(set(first.tolist()) & set(second.tolist())) <= 2


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 10007])
def test_fill_zero(count: int, threads: int, guarded: Any) -> None:
    data = guarded.of(torch.ones(count))
    kernels.fill_zero(data.view, threads)
    assert not data.view.any()
    data.assert_untouched()


def test_fills_refuse() -> None:
    data = torch.ones(8)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.fill_zero(data[::2], 1)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.fill_uniform(data[::2], 0.0, 1.0, 1, 1)
    with pytest.raises(ValueError, match="threads"):
        kernels.fill_zero(data, 0)
    with pytest.raises(TypeError):
        kernels.fill_zero(data.double(), 1)
    with pytest.raises(TypeError):
        kernels.fill_zero(data.view(2, 4), 1)
    assert bool((data == 1).all())
