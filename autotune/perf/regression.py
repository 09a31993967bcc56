"""The linear performance model: the time of a pass as a weighted sum of its features, fitted to the calibration runs of the probe.

Per kind of pass and number of threads the weights minimise the sum over the calibration passes of (predicted / measured - 1)^2, none
negative, drawn gently towards the operator's prior: features that the calibration cannot tell apart keep their prior weight. What the fit
leaves is smooth in the shape, so the residuals of calibration passes near a shape correct it. The interval is how well the model predicts
calibration passes that it has not seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autotune.config.tuned import Prediction
from autotune.ops.base import Features, Operator

FloatArray = npt.NDArray[np.float64]

# Of the squared relative errors' mean. At 0.0001 a term that matters nowhere keeps its usual weight, one that matters is free.
_PULL = 1e-4
_HUBER = 0.15
"""Relative error beyond which a reference pass counts less: one disturbed median shall not bend the law."""
_REWEIGHTS = 5
# A shape takes on the residuals of reference passes within about a factor of two of it in every size; a lone far one counts for little.
_REACH = math.log(2.0)
_OWN_WEIGHT = 0.5
_LEAST_SPREAD = 0.05
"""No interval is narrower: medians of a few steps on a quiet machine differ by as much."""
_USUAL_SPREAD = 0.4
"""Of a law without reference passes."""
_BETWEEN = 0.8
"""Share of the leave-one-out errors inside an interval."""
_OUTSIDE = 1.25
"""A size this much beyond all reference passes is extrapolated."""
_UNSEEN, _TIMES_SEEN = 0.1, 2.0
"""A feature is extrapolated where it takes more than a tenth of a pass, and twice what it took of any reference pass."""


@dataclass(frozen=True, eq=False)
class Reference:
    """One pass of a reference model."""

    features: Features
    """A feature that is not named is 0: one output takes other features than more."""
    size: Mapping[str, float]
    time_s: float
    threads: int


@dataclass(frozen=True, eq=False)
class FittedModel:
    """Of one kind of pass at one number of threads."""

    kind: str
    threads: int
    weights: Mapping[str, float]
    references: tuple[Reference, ...]
    residuals: FloatArray
    """log(measured / weighted sum) of the references."""
    spread: float
    """Half-width of the interval, in log time."""

    def predict(self, features: Features, size: Mapping[str, float], threads: int) -> Prediction:
        """The time of a pass, with its interval."""
        base_s = weighted(features, self.weights)
        time_s = base_s * math.exp(self._correction(size))
        outside = "; ".join(filter(None, (self.outside(size, threads), self._unseen(features))))
        spread = self.spread * (1.5 if outside else 1.0)
        return Prediction(low_s=time_s * math.exp(-spread), time_s=time_s, high_s=time_s * math.exp(spread), extrapolated=outside)

    def outside(self, size: Mapping[str, float], threads: int) -> str:
        """What exceeds the reference passes, in words."""
        if not self.references:
            return "no reference passes of this kind"
        reasons = [f"{threads} threads beside {self.threads}"] if threads != self.threads else []
        for name in size:
            known = [reference.size[name] for reference in self.references]
            low, high = min(known), max(known)
            if size[name] > _OUTSIDE * high or size[name] * _OUTSIDE < low:
                reasons.append(f"{name.replace('_', ' ')} {size[name]:g} beside {low:g} to {high:g}")
        return "; ".join(reasons)

    def _unseen(self, features: Features) -> str:
        """Features that take a share of this pass's time that they took of no calibration pass's, in words."""
        unseen = [
            name.replace("_", " ")
            for name, share in self._shares(features).items()
            if self.references and share > _UNSEEN and share > _TIMES_SEEN * self._seen.get(name, 0.0)
        ]
        return f"no reference pass spends as much on {', '.join(unseen)}" if unseen else ""

    def _shares(self, features: Features) -> dict[str, float]:
        """What each feature takes of a pass's time, at its prior weight where the fit has less of it."""
        prior, total = Operator.registry[self.kind].prior, weighted(features, self.weights)
        return {name: value * max(self.weights.get(name, 1.0), prior.get(name, 0.0)) / total for name, value in features.items()}

    @functools.cached_property
    def _seen(self) -> dict[str, float]:
        """The largest share of each feature among the calibration passes."""
        shares = [self._shares(reference.features) for reference in self.references]
        return {name: max(share.get(name, 0.0) for share in shares) for name in self.weights}

    @functools.cached_property
    def _log_sizes(self) -> FloatArray:
        return _logs([reference.size for reference in self.references])

    def _correction(self, size: Mapping[str, float]) -> float:
        if not self.references:
            return 0.0
        near = _nearness(_logs([size]), self._log_sizes)[0]
        return float(near @ self.residuals / (near.sum() + _OWN_WEIGHT))


def weighted(features: Features, weights: Mapping[str, float]) -> float:
    return max(1e-9, sum(value * weights.get(name, 1.0) for name, value in features.items()))


def fit(kind: str, threads: int, references: Sequence[Reference]) -> FittedModel:
    """The fit to the passes given; the prior weights where there are none."""
    prior_weights = Operator.registry[kind].prior
    if not references:
        return FittedModel(kind, threads, prior_weights, (), np.zeros(0), _USUAL_SPREAD)
    names = list(dict.fromkeys(name for reference in references for name in reference.features))
    matrix = np.array([[reference.features.get(name, 0.0) / reference.time_s for name in names] for reference in references])
    prior = np.array([prior_weights.get(name, 1.0) for name in names])
    weights = _solve(matrix, prior)
    residuals = -np.log(np.maximum(matrix @ weights, 1e-9))
    spread = _left_out(matrix, prior, weights, [reference.size for reference in references])
    return FittedModel(kind, threads, dict(zip(names, weights.tolist(), strict=True)), tuple(references), residuals, spread)


def _solve(matrix: FloatArray, prior: FloatArray, start: FloatArray | None = None) -> FloatArray:
    """Non-negative weights with the least sum of Huber's loss of (matrix w - 1) and the pull to the prior.

    Args:
        start: weights near them, to be found sooner.
    """
    count, features = matrix.shape
    pull = math.sqrt(_PULL * count / features) * np.diag(1.0 / np.maximum(prior, 1e-3))
    importance, weights = np.ones(count), np.zeros(features) if start is None else start
    for _ in range(_REWEIGHTS):
        root = np.sqrt(importance)
        weights = _non_negative(np.vstack([matrix * root[:, None], pull]), np.concatenate([root, pull @ prior]), weights)
        errors = np.abs(matrix @ weights - 1.0)
        beyond = max(_HUBER, 1.5 * _median(errors))
        importance = np.minimum(1.0, beyond / np.maximum(errors, 1e-9))
    return weights


def _median(values: FloatArray) -> float:
    """That of `numpy.median`, a tenth of whose time it takes for some hundred values: a fit asks thirty times."""
    middle = ((len(values) - 1) // 2, len(values) // 2)
    low, high = np.partition(values, middle)[list(middle)].tolist()
    return 0.5 * float(low + high)


def _non_negative(matrix: FloatArray, target: FloatArray, start: FloatArray) -> FloatArray:
    """Least squares under w >= 0, by active sets, the first of them where `start` is positive. What is found does not depend on it.

    Source: C. Lawson, R. Hanson, Solving Least Squares Problems, 1974, chapter 23.
    """
    features = matrix.shape[1]
    gram, right = matrix.T @ matrix, matrix.T @ target
    weights, free = start, start > 0
    for _ in range(3 * features):
        while free.any():
            trial = np.zeros(features)
            trial[free] = np.linalg.solve(gram[np.ix_(free, free)], right[free])
            if trial[free].min() > 0:
                weights = trial
                break
            falling = free & (trial <= 0)
            step = float(np.min(weights[falling] / (weights[falling] - trial[falling])))
            weights = weights + step * (trial - weights)
            free &= weights > 1e-12
            weights = np.where(free, weights, 0.0)
        slope = np.where(free, -np.inf, right - gram @ weights)
        best = int(np.argmax(slope))
        if slope[best] <= 1e-10 * max(1.0, abs(right[best])):
            break
        free[best] = True
    return weights


def _left_out(matrix: FloatArray, prior: FloatArray, weights: FloatArray, sizes: Sequence[Mapping[str, float]]) -> float:
    """The error of four passes out of five, in log time, each predicted by a law that has not seen it.

    Folds instead of single passes keep it quick: every fifth pass is left out at once. `weights` are those of the fit to all.
    """
    count = len(matrix)
    if count < 5:
        return _USUAL_SPREAD
    errors, logs = [], _logs(sizes)
    for fold in range(5):
        out = np.arange(count) % 5 == fold
        residuals = -np.log(np.maximum(matrix @ _solve(matrix[~out], prior, weights), 1e-9))
        near = _nearness(logs[out], logs[~out])
        corrected = residuals[out] - near @ residuals[~out] / (near.sum(axis=1) + _OWN_WEIGHT)
        errors += np.abs(corrected).tolist()
    return max(_LEAST_SPREAD, float(np.quantile(errors, _BETWEEN)))


def _logs(shapes: Sequence[Mapping[str, float]]) -> FloatArray:
    """Logarithms of the sizes, a row a shape."""
    names = list(shapes[0])
    logs: FloatArray = np.log([[shape[name] + 1.0 for name in names] for shape in shapes])
    return logs


def _nearness(left: FloatArray, right: FloatArray) -> FloatArray:
    """1 for the same shape, near 0 for one that differs by much more than a factor of two in some size; shapes as `_logs` gives them."""
    distance = ((left[:, None, :] - right[None, :, :]) ** 2).sum(axis=2)
    nearness: FloatArray = np.exp(-distance / (2 * _REACH**2))
    return nearness
