"""Progress bars on a terminal; on anything else only what a user should see once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from autotune.bench.progress import NO_PROGRESS
from autotune.bench.progress import Progress as ProgressProtocol
from autotune.cli.output import speaks


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


class _Lines:
    """No bars: standard error is a file or a pipe."""

    def phase(self, name: str, total: float | None) -> None:
        pass

    def advance(self, amount: float, detail: str = "") -> None:
        pass

    def note(self, message: str) -> None:
        print(f"note: {message}", file=sys.stderr, flush=True)


@contextmanager
def reporting() -> Iterator[ProgressProtocol]:
    """Progress of a long computation, on standard error; of several ranks the first alone reports. The bar is always taken down."""
    if not speaks():
        yield NO_PROGRESS
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
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
