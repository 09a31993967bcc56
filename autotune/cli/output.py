"""Where a command's result goes: a table or JSON on standard output, JSON in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from autotune.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

T = TypeVar("T")


def check_outputs(*files: Path | None, inputs: Sequence[Path | str | None] = ()) -> None:
    """Before a long job.

    Args:
        inputs: Files that the command reads, or names that may be files.

    Raises:
        InputError: a result cannot be written, or would take the place of another one or of what is read.
    """
    taken = {Path(file).resolve() for file in inputs if file is not None and Path(file).is_file()}
    for file in files:
        if file is None:
            continue
        from autotune.config.files import check_writable

        check_writable(file)
        if file.resolve() in taken:
            raise InputError(f"each result needs a file of its own, got {file} for two, or for what is read; rename one")
        taken.add(file.resolve())


def speaks() -> bool:
    """Whether this process tells the result: of the ranks that a launcher started, the first alone does."""
    from autotune.ranks.environment import from_environment

    ranks = from_environment()
    return ranks is None or ranks.first


def show(result: T, render: Callable[[T, int], RenderableType], as_json: bool, output: Path | None = None) -> None:
    """Print a result, and write it as JSON to `output` where one is given: the file first, so that a closed pipe loses nothing.

    Of several ranks the first alone does.
    """
    if not speaks():
        return
    if output is not None or as_json:
        from autotune.report.json import to_json
    if output is not None:
        from autotune.config.files import write_text_atomic

        write_text_atomic(output, to_json(result))
    if as_json:
        sys.stdout.write(to_json(result))
    else:
        from rich.console import Console

        class Terminal(Console):
            def on_broken_pipe(self) -> None:
                raise BrokenPipeError  # handled once, by the command line

        console = Terminal(markup=False, highlight=False, emoji=False)
        console.print(render(result, console.width))


def say(message: str) -> None:
    """A line for people, on standard error; where nobody can be told, the work goes on."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)
