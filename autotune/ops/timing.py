"""Where the time of a training step goes: the sum of each pass's time over the steps recorded, and what its threads did."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from autotune.ops.native import kernels

Spans = tuple[tuple[str, float, float], ...]
"""Operator pass, begin and end by ``time.perf_counter``, in the order they ended."""

_KEPT = 256
# Where nobody takes the sums, as in plain training, memory must not grow: far more than one step has.
_KEPT_SPANS = 4096


@dataclass(frozen=True)
class TeamTimes:
    """The parallel regions of a pass, seconds; torch's own are not among them."""

    regions: int = 0
    longest_s: float = 0.0
    """Time at work of each region's busiest thread: the others wait for it."""
    longest_core_s: float = 0.0
    """Part of `longest_s` in which that thread held a core; for the rest, other programs or more threads than cores took it away."""
    mean_core_s: float = 0.0
    """Time at work with a core, mean of the threads of the team."""

    def __add__(self, other: TeamTimes) -> TeamTimes:
        return TeamTimes(
            self.regions + other.regions,
            self.longest_s + other.longest_s,
            self.longest_core_s + other.longest_core_s,
            self.mean_core_s + other.mean_core_s,
        )


class Recorder:
    """Adds up wall time by operator pass. Passes never nest, so the sums never count a moment twice."""

    def __init__(self) -> None:
        self.times_s: dict[str, float] = {}
        self.watched = False
        """Whether `history` and `teams` are kept; see `watch`."""
        self.history: deque[Spans] = deque(maxlen=_KEPT)
        """When each pass ran, of the last sums taken; the newest last."""
        self.teams: deque[dict[str, TeamTimes]] = deque(maxlen=_KEPT)
        """What the teams of each pass did, of the same sums; passes without a team of ours are left out."""
        self._spans: deque[tuple[str, float, float]] = deque(maxlen=_KEPT_SPANS)
        self._teams: dict[str, TeamTimes] = {}

    def watch(self, watched: bool) -> None:
        """From now on or no more. Training keeps nothing; watching costs about a microsecond a pass."""
        self.watched = watched
        kernels.watch_teams(watched)

    @contextmanager
    def measure(self, key: str) -> Iterator[None]:
        if self.watched:
            kernels.take_team_times()  # of regions between the passes
        begin = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            self.times_s[key] = self.times_s.get(key, 0.0) + end - begin
            if self.watched:
                self._spans.append((key, begin, end))
                teams = TeamTimes(*kernels.take_team_times())
                if teams.regions:
                    self._teams[key] = self._teams.get(key, TeamTimes()) + teams

    def take(self) -> dict[str, float]:
        """The sums so far, in seconds; starts anew."""
        if self.watched:
            self.history.append(tuple(self._spans))
            self._spans.clear()
            self.teams.append(self._teams)
            self._teams = {}
        taken, self.times_s = self.times_s, {}
        return taken
