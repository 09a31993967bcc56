"""Default against winner on the full model: what a tuned config may claim."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.samples import significant
from autotune.config.knobs import RunConfig
from autotune.config.tuned import Interval
from autotune.tune.objective import Bench, Paired

# Looking at the interval after every round would sooner or later find it clear by chance. It is looked at after 12, 18, 27, ... steps,
# and must be clear by one percent to end the measurement early.
_FIRST_LOOK = 12
_LOOK_GROWTH = 1.5
_CLEAR = 0.01
# A configuration against itself has nothing to decide.
_ALONE_ROUNDS = 15


@dataclass(frozen=True)
class Confirmation:
    """Whole iterations of the default and of the tuned configuration, side by side."""

    default_s: Interval
    tuned_s: Interval
    speedup: Interval
    """default / tuned per step on the same batch."""
    significant: bool
    """Whether the interval lies above 1; if not, the default stands."""
    notes: tuple[str, ...] = ()


class _Looks:
    """Ends a comparison once its interval is clear."""

    def __init__(self) -> None:
        self._next = _FIRST_LOOK

    def __call__(self, paired: Paired) -> bool:
        count = len(paired.base_s)
        if count < self._next:
            return False
        while self._next <= count:
            self._next = int(self._next * _LOOK_GROWTH)
        speedup = paired.speedup
        return speedup.low > 1.0 + _CLEAR or speedup.high < 1.0 - _CLEAR


def confirm(bench: Bench, default: RunConfig, tuned: RunConfig, *, budget_s: float, progress: Progress = NO_PROGRESS) -> Confirmation:
    """Interleave steps of `default` and `tuned` until the interval of their ratio is clear or the budget ends.

    "No significant gain" is a valid result. When both are the same configuration it is timed alone and the speedup is 1.
    """
    rounds = _ALONE_ROUNDS if default == tuned else None
    paired = bench.compare(default, tuned, budget_s=budget_s, max_rounds=rounds, until=_Looks(), on_round=progress.advance)
    if default == tuned:
        same = Interval(median=1.0, low=1.0, high=1.0, samples=len(paired.base_s))
        return Confirmation(paired.base, paired.base, same, False, paired.notes)
    speedup = paired.speedup
    return Confirmation(paired.base, paired.other, speedup, significant(speedup), paired.notes)
