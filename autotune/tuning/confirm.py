"""Default against winner on the full model: what a tuned config may claim."""

from __future__ import annotations

from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.knobs import RunConfig
from autotune.tuning.objective import Bench, Paired

# Looking at the interval after every round would sooner or later find it clear by chance. It is looked at after 12, 18, 27, ... steps,
# and must be clear by one percent to end the measurement early.
_FIRST_LOOK = 12
_LOOK_GROWTH = 1.5
_CLEAR = 0.01
# A configuration against itself has nothing to decide.
_ALONE_ROUNDS = 15


def confirm(bench: Bench, default: RunConfig, tuned: RunConfig, *, budget_s: float, progress: Progress = NO_PROGRESS) -> Paired:
    """Interleave steps of `default` (the base) and `tuned` until the interval of their ratio is clear or the budget ends.

    "No significant gain" is a valid result. When both are the same configuration it is timed alone and the speedup is 1.
    """
    next_look = _FIRST_LOOK

    def is_clear(paired: Paired) -> bool:
        nonlocal next_look
        if len(paired.base_s) < next_look:
            return False
        while next_look <= len(paired.base_s):
            next_look = int(next_look * _LOOK_GROWTH)
        return paired.speedup.low > 1.0 + _CLEAR or paired.speedup.high < 1.0 - _CLEAR

    rounds = _ALONE_ROUNDS if default == tuned else None
    paired = bench.compare(default, tuned, budget_s=budget_s, max_rounds=rounds, until=is_clear, on_round=progress.advance)
    return Paired(paired.base_s, paired.base_s, paired.notes) if default == tuned else paired
