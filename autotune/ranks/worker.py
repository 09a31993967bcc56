"""The process of one rank, started by `ranks.driver` as a child; see `ranks.child`."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import time
from contextlib import suppress
from pathlib import Path

from autotune.ranks import interrupt
from autotune.ranks.driver import CALL, PROGRESS, RESULT
from autotune.ranks.environment import FOLDER
from autotune.ranks.failures import told
from autotune.ranks.launch import allow_restart
from autotune.ranks.supervisor import beat, report_error

_REPORT_S = 0.1


class FileProgress:
    """A progress that appends its calls to a file, a line of JSON each, `advance` at most ten times a second."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._amount, self._detail, self._written_s = 0.0, "", 0.0

    def phase(self, name: str, total: float | None) -> None:
        self.close()
        self._write("phase", name, total)

    def advance(self, amount: float, detail: str = "") -> None:
        self._amount += amount
        self._detail = detail
        if time.monotonic() - self._written_s >= _REPORT_S:
            self.close()

    def note(self, message: str) -> None:
        self._write("note", message)

    def close(self) -> None:
        """Write what `advance` has held back."""
        if self._amount:
            self._write("advance", self._amount, self._detail)
            self._amount, self._written_s = 0.0, time.monotonic()

    def _write(self, *call: object) -> None:
        with suppress(OSError), self._file.open("a", encoding="utf-8") as stream:  # a full disk must not end the work
            stream.write(json.dumps(call) + "\n")


def main() -> int:
    """Call what the folder asks for; the exit code."""
    allow_restart()
    interrupt.install(rank=True)
    folder, rank = Path(os.environ[FOLDER]), int(os.environ["RANK"])
    beat(folder, rank)
    try:
        with interrupt.raising():
            return _call(folder, rank)
    except KeyboardInterrupt as error:
        os._exit(interrupt.exit_code(error))
    except Exception as error:
        problem = told(error)
        with suppress(OSError):  # on a full disk the exit code alone tells
            report_error(folder, rank, problem)
        # Not through torch's destructors: with a collective under way they may wait, or abort.
        os._exit(problem.exit_code)


def _call(folder: Path, rank: int) -> int:
    module, function, arguments, reports = pickle.loads((folder / CALL).read_bytes())
    progress = FileProgress(folder / PROGRESS)
    if rank == 0 and reports:
        arguments["progress"] = progress
    result = getattr(importlib.import_module(module), function)(**arguments)
    if rank == 0:
        progress.close()
        (folder / RESULT).write_bytes(pickle.dumps(result))
    return 0
