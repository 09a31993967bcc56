"""Does a tuned config still hold? Default against tuned again, interleaved, on the full model.

The rule, with s the speedup measured now and c the one the config claims:

- slower: s.high < 1, or s.median < 0.98. It does not hold.
- a gain is claimed, and s.high < 1 + (c.low - 1) / 2: not even half of the least gain claimed is within the interval. The gain is gone.
- no gain is claimed (the default stands): it holds unless s.high < 1 and s.median < 0.95; this is noise of one configuration with itself.
- otherwise it holds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.knobs import RunConfig
from autotune.config.tuned import Interval, TunedConfig
from autotune.ranks.lockstep import Lockstep
from autotune.tuning.budget import Clock
from autotune.tuning.confirm import confirm
from autotune.tuning.objective import Bench

_SLOWER = 0.98
_SLOWER_UNCLAIMED = 0.95


@dataclass(frozen=True)
class Verification:
    """A config held against the default once more."""

    default_s: Interval
    tuned_s: Interval
    speedup: Interval
    """default / tuned per step on the same batch."""
    holds: bool
    reason: str
    """In words, with the figures."""
    notes: tuple[str, ...] = ()
    """Differences of the software, disturbances."""


def holds(config: TunedConfig, speedup: Interval) -> tuple[bool, str]:
    """The rule above: whether it holds, and why."""
    now = f"{speedup.median:.3f}x [{speedup.low:.3f}, {speedup.high:.3f}]"
    if not config.significant:
        slower = speedup.high < 1.0 and speedup.median < _SLOWER_UNCLAIMED
        return not slower, f"the config claims no gain, and it is {now}" + (": slower than the default" if slower else "")
    claimed = f"{config.speedup.median:.3f}x [{config.speedup.low:.3f}, {config.speedup.high:.3f}]"
    if speedup.high < 1.0 or speedup.median < _SLOWER:
        return False, f"the tuned config is slower than the default: {now}, claimed {claimed}; tune again"
    if speedup.high < 1.0 + (config.speedup.low - 1.0) / 2:
        return False, f"the gain is gone: {now}, claimed {claimed}; tune again"
    return True, f"the tuned config holds: {now}, claimed {claimed}"


def verify(
    config: TunedConfig,
    lockstep: Lockstep,
    default: RunConfig,
    *,
    budget_s: float,
    progress: Progress = NO_PROGRESS,
    monitor: NoiseMonitor | None = None,
    clock: Clock = time.monotonic,
    notes: tuple[str, ...] = (),
) -> Verification:
    """Measure default against tuned again and judge by the rule of this module.

    Args:
        config: What is verified.
        lockstep: The model it was tuned for.
        budget_s: Seconds.
    """
    progress.phase("verify", budget_s)
    # Another seed than the tuning run's: the order inside the rounds is drawn anew.
    bench = Bench(lockstep, monitor, clock, seed=config.provenance.seed + 1)
    paired = confirm(bench, default, config.config, budget_s=budget_s, progress=progress)
    good, reason = holds(config, paired.speedup)
    return Verification(paired.base, paired.other, paired.speedup, good, reason, notes + paired.notes)
