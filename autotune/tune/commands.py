"""A command of this tool in processes of its own, with its result as a value: what the API does for several sockets.

Threads and cores are decided before a process starts, so that ranks cannot be started inside the caller's; the command starts them.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from pydantic import TypeAdapter

from autotune.config.files import write_yaml
from autotune.config.model import DataSpec, Model
from autotune.config.tuned import TunedConfig
from autotune.errors import AutotuneError, InputError, MachineError, VerificationError

T = TypeVar("T")
_CLASSES: dict[int, type[AutotuneError]] = {1: VerificationError, 2: InputError, 3: MachineError}
_END_S = 30.0


def call(words: Sequence[str], result: type[T]) -> T:
    """Run ``autotune WORDS --json`` and read what it prints; its notes go to standard error at its end.

    Raises:
        AutotuneError: the command's own error, of the class that stands for its exit code.
        KeyboardInterrupt: passed on, once the command has kept its state and ended.
    """
    line = [sys.executable, "-m", "autotune", *words, "--json"]
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            told, said = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    *notes, last = said.strip().splitlines() or [""]
    code = process.returncode
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    # A result that says no is a result.
    if code == 0 or (code == VerificationError.exit_code and told):
        return TypeAdapter(result).validate_json(told, extra="ignore")
    ended = f"a command must end by itself, got exit code {code}; start again"
    raise _CLASSES.get(code, MachineError)(last.removeprefix("error: ") or ended)


@contextmanager
def as_file(value: Model | TunedConfig | str | Path) -> Iterator[str]:
    """How a command line names it: the name or file that it is, or a file that holds it while inside."""
    if isinstance(value, str | Path):
        yield str(value)
        return
    with TemporaryDirectory(prefix="autotune-") as folder:
        file = Path(folder) / f"{value.name if isinstance(value, Model) else 'config'}.yaml"
        write_yaml(file, value)
        yield str(file)


def data_words(data: DataSpec | None, model: Model) -> list[str]:
    """``--data`` as it asks for `data`.

    Raises:
        InputError: the option cannot say it.
    """
    if data is None or data == model.data:
        return []
    if data.pooling_kind != model.data.pooling_kind or not data.hashed:
        got = f"pooling_kind {data.pooling_kind}, hashed {data.hashed}"
        raise InputError(f"on several sockets data may differ from the model's in distribution alone, got {got}; write them into the model")
    rest = data.path if data.alpha is None else f"{data.alpha!r}"
    return ["--data", data.distribution if rest is None else f"{data.distribution}:{rest}"]
