"""Starts one process a rank on this machine, watches them, and ends them all together.

The elastic agent of torchrun notices a rank that ends, but not one that hangs or is stopped; so the ranks here beat, and a supervisor of
our own watches. Under torchrun, mpirun or srun the ranks join without it. What a rank does for its supervisor (beat, leave its error) is
here too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from autotune.errors import AutotuneError, MachineError, VerificationError, error_class
from autotune.machine.activity import LOADING, current_activity
from autotune.ranks import child
from autotune.ranks.environment import FOLDER
from autotune.ranks.group import PeerLostError
from autotune.ranks.interfaces import LOOPBACK, VARIABLE
from autotune.ranks.variables import HANG_S, HANG_VARIABLE, STALL_S, STALL_VARIABLE, START_S, START_VARIABLE, seconds

BEAT_S = 0.5
_MISSED_S = 2 * BEAT_S
_POLL_S = 0.05
# A rank that ends takes the others with it through their connections; the first to be seen is not always the cause.
_SETTLE_S = 0.7
_END_S = 3.0


class AwakeClock:
    """Seconds in which this process was there to look: while it was stopped (Ctrl-Z, a paused machine), at most a second passes.

    It must be read more often than once a second. It does not follow the time of day, which may be set.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._last_s, self._awake_s = now, now(), 0.0

    def __call__(self) -> float:
        now_s = self._now()
        self._awake_s += min(now_s - self._last_s, _MISSED_S)
        self._last_s = now_s
        return self._awake_s


def beat(folder: Path, rank: int) -> None:
    """Start a thread that writes twice a second what this rank does and for how long, while this process lives and is not stopped."""

    def run() -> None:
        clock, doing, begin_s, beats = AwakeClock(), current_activity(), 0.0, 0
        while folder.exists():  # it goes when the supervisor has ended
            with suppress(OSError):  # a disk may be full for a while
                now_s, now = clock(), current_activity()
                if now is not doing:
                    doing, begin_s = now, now_s
                beats += 1
                temporary = folder / f"beating.{rank}"
                temporary.write_text(f"{beats} {int(now.waits)} {int(now.limited)} {now_s - begin_s:.1f} {now.what}", encoding="utf-8")
                temporary.replace(folder / f"beat.{rank}")
            time.sleep(BEAT_S)

    threading.Thread(target=run, daemon=True, name="autotune-beat").start()


def report_error(folder: Path, rank: int, error: AutotuneError) -> None:
    """Leave a rank's error to its supervisor, which says it once."""
    (folder / f"error.{rank}").write_text(f"{error.exit_code} {type(error).__name__} {error}", encoding="utf-8")


def supervise(
    ranks: int,
    command: Sequence[str],
    folder: Path,
    *,
    environ: Mapping[str, str] = os.environ,
    on_poll: Callable[[], object] = lambda: None,
) -> None:
    """Run `command` as every rank and wait for all. Rank 0 has this process's standard error; no rank has its standard output.

    Args:
        command: Of a child; see `child.command_line`.
        folder: Empty, private to these ranks.
        environ: What the ranks inherit.
        on_poll: Called every 50 ms while the ranks run.

    Raises:
        AutotuneError: a rank ended with an error, died or hung; names rank and cause, and has the exit code of that rank's own error.
            No process is left.
        KeyboardInterrupt: passed on, once every rank has ended.
    """
    limits_s = (seconds(START_VARIABLE, START_S), seconds(HANG_VARIABLE, HANG_S), seconds(STALL_VARIABLE, STALL_S))
    watch = _Watch(folder, *limits_s)
    processes: list[subprocess.Popen[Any]] = []
    try:
        for rank in range(ranks):
            processes.append(_start(rank, ranks, command, folder, environ))
        while any([process.poll() != 0 for process in processes]):
            on_poll()
            if any(process.returncode not in (None, 0) for process in processes):
                time.sleep(_SETTLE_S)
                _blame([process.poll() for process in processes], folder)
            watch.check({rank: process.pid for rank, process in enumerate(processes) if process.returncode is None})
            time.sleep(_POLL_S)
        on_poll()
    finally:
        _end(processes)


def _start(rank: int, ranks: int, line: Sequence[str], folder: Path, environ: Mapping[str, str]) -> subprocess.Popen[Any]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    own = {name: str(number) for name, number in numbers.items()} | {FOLDER: str(folder)}
    # Everything is on this machine; the address of another interface would be found by host name, or not at all.
    own[VARIABLE] = LOOPBACK
    with (folder / f"stderr.{rank}").open("wb") as errors:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": None if rank == 0 else errors}
        return child.start(line, {**environ, **own}, **streams)


@dataclass
class _Told:
    """The last beat of a rank."""

    beat: str = ""
    heard_s: float = 0.0
    """When it came, by the supervisor's clock."""
    waits: bool = False
    limited: bool = False
    lasting_s: float = 0.0
    what: str = LOADING
    loaded: bool = False
    """It has told of something else than loading."""


class _Watch:
    """Hears the ranks' beats, and finds the rank that hangs.

    Args:
        folder: Where they beat.
        start_s: Limit of loading.
        hang_s: Limit of a training step, and of silence after loading.
        stall_s: Limit of everything else that no rank comes further in.
        clock: Passes only while this process looks.
    """

    def __init__(self, folder: Path, start_s: float, hang_s: float, stall_s: float, clock: Callable[[], float] | None = None) -> None:
        self._folder, self._start_s, self._hang_s, self._stall_s = folder, start_s, hang_s, stall_s
        self._clock = clock or AwakeClock()
        self._told: dict[int, _Told] = {}

    def check(self, pids: Mapping[int, int]) -> None:
        """Look once.

        Args:
            pids: Of the ranks that run.

        Raises:
            MachineError: a rank is silent, a step takes too long, or nobody comes further; names the ranks that keep the others waiting.
        """
        now_s = self._clock()
        self._told = {rank: self._hear(rank, now_s) for rank in pids}
        for rank, told in self._told.items():
            limit_s, variable = (self._hang_s, HANG_VARIABLE) if told.loaded else (self._start_s, START_VARIABLE)
            if now_s - told.heard_s > limit_s:
                raise MachineError(
                    f"every rank must {'answer' if told.loaded else 'load torch'} within {limit_s:g} s ({variable}), "
                    f"got no sign of rank {rank} (process {pids[rank]}): "
                    "it is stopped or hangs; all ranks were ended, look at that process's core, or allow more, and start again"
                )
        if any(told.limited and told.lasting_s > self._hang_s for told in self._told.values()):
            self._blame_slow(pids, f"a training step must end within {self._hang_s:g} s", HANG_VARIABLE)
        if self._told and all(told.loaded and told.lasting_s > self._stall_s for told in self._told.values()):
            self._blame_slow(pids, f"some rank must come further within {self._stall_s:g} s", STALL_VARIABLE)

    def _hear(self, rank: int, now_s: float) -> _Told:
        before = self._told.get(rank) or _Told(heard_s=now_s)
        try:
            text = (self._folder / f"beat.{rank}").read_text(encoding="utf-8")
            _, waits, limited, lasting_s, what = text.split(" ", 4)
        except (FileNotFoundError, ValueError):
            return before
        if text == before.beat:
            return before
        return _Told(text, now_s, waits == "1", limited == "1", float(lasting_s), what, before.loaded or what != LOADING)

    def _blame_slow(self, pids: Mapping[int, int], rule: str, variable: str) -> NoReturn:
        slow = {rank: told for rank, told in self._told.items() if not told.waits}
        step = f"all ranks were ended; look at what keeps it, or allow more with {variable}"
        if slow:
            where = ", ".join(
                f"rank {rank} (process {pids[rank]}) in {told.what} for {told.lasting_s:.0f} s" for rank, told in slow.items()
            )
            raise MachineError(f"{rule}, got {where}, the others waiting; {step}")
        where = ", ".join(f"rank {rank} in {told.what}" for rank, told in self._told.items())
        raise MachineError(f"{rule}, got every rank waiting for another ({where}): is the network between them up? {step}")


def _blame(codes: Sequence[int | None], folder: Path) -> None:
    """Raise the error of the rank that caused the end: one killed without a word, else one with an error of its own, else any that failed.

    An error that was told counts for more than how its process ended: torch may abort a process that leaves in the middle of a collective.
    """
    failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
    errors = {rank: _error_of(rank, folder) for rank in failed}
    # An abort may be the answer to a peer that was killed, so it is the last to be the cause.
    ends = [(rank, codes[rank] or 0) for rank in failed if errors[rank] is None]
    silent = [(code == -signal.SIGABRT, rank, code) for rank, code in ends if code < 0]
    if silent:
        _, rank, code = min(silent)
        raise MachineError(
            f"every rank must run to the end, got rank {rank} killed by {signal.Signals(-code).name}"
            f"{_last_words(rank, folder)}; all ranks were ended: "
            "look for the reason in the system's log (out of memory?), and start again"
        )
    own = {rank: error for rank, error in errors.items() if error is not None and error[1] != PeerLostError.__name__}
    if own:
        rank, (code, name, message) = next(iter(own.items()))
        kind = error_class(code, name)
        # A result that says no is the result of all ranks.
        raise kind(message if kind is VerificationError else f"rank {rank}: {message}")
    # Who lost a peer is never the cause.
    rank = min(failed, key=lambda rank: errors[rank] is not None)
    error = errors[rank]
    if error is not None:
        raise MachineError(f"rank {rank}: {error[2]}")
    words = _last_words(rank, folder)
    raise MachineError(f"every rank must run to the end, got exit code {codes[rank]} of rank {rank}{words}; start again")


def _error_of(rank: int, folder: Path) -> tuple[int, str, str] | None:
    """Exit code, class and message of the error that a rank left."""
    try:
        code, name, message = (folder / f"error.{rank}").read_text(encoding="utf-8").split(" ", 2)
    except FileNotFoundError:
        return None
    return int(code), name, message


def _last_words(rank: int, folder: Path) -> str:
    lines = (folder / f"stderr.{rank}").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    # What the C++ runtime says when torch's threads are cut off is never the reason.
    reasons = [line for line in lines if not line.startswith("terminate called")]
    return f" ({reasons[-1]})" if reasons else ""


def _end(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """Ask, then kill; a stopped process cannot answer, and is killed."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _END_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
