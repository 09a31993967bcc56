"""Runs a function of the library in every rank and returns rank 0's result.

One rank is the calling process. Several ranks are processes of their own, started and watched by `ranks.supervisor`, each of which calls
the same function with the same arguments; where a launcher (torchrun, mpirun, srun) has already made this process a rank, it only joins.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from autotune.config.files import load_tuned
from autotune.config.knobs import RunConfig
from autotune.config.profile import Topology
from autotune.config.tuned import TunedConfig
from autotune.errors import InputError
from autotune.machine.scratch import scratch_folder
from autotune.machine.topology import detect
from autotune.ranks.binding import core_sets, topology_of
from autotune.ranks.child import command_line
from autotune.ranks.environment import FOLDER, from_environment
from autotune.ranks.interfaces import check_loopback
from autotune.ranks.launch import launch_of
from autotune.ranks.supervisor import supervise
from autotune.ranks.variables import shares_cores

P = ParamSpec("P")
T = TypeVar("T")

CALL, RESULT, PROGRESS = "call", "result", "progress"
"""Files in the ranks' folder: what they call, what rank 0 returned, and what it reported meanwhile."""


def on_every_rank(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a library function so that it runs in every rank that its arguments ask for.

    The function may have the keywords `sockets`, `config` and `progress`. It must return the same on every rank.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        count = wanted_ranks(arguments.get("sockets"), arguments.get("config"))
        if count == 1 or from_environment() is not None:
            return function(*args, **kwargs)
        here = detect()
        parts = core_sets(here, count, oversubscribe=shares_cores())
        note = replaced_variables([topology_of(here, part) for part in parts])
        if note and "progress" in arguments:
            cast(Any, arguments["progress"]).note(note)
        return run_apart(function, arguments, ranks=count)

    return call


def replaced_variables(ranks: Sequence[Topology], environ: Mapping[str, str] = os.environ) -> str:
    """Which of the user's variables of OpenMP every rank replaces, and by what; empty where there is none.

    Args:
        ranks: The cores of every rank.
    """
    ours = [launch_of(RunConfig(threads=rank.physical_cores), rank).environment for rank in ranks]
    told = []
    for name in sorted(name for name in ours[0] if name.startswith("OMP_") and name in environ):
        values = list(dict.fromkeys(launch[name] for launch in ours))
        if values != [environ[name]]:
            told.append(f"{name}={environ[name]!r} by {' and '.join(map(repr, values[:2]))}{' and so on' if len(values) > 2 else ''}")
    return f"several ranks take threads and cores of their own instead of what is set: {', '.join(told)}" if told else ""


def wanted_ranks(sockets: int | None, config: TunedConfig | RunConfig | str | Path | None = None) -> int:
    """How many ranks are asked for: those of the launcher, of the caller, or of the config.

    Raises:
        InputError: two of them differ, or the caller's number is below 1.
    """
    if sockets is not None and sockets < 1:
        raise InputError(f"sockets must be 1 or more, got {sockets} (--sockets); write --sockets 1")
    ranks = from_environment()
    tuned = load_tuned(config) if isinstance(config, str | Path) else config if isinstance(config, TunedConfig) else None
    asked = {
        "the launcher's ranks": ranks.world if ranks else None,
        "--sockets": sockets,
        f"sockets of {config if isinstance(config, str | Path) else 'the config'}": tuned.sockets if tuned else None,
    }
    given = {name: count for name, count in asked.items() if count is not None}
    if len(set(given.values())) > 1:
        counts = ", ".join(f"{name}: {count}" for name, count in given.items())
        raise InputError(f"the number of sockets must be one, got {counts}; leave out --sockets, or tune for this number")
    return next(iter(given.values()), 1)


def run_apart(function: Callable[..., T], arguments: Mapping[str, Any], *, ranks: int = 1, environ: Mapping[str, str] = os.environ) -> T:
    """Call a function of the library in `ranks` new processes and return what rank 0 returns.

    Args:
        function: of a module, found there again by its name.
        arguments: its keywords. Whoever is its `progress` here hears what rank 0 reports.
        environ: of the processes.

    Raises:
        AutotuneError: see `supervise`.
    """
    if ranks > 1:
        check_loopback()
    # A rank's own children work in its supervisor's folder, which goes with the run also where the rank is killed.
    outer = os.environ.get(FOLDER)
    with scratch_folder("autotune-ranks-", Path(outer) if outer else None) as folder:
        sent = {key: value for key, value in arguments.items() if key != "progress"}
        (folder / CALL).write_bytes(pickle.dumps((function.__module__, function.__qualname__, sent, "progress" in arguments)))
        progress = arguments.get("progress")
        if progress is not None:
            progress.phase(f"starting {ranks} ranks" if ranks > 1 else "starting a process", None)
        relay = _Relay(folder / PROGRESS, progress)
        supervise(ranks, command_line("autotune.ranks.worker"), folder, environ=environ, on_poll=relay.poll)
        relay.poll()
        return cast(T, pickle.loads((folder / RESULT).read_bytes()))


class _Relay:
    """Tells a progress what rank 0 has written into a file since the last look."""

    def __init__(self, file: Path, progress: Any) -> None:
        self._file, self._progress, self._read = file, progress, 0

    def poll(self) -> None:
        if self._progress is None or not self._file.exists():
            return
        with self._file.open("rb") as stream:
            stream.seek(self._read)
            lines = stream.read().rpartition(b"\n")[0]
        self._read += len(lines) + 1 if lines else 0
        for line in lines.splitlines():
            with suppress(ValueError):  # half a line, of a disk that was full
                method, *arguments = json.loads(line)
                getattr(self._progress, method)(*arguments)
