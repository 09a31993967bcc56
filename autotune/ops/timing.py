"""Where the time of a training step goes: the sum of each pass's time over the steps recorded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

Spans = tuple[tuple[str, float, float], ...]
"""Operator pass, begin and end by ``time.perf_counter``, in the order they ended."""

_KEPT = 256
# Where nobody takes the sums, as in plain training, memory must not grow: far more than one step has.
_KEPT_SPANS = 4096


class Recorder:
    """Adds up wall time by operator pass. Passes never nest, so the sums never count a moment twice."""

    def __init__(self) -> None:
        self.times_s: dict[str, float] = {}
        self.keeps_spans = False
        """Whether `history` is kept, for a timeline: training keeps nothing."""
        self.history: deque[Spans] = deque(maxlen=_KEPT)
        """When each pass ran, of the last sums taken; the newest last."""
        self._spans: deque[tuple[str, float, float]] = deque(maxlen=_KEPT_SPANS)

    @contextmanager
    def measure(self, key: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            self.times_s[key] = self.times_s.get(key, 0.0) + end - begin
            if self.keeps_spans:
                self._spans.append((key, begin, end))

    def take(self) -> dict[str, float]:
        """The sums so far, in seconds; starts anew."""
        if self.keeps_spans:
            self.history.append(tuple(self._spans))
            self._spans.clear()
        taken, self.times_s = self.times_s, {}
        return taken
