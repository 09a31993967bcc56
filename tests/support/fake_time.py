"""A clock that only the participants of a measurement move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, repeat

from autotune.bench.noise import NoiseMonitor, Reading
from autotune.bench.rounds import Turn, timed


class FakeTime:
    """A clock that only the candidates move."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now_s

    def candidate(self, name: str, *times_s: float) -> Turn:
        """Takes the given times in turn, the last one ever after."""
        left = chain(times_s, repeat(times_s[-1]))

        def call() -> None:
            self.calls.append(name)
            self.now_s += next(left)

        return timed(call, self.clock)

    def candidates(self, **times_s: float) -> dict[str, Turn]:
        return {name: self.candidate(name, value) for name, value in times_s.items()}

    def monitor(self, disturbed: Iterable[bool]) -> NoiseMonitor:
        """Foreign programs take all CPUs in the windows that are named disturbed."""
        readings = self._readings(chain(disturbed, repeat(False)))
        return NoiseMonitor(cpus=[0, 1], read=lambda: next(readings))

    def _readings(self, verdicts: Iterable[bool]) -> Iterator[Reading]:
        busy_s = 0.0
        for verdict in verdicts:
            begin_s = self.now_s
            yield Reading(self.now_s, busy_s, 0.0, 0.0, None)
            busy_s += 2 * (self.now_s - begin_s) if verdict else 0.0
            yield Reading(self.now_s, busy_s, 0.0, 0.0, None)
