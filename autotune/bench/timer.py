"""Callables timed side by side: rounds in which every candidate runs once, in an order drawn anew each round.

Slow drift of the machine (temperature, neighbours, page cache) then meets all candidates alike, and the ratio of two candidates is
taken within a round. `interleave` times all to the end, `race` drops those that are clearly worse on the way.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from autotune.bench.noise import Noise, NoiseMonitor
from autotune.bench.samples import ENOUGH_SAMPLES, Samples, ratio
from autotune.errors import InputError

Candidates = Mapping[str, Callable[[], object]]
Times = dict[str, list[float]]
Clock = Callable[[], float]
Eliminate = Callable[[Mapping[str, Sequence[float]], str], Collection[str]]
"""From the times of the candidates still in the race and the name of the one with the lowest median to those to drop."""

# Rounds measured again because they were disturbed, in one measurement: under steady foreign load repeating does not help.
MAX_REPEATS = 8
# After two rounds a candidate this much slower than the best is dropped without waiting for an interval: noise here is 10-30 %.
HOPELESS = 1.3
# Differences below 2 % are not worth a wrong elimination.
MARGIN = 0.02


@dataclass(frozen=True)
class Round:
    """One round that counts, as `on_round` sees it."""

    index: int
    """0-based."""
    times_s: Mapping[str, float]
    """Seconds by candidate still running."""
    spent_s: float
    """Since the measurement began, warm-up included."""
    noise: Noise | None
    """None without a monitor."""


OnRound = Callable[[Round], object]


@dataclass(frozen=True)
class Measurement:
    """Samples of every candidate, entry i of each from the same round i."""

    samples: dict[str, Samples]
    rounds: int
    """Rounds that count."""
    disturbed_rounds: int
    """Rounds the monitor called disturbed, those repeated and those kept."""
    spent_s: float
    """Wall time, warm-up and repeated rounds included."""
    notes: tuple[str, ...]
    """What a reader of the figures should know: disturbance, a budget that ended early."""

    @property
    def best(self) -> str:
        """The candidate with the lowest median among those that ran in every round."""
        return min((s.median_s, name) for name, s in self.samples.items() if len(s.times_s) == self.rounds)[1]


@dataclass(frozen=True)
class Elimination:
    """A candidate that left the race early."""

    name: str
    after_rounds: int
    """Rounds it ran; 0 when the budget did not let it start."""
    slowdown: float | None
    """Its time over the best one's, median of the rounds; None when it never ran."""


@dataclass(frozen=True)
class Race:
    """How a race went."""

    measurement: Measurement
    eliminated: tuple[Elimination, ...]
    """In the order in which they left."""
    best: str
    """Lowest median among those that stayed to the end."""


def interleave(
    candidates: Candidates,
    *,
    rounds: int | None = None,
    budget_s: float | None = None,
    min_rounds: int = 3,
    warmup: int = 1,
    monitor: NoiseMonitor | None = None,
    on_round: OnRound | None = None,
    until: Callable[[Times], bool] | None = None,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> Measurement:
    """Time every candidate once a round until a limit is met.

    Args:
        candidates: Name -> callable that does the work once.
        rounds: Rounds that count, at most.
        budget_s: Wall time, seconds; a round that would pass it, judged by the last round's length, is not begun. The first always is.
        min_rounds: Rounds before `until` is asked.
        warmup: Untimed calls of each candidate first.
        monitor: Rounds it calls disturbed are repeated, up to `MAX_REPEATS` times and within the budget.
        on_round: Called after each round that counts.
        until: Asked after each round that counts with the times so far; True ends the measurement.
        seed: Of the order inside the rounds.

    Raises:
        InputError: no candidates, or no limit given, or one that is not positive.
    """
    loop = _Loop(candidates, rounds, budget_s, monitor, on_round, seed, clock, has_end=until is not None)
    for name in candidates:
        loop.warm(name, warmup)
    while loop.may_go_on():
        loop.run_round()
        if until is not None and loop.rounds >= min_rounds and until(loop.times_s):
            break
    return loop.result(min_rounds)


def race(
    candidates: Candidates,
    *,
    default: str | None = None,
    rounds: int | None = None,
    budget_s: float | None = None,
    min_rounds: int = 3,
    warmup: int = 1,
    monitor: NoiseMonitor | None = None,
    on_round: OnRound | None = None,
    eliminate: Eliminate | None = None,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> Race:
    """Find the fastest candidate by successive elimination.

    The candidates are admitted in the order given (best expected first, after the default) for as long as the budget leaves room for
    two rounds of those admitted. After every round from the second on, `eliminate` names those to drop. The race ends at a limit, when
    one candidate is left, or when only the default and one other are left and their interval is clear.

    Args:
        default: Name of the candidate that is never dropped.
        eliminate: Default `drop_clearly_worse` from `min_rounds` on.
        rounds, budget_s, min_rounds, warmup, monitor, on_round, seed, clock: As in `interleave`.

    Raises:
        InputError: as `interleave`, or the default is not a candidate.
    """
    if default is not None and default not in candidates:
        raise InputError(f"default must be one of the candidates, got {default!r}; add it to them")
    drop = eliminate or (lambda times, best: drop_clearly_worse(times, best, min_rounds=min_rounds))
    loop = _Loop(candidates, rounds, budget_s, monitor, on_round, seed, clock, has_end=len(candidates) == 1)
    eliminated: list[Elimination] = []
    round_s = 0.0
    for name in sorted(candidates, key=lambda name: name != default):
        if loop.live and budget_s is not None and loop.spent_s + 2 * round_s > budget_s:
            eliminated.append(Elimination(name, 0, None))
            continue
        round_s += loop.warm(name, warmup)
    if eliminated:
        loop.notes.append(f"the budget of {budget_s:g} s left no time for {len(eliminated)} of {len(candidates)} candidates")
    while loop.may_go_on():
        loop.run_round()
        times_s = {name: loop.times_s[name] for name in loop.live}
        best = min(times_s, key=lambda name: statistics.median(times_s[name]))
        if loop.rounds >= 2:
            for name in drop(times_s, best):
                if name not in (best, default) and name in loop.live:
                    eliminated.append(Elimination(name, loop.rounds, ratio(times_s[name], times_s[best]).median))
                    loop.live.remove(name)
        if _decided(loop, default, best, min_rounds):
            break
    best = min(loop.live, key=lambda name: statistics.median(loop.times_s[name]))
    return Race(loop.result(min_rounds), tuple(eliminated), best)


def drop_clearly_worse(
    times_s: Mapping[str, Sequence[float]], best: str, *, min_rounds: int = 3, margin: float = MARGIN, hopeless: float = HOPELESS
) -> list[str]:
    """Names of the candidates that are not worth another round.

    Those are the hopeless, whose median and whose fastest round (so that one disturbed round condemns nobody) are above `hopeless` x the
    best one's, and, from `min_rounds` on, those whose paired ratio to the best has an interval above 1 + margin.
    """
    best_s = times_s[best]

    def is_worse(values: Sequence[float]) -> bool:
        if statistics.median(values) > hopeless * statistics.median(best_s) and min(values) > hopeless * min(best_s):
            return True
        return len(values) >= min_rounds and ratio(values, best_s).low > 1.0 + margin

    return [name for name, values in times_s.items() if name != best and is_worse(values)]


def _decided(loop: _Loop, default: str | None, best: str, min_rounds: int) -> bool:
    if loop.rounds < max(min_rounds, 2):
        return False
    others = [name for name in loop.live if name != default]
    if default is None or not others or len(others) > 1:
        return len(loop.live) == 1
    speedup = ratio(loop.times_s[default], loop.times_s[others[0]])
    return speedup.samples >= ENOUGH_SAMPLES and not speedup.low <= 1.0 <= speedup.high


@dataclass
class _Loop:
    """The state of one measurement."""

    candidates: Candidates
    limit: int | None
    budget_s: float | None
    monitor: NoiseMonitor | None
    on_round: OnRound | None
    seed: int
    clock: Clock
    has_end: bool
    """Whether something else than rounds and budget ends it."""
    live: list[str] = field(default_factory=list)
    times_s: Times = field(default_factory=dict)
    rounds: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.candidates:
            raise InputError("a measurement needs at least one candidate, got none")
        if self.limit is None and self.budget_s is None and not self.has_end:
            raise InputError("a measurement needs an end, got neither rounds nor budget_s; give one of them")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"rounds must be at least 1, got {self.limit}")
        if self.budget_s is not None and self.budget_s <= 0:
            raise InputError(f"budget_s must be positive, got {self.budget_s:g} s")
        self._begin_s = self.clock()
        self._random = random.Random(self.seed)
        self._last_round_s = 0.0
        self._repeated = 0
        self._kept_disturbed = 0
        self._reason = ""
        self._out_of_budget = False

    @property
    def spent_s(self) -> float:
        return self.clock() - self._begin_s

    def warm(self, name: str, calls: int) -> float:
        """Admit a candidate; returns the seconds of its last untimed call, 0 without one."""
        self.live.append(name)
        self.times_s[name] = []
        last_s = 0.0
        for _ in range(calls):
            last_s = self._time(name)
        return last_s

    def may_go_on(self) -> bool:
        if self.limit is not None and self.rounds >= self.limit:
            return False
        if self.rounds and not self._affords_round():
            self._out_of_budget = True
            return False
        return True

    def run_round(self) -> None:
        """One round that counts, after those that were disturbed and can be repeated."""
        while True:
            times_s, noise = self._round()
            if noise is None or not noise.disturbed:
                break
            self._reason = noise.reason
            if self._repeated >= MAX_REPEATS or not self._affords_round():
                self._kept_disturbed += 1
                break
            self._repeated += 1
        for name, value in times_s.items():
            self.times_s[name].append(value)
        self.rounds += 1
        if self.on_round is not None:
            self.on_round(Round(self.rounds - 1, times_s, self.spent_s, noise))

    def result(self, min_rounds: int) -> Measurement:
        disturbed = self._repeated + self._kept_disturbed
        notes = list(self.notes)
        if disturbed:
            notes.append(
                f"{disturbed} of {self.rounds + self._repeated} rounds were disturbed ({self._reason}): "
                f"{self._repeated} measured again, {self._kept_disturbed} kept"
            )
        if self._out_of_budget and self.rounds < min_rounds:
            notes.append(f"the budget of {self.budget_s:g} s ended after {self.rounds} of at least {min_rounds} rounds; give a larger one")
        samples = {name: Samples(tuple(values)) for name, values in self.times_s.items()}
        return Measurement(samples, self.rounds, disturbed, self.spent_s, tuple(notes))

    def _affords_round(self) -> bool:
        return self.budget_s is None or self.spent_s + self._last_round_s <= self.budget_s

    def _round(self) -> tuple[dict[str, float], Noise | None]:
        order = list(self.live)
        self._random.shuffle(order)
        begin_s = self.clock()
        collecting = gc.isenabled()
        gc.disable()
        try:
            if self.monitor is not None:
                self.monitor.start()
            timed = {name: self._time(name) for name in order}
            noise = self.monitor.stop() if self.monitor is not None else None
        finally:
            if collecting:
                gc.enable()
        self._last_round_s = self.clock() - begin_s
        return {name: timed[name] for name in self.live}, noise

    def _time(self, name: str) -> float:
        call = self.candidates[name]
        begin_s = self.clock()
        call()
        return self.clock() - begin_s
