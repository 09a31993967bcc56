"""An observer that reads how long each operator pass took in every round."""

from __future__ import annotations

from autotune.bench.rounds import Observer
from autotune.ops.timing import Recorder


class PassTimes(Observer):
    """Seconds by pass of every round, the repeated ones included.

    Args:
        recorder: Recorder of the model whose steps are the rounds.
        watched: Whether it also keeps when passes ran and what their teams of threads did.
    """

    def __init__(self, recorder: Recorder, *, watched: bool = False) -> None:
        self._recorder, self._watched = recorder, watched
        self.passes_s: list[dict[str, float]] = []

    def begin(self) -> None:
        self._recorder.watch(self._watched)

    def before(self) -> None:
        if self._recorder.times_s:  # of the warm-up
            self._recorder.take()

    def after(self) -> str:
        self.passes_s.append(self._recorder.take())
        return ""

    def end(self) -> None:
        self._recorder.watch(False)
