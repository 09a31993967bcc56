"""An observer that reads how long each operator pass took in every round."""

from __future__ import annotations

import statistics

from autotune.bench.rounds import Observer, Round
from autotune.ops.timing import Recorder


class PassTimes(Observer):
    """Seconds by pass of training steps, each of which is a round.

    Args:
        recorder: Recorder of the model.
        watched: Whether it also keeps when passes ran and what their teams of threads did.
    """

    def __init__(self, recorder: Recorder, *, watched: bool = False) -> None:
        self._recorder, self._watched = recorder, watched
        self.passes_s: list[dict[str, float]] = []
        """Seconds by pass of every step, those that do not count included."""
        self.counted: list[int] = []
        """Entries of `passes_s` that count."""
        self.iterations_s: list[float] = []
        """Seconds of the steps that count."""

    def begin(self) -> None:
        self._recorder.watch(self._watched)

    def before(self) -> None:
        if self._recorder.times_s:  # of the warm-up
            self._recorder.take()

    def after(self) -> str:
        self.passes_s.append(self._recorder.take())
        return ""

    def done(self, finished: Round) -> None:
        if finished.counts:
            self.counted.append(len(self.passes_s) - 1)
            self.iterations_s += [time_s for times_s in finished.times_s.values() for time_s in times_s]

    def end(self) -> None:
        self._recorder.watch(False)

    @property
    def back(self) -> tuple[int, ...]:
        """Places of the steps that count from the end of the recorder's history; the last step is 1."""
        return tuple(len(self.passes_s) - number for number in self.counted)

    @property
    def typical(self) -> int:
        """Place of the step nearest to the median from the end of the recorder's history."""
        median_s = statistics.median(self.iterations_s)
        nearest = min(range(len(self.counted)), key=lambda i: abs(self.iterations_s[i] - median_s))
        return self.back[nearest]
