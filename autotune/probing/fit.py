"""Latency and bandwidth fitted to measured transfers.

Source: R. Hockney, The communication challenge for MPP, Parallel Computing 20(3), 1994.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autotune.config.network import NetworkFit, NetworkPoint
from autotune.errors import InputError

_LEAST_POINTS = 2


def fit(points: Sequence[NetworkPoint]) -> NetworkFit:
    """Least squares of the relative error of ``latency * messages + bytes / bandwidth``; neither becomes negative.

    Args:
        points: of one operation, form and number of ranks.

    Raises:
        InputError: fewer than two points, or of different kinds.
    """
    kinds = {(point.operation, point.form, point.ranks) for point in points}
    if len(points) < _LEAST_POINTS or len(kinds) != 1:
        raise InputError(f"a fit needs {_LEAST_POINTS} points of one kind, got {len(points)} of {len(kinds)}; measure more sizes")
    ((operation, form, ranks),) = kinds
    times = np.array([point.time_s for point in points])
    terms = np.array([(point.messages, point.message_bytes) for point in points], dtype=np.float64)
    scaled = terms / times[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(scaled, np.ones(len(points)), rcond=None)
    if latency < 0 or per_byte <= 0:
        # The one that may stay alone explains the times at best.
        alone = [float(column @ np.ones(len(points)) / (column @ column)) if column.any() else 0.0 for column in scaled.T]
        latency, per_byte = (0.0, alone[1]) if latency < 0 else (alone[0], np.finfo(float).tiny ** 0.5)
    errors = np.abs(scaled @ np.array([latency, per_byte]) - 1.0)
    return NetworkFit(
        operation=operation,
        form=form,
        ranks=ranks,
        latency_s=float(latency),
        bandwidth_bytes_per_s=float(1.0 / per_byte),
        residual=float(np.median(errors)),
        worst=float(errors.max()),
    )


def fits(points: Sequence[NetworkPoint]) -> tuple[NetworkFit, ...]:
    """A fit for every kind that has points enough, in the order in which the kinds appear."""
    groups: dict[tuple[str, str, int], list[NetworkPoint]] = {}
    for point in points:
        groups.setdefault((point.operation, point.form, point.ranks), []).append(point)
    return tuple(fit(group) for group in groups.values() if len(group) >= _LEAST_POINTS)
