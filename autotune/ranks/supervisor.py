"""Starts one process a rank on this machine, watches them, and ends them all together.

The elastic agent of torchrun notices a rank that ends, but not one that hangs or is stopped; so the ranks here beat, and a supervisor of
our own watches. Under torchrun, mpirun or srun the ranks join without it. What a rank does for its supervisor (beat, leave its error) is
here too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from autotune.dlrm.activity import current_activity
from autotune.errors import AutotuneError, InputError, MachineError, VerificationError, error_class
from autotune.ranks.environment import FOLDER
from autotune.ranks.group import PeerLostError

BEAT_S = 0.5
SILENT_S = 12.0
"""A rank that has beaten and then is silent for so long is taken for hung: 24 beats."""
HANG_VARIABLE = "AUTOTUNE_HANG_S"
HANG_S = 20.0
"""A training step that takes longer is taken for hung; `AUTOTUNE_HANG_S` sets another limit."""
_START_S = 60.0
_POLL_S = 0.05
# A rank that ends takes the others with it through their connections; the first to be seen is not always the cause.
_SETTLE_S = 0.7
_END_S = 3.0
_PR_SET_PDEATHSIG = 1


def beat(folder: Path, rank: int) -> None:
    """Start a thread that writes twice a second what this rank does and for how long, while this process lives and is not stopped."""

    def run() -> None:
        # The folder goes when the supervisor has ended.
        with suppress(OSError):
            while True:
                now = current_activity()
                text = f"{int(now.waits)} {int(now.limited)} {time.monotonic() - now.since_s:.1f} {now.what}"
                temporary = folder / f"beating.{rank}"
                temporary.write_text(text, encoding="utf-8")
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
    silent_s: float = SILENT_S,
    on_poll: Callable[[], object] = lambda: None,
) -> None:
    """Run `command` as every rank and wait for all. Rank 0 has this process's standard error; no rank has its standard output.

    Args:
        folder: Empty, private to these ranks.
        environ: What the ranks inherit.
        silent_s: Seconds without a beat that count as hung.
        on_poll: Called every 50 ms while the ranks run.

    Raises:
        AutotuneError: a rank ended with an error, died or hung; names rank and cause, and has the exit code of that rank's own error.
            No process is left.
        KeyboardInterrupt: passed on, once every rank has ended.
    """
    processes = [_start(rank, ranks, command, folder, environ) for rank in range(ranks)]
    try:
        _watch(processes, folder, silent_s, on_poll)
    finally:
        _end(processes)


def _start(rank: int, ranks: int, line: Sequence[str], folder: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    own = {name: str(number) for name, number in numbers.items()} | {FOLDER: str(folder)}
    # Everything is on this machine; the address of another interface would be found by host name, or not at all.
    own["GLOO_SOCKET_IFNAME"] = "lo"
    with (folder / f"stderr.{rank}").open("wb") as errors:
        return subprocess.Popen(
            line,
            env={**environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if rank == 0 else errors,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(processes: Sequence[subprocess.Popen[bytes]], folder: Path, silent_s: float, on_poll: Callable[[], object]) -> None:
    begin_s, hang_s = time.time(), _hang_s()
    while True:
        codes = [process.poll() for process in processes]
        on_poll()
        if all(code == 0 for code in codes):
            return
        if any(code not in (None, 0) for code in codes):
            time.sleep(_SETTLE_S)
            _blame([process.poll() for process in processes], folder)
        for rank, code in enumerate(codes):
            silent, limit_s = _silence_s(folder / f"beat.{rank}", begin_s), silent_s
            if silent is None:
                silent, limit_s = time.time() - begin_s, _START_S
            if code is None and silent > limit_s:
                raise MachineError(
                    f"every rank must answer within {limit_s:g} s, got no sign of rank {rank} (process {processes[rank].pid}): "
                    "it is stopped or hangs; all ranks were ended, look at that process's core and start again"
                )
        _check_progress([folder / f"beat.{rank}" for rank, code in enumerate(codes) if code is None], processes, hang_s)
        time.sleep(_POLL_S)


def _hang_s() -> float:
    text = os.environ.get(HANG_VARIABLE, str(HANG_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise InputError(f"a time limit must be a positive number of seconds, got {text!r} ({HANG_VARIABLE}); write for example 60")
    return seconds


def _check_progress(beats: Sequence[Path], processes: Sequence[subprocess.Popen[bytes]], hang_s: float) -> None:
    """Raises: MachineError: a step takes too long; names the ranks that keep the others waiting."""
    doing: dict[int, tuple[bool, bool, float, str]] = {}
    for file in beats:
        try:
            waits, limited, lasting_s, what = file.read_text(encoding="utf-8").split(" ", 3)
        except (FileNotFoundError, ValueError):
            continue
        doing[int(file.suffix[1:])] = (waits == "1", limited == "1", float(lasting_s), what)
    if not any(limited and lasting_s > hang_s for _, limited, lasting_s, _ in doing.values()):
        return
    slow = [rank for rank, (waits, _, _, _) in doing.items() if not waits]
    rule = f"a training step must end within {hang_s:g} s"
    step = f"all ranks were ended; look at what keeps it, or allow more with {HANG_VARIABLE}"
    if slow:
        where = ", ".join(f"rank {rank} (process {processes[rank].pid}) in {doing[rank][3]} for {doing[rank][2]:.0f} s" for rank in slow)
        raise MachineError(f"{rule}, got {where}, the others waiting; {step}")
    where = ", ".join(f"rank {rank} in {what}" for rank, (_, _, _, what) in doing.items())
    raise MachineError(f"{rule}, got every rank waiting for another ({where}): is the network between them up? {step}")


def _silence_s(file: Path, begin_s: float) -> float | None:
    try:
        return time.time() - max(file.stat().st_mtime, begin_s)
    except FileNotFoundError:
        return None


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
        rank, (code, _, message) = next(iter(own.items()))
        kind = error_class(code)
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


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
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
