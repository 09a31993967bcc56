"""A second witness of a verdict: what the hardware's counters say of the same pass, where there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autotune.bench.counters import HARDWARE, Counters
from autotune.bench.rounds import run_rounds, timed

_LINE_BYTES = 64
_CALLS = 3
_FROM_MEMORY = 0.5
"""Missed bytes over compulsory ones from which data came from memory; prefetchers, which do not count, bring a part of the rest."""
_BUSY = 1.0
"""Instructions a cycle from which a core computes rather than waits."""


@dataclass(frozen=True)
class Testimony:
    """Counters of one pass."""

    instructions_per_cycle: float | None
    missed_bytes: float | None
    """64 bytes a miss of the last-level cache, in one call."""
    agrees: bool | None
    """Whether they say what the verdict says; None where they do not tell."""
    detail: str


class Witness:
    """Counts what calls do. Without counters it has nothing to say: `absent` tells why."""

    def __init__(self, events: Callable[[], Counters] = lambda: Counters(HARDWARE)) -> None:
        self._events = events
        with events() as counters:
            self.absent = "" if counters.names else "; ".join(dict.fromkeys(counters.missing.values()))

    def of(self, call: Callable[[], object], binder: str, compulsory_bytes: int) -> Testimony | None:
        """Of a pass, called a few times; None without counters.

        Args:
            call: With its data where the verdict found them.
            compulsory_bytes: That one call has to move.
        """
        if self.absent:
            return None
        with self._events() as counters:  # anew: a team of threads may have come into being
            run_rounds({"pass": timed(call)}, max_rounds=_CALLS, warmup=0, observers=(counters,))
            counts = {name: count / _CALLS for name, count in counters.counted.items()}
        return judge(counts, binder, compulsory_bytes)


def judge(counts: Mapping[str, float], binder: str, compulsory_bytes: int) -> Testimony:
    """Memory: most of the compulsory bytes missed the caches. Compute: they did not, or the cores retired an instruction a cycle."""
    cycles, instructions, misses = (counts.get(name) for name in ("cycles", "instructions", "cache_misses"))
    per_cycle = instructions / cycles if cycles and instructions is not None else None
    missed = _LINE_BYTES * misses if misses is not None else None
    told = [f"{per_cycle:.1f} instructions a cycle"] if per_cycle is not None else []
    share = missed / compulsory_bytes if missed is not None and compulsory_bytes else None
    if share is not None:
        told.append(f"{share:.0%} of its bytes missed the last-level cache")
    agrees: bool | None = None
    if binder == "memory" and share is not None:
        agrees = share >= _FROM_MEMORY
    elif binder == "compute" and per_cycle is not None:
        agrees = per_cycle >= _BUSY or (share is not None and share < _FROM_MEMORY)
    return Testimony(per_cycle, missed, agrees, "; ".join(told))
