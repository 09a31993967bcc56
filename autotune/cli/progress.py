"""Progress on standard error: bars on a terminal, on anything else a line now and then, so that a log shows life."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from autotune.bench.progress import NO_PROGRESS
from autotune.bench.progress import Progress as ProgressProtocol
from autotune.cli.output import say, speaks
from autotune.units import format_time

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_S = 10.0
"""Seconds between two lines where standard error is a file or a pipe."""


class _Bar:
    """One line a phase: name, bar, elapsed time, time left, what is being worked on."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def phase(self, name: str, total: float | None) -> None:
        self._finish()
        self._task = self._bars.add_task(name, total=total, detail="")

    def advance(self, amount: float, detail: str = "") -> None:
        if self._task is not None:
            self._bars.update(self._task, advance=amount, detail=detail)

    def note(self, message: str) -> None:
        self._bars.console.print(f"note: {message}")

    def _finish(self) -> None:
        if self._task is not None:
            task = self._bars.tasks[-1]
            done = task.total if task.total is not None else max(task.completed, 1.0)
            self._bars.update(self._task, total=done, completed=done, detail="")


class Lines:
    """A line when the first phase begins, and one every `every_s` from then on: phase, part done, time taken and left.

    A thread writes them, since work may be silent for minutes. Input is checked before the first phase, so that a refusal stays one line.
    """

    def __init__(self, every_s: float = LINE_S) -> None:
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._now: tuple[str, float | None, float, str, float] = ("", None, 0.0, "", 0.0)
        """Phase, its total, what is done of it, what is being worked on, and when it began: replaced as a whole."""

    def phase(self, name: str, total: float | None) -> None:
        self._now = (name, total, 0.0, "", time.monotonic())
        if self._thread is None:
            self._say()
            self._thread = threading.Thread(target=self._run, daemon=True, name="autotune-progress")
            self._thread.start()

    def advance(self, amount: float, detail: str = "") -> None:
        name, total, done, _, begin_s = self._now
        self._now = (name, total, done + amount, detail, begin_s)

    def note(self, message: str) -> None:
        say(f"note: {message}")

    def end(self) -> None:
        """No line comes after this."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def line(self) -> str:
        """``progress: racing operators, 40% after 26.0 s, about 39.0 s left (top_mlp.0.forward)``."""
        name, total, done, detail, begin_s = self._now
        taken_s = time.monotonic() - begin_s
        parts = [f"progress: {name}"]
        if total and done:
            left_s = taken_s * max(0.0, total / done - 1.0)
            parts.append(f"{min(1.0, done / total):.0%} after {format_time(taken_s)}, about {format_time(left_s)} left")
        elif taken_s >= 1.0:
            parts.append(f"for {format_time(taken_s)}")
        return ", ".join(parts) + (f" ({detail})" if detail else "")

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._say()

    def _say(self) -> None:
        say(self.line())


@contextmanager
def reporting() -> Iterator[ProgressProtocol]:
    """Progress of a long computation, on standard error; of several ranks the first alone reports. The bar is always taken down."""
    if not speaks():
        yield NO_PROGRESS
        return
    if not sys.stderr.isatty():
        lines = Lines()
        try:
            yield lines
        finally:
            lines.end()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    # Twice a second: a bar redrawn at 10 Hz would take 1-2 % of a core from what is measured.
    with Progress(*columns, console=console, refresh_per_second=2, transient=False) as bars:
        yield _Bar(bars)
