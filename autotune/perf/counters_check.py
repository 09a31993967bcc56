"""A second witness of a verdict: what the hardware's counters say of the same pass, where there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autotune.bench.counters import HARDWARE, Counters
from autotune.bench.rounds import run_rounds, timed

_LINE_BYTES = 64
_CALLS = 3
_FROM_MEMORY = 0.5
"""Missed bytes over compulsory ones from which data came from memory; prefetchers, which do not count, bring a part of the rest."""
_BUSY = 1.0
"""Instructions a cycle from which a core computes rather than waits."""


Testimony = tuple[bool | None, str]
"""Whether the counters of a pass say what its verdict says, None where they do not tell; and what they say."""


class Witness:
    """Counts what calls do. Without counters it has nothing to say, and `absent` is the reason."""

    def __init__(self, events: Callable[[], Counters] = lambda: Counters(HARDWARE)) -> None:
        self._events = events
        with events() as counters:
            self.absent = "" if counters.names else "; ".join(dict.fromkeys(counters.missing.values()))

    def of(self, call: Callable[[], object], binder: str, compulsory_bytes: int) -> Testimony | None:
        """Testimony on a pass, called a few times; None without counters.

        Args:
            call: With its data where the verdict found them.
            compulsory_bytes: Bytes that one call has to move.
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
    words = [f"{per_cycle:.1f} instructions a cycle"] if per_cycle is not None else []
    share = _LINE_BYTES * misses / compulsory_bytes if misses is not None and compulsory_bytes else None
    if share is not None:
        words.append(f"{share:.0%} of its bytes missed the last-level cache")
    agrees: bool | None = None
    if binder == "memory" and share is not None:
        agrees = share >= _FROM_MEMORY
    elif binder == "compute" and per_cycle is not None:
        agrees = per_cycle >= _BUSY or (share is not None and share < _FROM_MEMORY)
    return agrees, "; ".join(words)
