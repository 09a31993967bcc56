"""Samples of one measured callable: the median, its bootstrap interval, and what makes the figure doubtful.

The interval is the 2.5th to 97.5th percentile of the medians of 1000 resamples, drawn with a fixed seed so that the same samples
always give the same interval. Two candidates are compared by the ratio of their times in the same round: what slowed a whole round
cancels out.

Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autotune.config.tuned import Interval
from autotune.errors import InputError

RESAMPLES = 1000
# From this many samples on, the interval comes from order statistics: the bootstrap's resamples would take 8 MB and more, and both agree.
_BOOTSTRAP_UP_TO = 1000
# The widest interval n samples can give is [min, max], and it misses the median with probability 2 / 2^n: below 5 % from n = 6 on.
ENOUGH_SAMPLES = 6
# Quiet runs of the operators vary by 10-15 % between quartiles on a shared virtual machine; more points at a disturbance.
WIDE_SPREAD = 0.20
_SEED = 20


@dataclass(frozen=True)
class FewSamples:
    """Fewer samples than a 95 % interval of a median needs."""

    samples: int

    @property
    def message(self) -> str:
        return f"{self.samples} sample{'s' if self.samples != 1 else ''}, a 95 % interval needs {ENOUGH_SAMPLES}; measure longer"


@dataclass(frozen=True)
class WideSpread:
    """The middle half of the samples lies far apart."""

    spread: float
    """Interquartile range over median."""

    @property
    def message(self) -> str:
        return f"the middle half of the samples spreads over {self.spread:.0%} of the median; stop other programs or measure longer"


SampleWarning = FewSamples | WideSpread


@dataclass(frozen=True)
class Samples:
    """Times of one candidate, in the order of the rounds.

    Raises:
        InputError: no samples, or a time that is negative or not finite.
    """

    times_s: tuple[float, ...]
    """Seconds, one entry a round."""

    def __post_init__(self) -> None:
        _checked(self.times_s, "times_s")

    @cached_property
    def median_s(self) -> float:
        return float(np.median(self.times_s))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Bootstrap 95 % interval of the median, seconds."""
        return _median_interval(np.asarray(self.times_s, dtype=np.float64))

    @property
    def spread(self) -> float:
        """Interquartile range over median; 0 for a median of 0."""
        low, high = np.percentile(self.times_s, (25, 75))
        return float((high - low) / self.median_s) if self.median_s else 0.0

    @property
    def warnings(self) -> tuple[SampleWarning, ...]:
        few = (FewSamples(len(self.times_s)),) if len(self.times_s) < ENOUGH_SAMPLES else ()
        return (*few, WideSpread(self.spread)) if self.spread > WIDE_SPREAD else few

    def to_interval(self) -> Interval:
        low, high = self.interval
        return Interval(median=self.median_s, low=low, high=high, samples=len(self.times_s))


def ratio(base: Sequence[float] | Samples, other: Sequence[float] | Samples) -> Interval:
    """Paired ratio of two candidates: median over rounds of base_i / other_i, with its bootstrap 95 % interval.

    Above 1, `other` is faster. Where one candidate has fewer rounds (it was eliminated), the rounds that both ran count.

    Args:
        base: Seconds by round.
        other: Seconds by round, of the same rounds.

    Raises:
        InputError: either is empty, or a time is not positive and finite.
    """
    base_s = _checked(base.times_s if isinstance(base, Samples) else base, "base", positive=True)
    other_s = _checked(other.times_s if isinstance(other, Samples) else other, "other", positive=True)
    rounds = min(len(base_s), len(other_s))
    ratios = base_s[:rounds] / other_s[:rounds]
    low, high = _median_interval(ratios)
    return Interval(median=float(np.median(ratios)), low=low, high=high, samples=rounds)


def significant(speedup: Interval, margin: float = 0.0) -> bool:
    """Whether a speedup is real: its 95 % interval lies above 1 + margin, and rests on enough rounds to be one."""
    return speedup.samples >= ENOUGH_SAMPLES and speedup.low > 1.0 + margin


def _checked(times_s: Sequence[float], name: str, positive: bool = False) -> NDArray[np.float64]:
    values = np.asarray(times_s, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"{name} must hold at least one time, got {values.size}; run at least one round")
    bad = ~np.isfinite(values) | (values < 0.0) | (positive & (values == 0.0))
    if bad.any():
        at = int(np.argmax(bad))
        raise InputError(
            f"{name} must be finite and {'positive' if positive else 'not negative'}, got {values[at]} at round {at}; "
            "time more work per sample, or check the clock"
        )
    return values


def _median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    if values.size > _BOOTSTRAP_UP_TO:
        ordered = np.sort(values)
        half = 0.98 * math.sqrt(values.size)  # 1.96 standard deviations of Binomial(n, 1/2)
        middle = (values.size - 1) / 2
        return float(ordered[math.floor(middle - half)]), float(ordered[math.ceil(middle + half)])
    drawn = np.random.default_rng(_SEED).integers(0, values.size, size=(RESAMPLES, values.size))
    medians = np.median(values[drawn], axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(low), float(high)
