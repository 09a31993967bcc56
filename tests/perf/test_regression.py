"""The fit finds the same weights wherever it starts, and its quick median is numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.perf.regression import _median, _non_negative, _solve


@pytest.mark.parametrize("count", [1, 2, 3, 10, 199, 200])
def test_the_median_is_that_of_numpy(count: int) -> None:
    values = np.random.default_rng(count).random(count)
    assert _median(values) == float(np.median(values))


@pytest.mark.parametrize("seed", range(20))
def test_weights_do_not_depend_on_the_start(seed: int) -> None:
    draw = np.random.default_rng(seed)
    matrix, target = draw.random((60, 9)), draw.normal(1.0, 1.0, 60)
    first = _non_negative(matrix, target, np.zeros(9))
    assert (first >= 0).all()
    assert 0 < (first > 0).sum() < 9  # some rest at the limit, or the test tells nothing
    for start in (np.ones(9), first, draw.random(9) * (draw.random(9) > 0.5)):
        np.testing.assert_allclose(_non_negative(matrix, target, start), first, rtol=1e-9, atol=1e-12)
    # No weight can move without a loss: the gradient vanishes where a weight is free, and points outwards where it is not.
    gradient = matrix.T @ (matrix @ first - target)
    assert np.abs(gradient[first > 0]).max() < 1e-9
    assert gradient[first == 0].min() > -1e-9


def test_a_fit_from_a_near_one_is_the_same_fit() -> None:
    draw = np.random.default_rng(1)
    matrix, prior = draw.random((40, 6)), draw.random(6)
    whole = _solve(matrix, prior)
    np.testing.assert_allclose(_solve(matrix[:32], prior, whole), _solve(matrix[:32], prior), rtol=1e-9, atol=1e-12)
