"""Random models to hold predictions against: drawn by a seed, from ranges that the reference models of the probe span."""

from __future__ import annotations

import numpy as np

from autotune.config.model import Model
from autotune.probing.calibrate import Shape

_DIMS = (16, 32, 48, 64, 96, 128, 256)
_MINIBATCHES = (128, 8192)
_WIDTHS = (48, 1536)
_POOLINGS = (1, 60)
_ROWS = (1_000, 3_000_000)
_MAX_LOOKUPS = 2_000_000
_MAX_GFLOP = 60.0
"""Of the layers in one iteration, so that a model takes no more than some seconds of a budget."""


def random_model(seed: int, number: int, limit_bytes: float) -> Model:
    """Model `number` of a seed: the same whenever it is asked for.

    Args:
        limit_bytes: Of all tables; rows are cut to it.
    """
    rng = np.random.default_rng((seed, number))

    def between(low: float, high: float) -> int:
        return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))

    while True:
        dim, minibatch = int(rng.choice(_DIMS)), between(*_MINIBATCHES)
        bottom = (between(8, 1024), *(between(*_WIDTHS) for _ in range(rng.integers(0, 3))), dim)
        top = tuple(between(*_WIDTHS) for _ in range(rng.integers(1, 4)))
        count = between(2, 32)
        kinds = [(between(*_ROWS), between(*_POOLINGS)) for _ in range(rng.integers(1, 4))]
        tables = tuple((*kinds[i % len(kinds)], 1) for i in range(count))
        alpha = round(float(rng.uniform(0.6, 1.3)), 2) if rng.random() < 0.4 else 0.0
        model = Shape(minibatch, bottom, top, tables, alpha).model(f"random-{seed}-{number}", "drawn at random", limit_bytes)
        if model.lookups_per_iteration <= _MAX_LOOKUPS and 6e-9 * minibatch * model.dense_parameters <= _MAX_GFLOP:
            return model
