"""Where the time of a training step goes: the sum of each pass's time over the steps recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Recorder:
    """Adds up wall time by operator pass. Passes never nest, so the sums never count a moment twice."""

    def __init__(self) -> None:
        self.times_s: dict[str, float] = {}

    @contextmanager
    def measure(self, key: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.times_s[key] = self.times_s.get(key, 0.0) + time.perf_counter() - begin

    def take(self) -> dict[str, float]:
        """The sums so far, in seconds; starts anew."""
        taken, self.times_s = self.times_s, {}
        return taken
