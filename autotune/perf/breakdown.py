"""Where the time of a pass goes when no ceiling accounts for it: launch overhead, imbalance, waiting for a core, and what threads work."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from autotune.config.measured import TimeParts
from autotune.ops.timing import TeamTimes

Step = tuple[Mapping[str, float], Mapping[str, TeamTimes]]
"""One step: seconds by pass, and what the teams of each pass did."""


def parts_by_pass(steps: Sequence[Step]) -> dict[str, TimeParts]:
    """The parts of every pass that ran a team of ours in each of the steps.

    Each part is the median over the steps of its share of the pass, so that they add up to 1 but for the medians' own difference, which
    goes to the work.

    Args:
        steps: Steps that count.
    """
    keys = dict.fromkeys(key for times_s, teams in steps for key in teams if times_s.get(key, 0.0) > 0)
    parts = {}
    for key in keys:
        both = [(times_s[key], teams[key]) for times_s, teams in steps if key in teams and times_s.get(key, 0.0) > 0]
        if len(both) == len(steps):
            parts[key] = _parts(both)
    return parts


def _parts(steps: Sequence[tuple[float, TeamTimes]]) -> TimeParts:
    launch = statistics.median(max(0.0, 1.0 - teams.longest_s / time_s) for time_s, teams in steps)
    off_core = statistics.median((teams.longest_s - max(teams.longest_core_s, teams.mean_core_s)) / time_s for time_s, teams in steps)
    imbalance = statistics.median(max(0.0, teams.longest_core_s - teams.mean_core_s) / time_s for time_s, teams in steps)
    work = max(0.0, 1.0 - launch - off_core - imbalance)
    return TimeParts(launch=round(launch, 4), off_core=round(off_core, 4), imbalance=round(imbalance, 4), work=round(work, 4))
