"""Successive elimination: candidates timed in interleaved rounds, those that are clearly slower dropped on the way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from autotune.bench.rounds import Clock, Measurement, Observer, Times, Turn, run_rounds
from autotune.bench.samples import ENOUGH_SAMPLES, ratio
from autotune.errors import InputError

Eliminate = Callable[[Times, str], Collection[str]]
"""From the times of the candidates still in the race and the name of the one with the lowest median to those to drop."""

# After two rounds a candidate this much slower than the best is dropped without waiting for an interval: noise here is 10-30 %.
_HOPELESS = 1.3
# Differences below 2 % are not worth a wrong elimination.
_MARGIN = 0.02


@dataclass(frozen=True)
class Race:
    """How a race went."""

    measurement: Measurement
    ranking: tuple[str, ...]
    """Candidates that stayed to the end, the lowest median first."""
    eliminated: Mapping[str, int]
    """Rounds that each of the others ran, in the order in which they left; 0 where the budget did not let one start."""
    notes: tuple[str, ...]
    """Those of the measurement, and candidates that did not start."""


def race(
    candidates: Mapping[str, Turn],
    *,
    max_rounds: int,
    default: str | None = None,
    budget_s: float | None = None,
    min_rounds: int = 3,
    observers: Sequence[Observer] = (),
    eliminate: Eliminate | None = None,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> Race:
    """Find the fastest candidates.

    The candidates are admitted in the order given (best expected first, after the default) for as long as the budget leaves room for
    two rounds of those admitted. After every round from the second on, `eliminate` names those to drop. The race ends at a limit, when
    one candidate is left, or when only the default and one other are left and their interval is clear.

    Args:
        default: Name of the candidate that is never dropped.
        min_rounds: Rounds before the race is decided.
        eliminate: Default `drop_clearly_worse` from `min_rounds` on.
        max_rounds, budget_s, observers, seed, clock: As in `run_rounds`.

    Raises:
        InputError: as `run_rounds`, or the default is not a candidate.
    """
    if default is not None and default not in candidates:
        raise InputError(f"default must be one of the candidates, got {default!r}; add it to them")
    worse = eliminate or (lambda times_s, best: drop_clearly_worse(times_s, best, min_rounds=min_rounds))
    begin_s, round_s = clock(), 0.0
    admitted: dict[str, Turn] = {}
    eliminated: dict[str, int] = {}
    for name in sorted(candidates, key=lambda name: name != default):
        turn_begin_s = clock()
        if admitted and budget_s is not None and turn_begin_s - begin_s + 2 * round_s > budget_s:
            eliminated[name] = 0
            continue
        candidates[name]()
        round_s += clock() - turn_begin_s
        admitted[name] = candidates[name]
    late = f"the budget of {budget_s:g} s left no time for {len(eliminated)} of {len(candidates)} candidates" if eliminated else ""

    def drop(times_s: Times) -> list[str]:
        best, rounds = _fastest(times_s), len(next(iter(times_s.values())))
        gone = [name for name in worse(times_s, best) if name not in (best, default)] if rounds >= 2 else []
        eliminated.update(dict.fromkeys(gone, rounds))
        return gone

    measurement = run_rounds(
        admitted,
        max_rounds=max_rounds,
        budget_s=None if budget_s is None else budget_s - (clock() - begin_s),
        enough_rounds=max(min_rounds, 2),
        warmup=0,
        observers=observers,
        until=lambda times_s: _decided(times_s, default),
        drop=drop,
        seed=seed,
        clock=clock,
    )
    medians = {name: samples.median_s for name, samples in measurement.samples.items() if name not in eliminated}
    ranking = tuple(sorted(medians, key=lambda name: medians[name]))
    return Race(measurement, ranking, eliminated, tuple(filter(None, (late, *measurement.notes))))


def drop_clearly_worse(times_s: Mapping[str, Sequence[float]], best: str, *, min_rounds: int = 3) -> list[str]:
    """Names of the candidates that are not worth another round.

    Those are the hopeless, whose median and whose fastest round (so that one disturbed round condemns nobody) are above `_HOPELESS` x the
    best one's, and, from `min_rounds` on, those whose paired ratio to the best has an interval above 1 + `_MARGIN`.
    """
    best_s = times_s[best]

    def is_worse(values: Sequence[float]) -> bool:
        if statistics.median(values) > _HOPELESS * statistics.median(best_s) and min(values) > _HOPELESS * min(best_s):
            return True
        return len(values) >= min_rounds and ratio(values, best_s).low > 1.0 + _MARGIN

    return [name for name, values in times_s.items() if name != best and is_worse(values)]


def _fastest(times_s: Times) -> str:
    return min(times_s, key=lambda name: statistics.median(times_s[name]))


def _decided(times_s: Times, default: str | None) -> bool:
    others = [name for name in times_s if name != default]
    if default is None or len(others) != 1:
        return len(times_s) == 1
    speedup = ratio(times_s[default], times_s[others[0]])
    return speedup.samples >= ENOUGH_SAMPLES and not speedup.low <= 1.0 <= speedup.high
