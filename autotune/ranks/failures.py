"""What any exception tells a user: one error with an exit code, and for what nobody foresaw a log that holds the traceback."""

from __future__ import annotations

import errno
import os
import resource
import shlex
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from autotune import __version__
from autotune.errors import NO_SPACE, AutotuneError, InputError, InternalError, MachineError, NoSpaceError
from autotune.machine.cgroups import Cgroups


def told(error: Exception) -> AutotuneError:
    """The error to show for any exception: itself if it was raised on purpose, what the system refused, else an `InternalError`."""
    if isinstance(error, AutotuneError):
        return error
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, OSError):
        if error.errno in NO_SPACE:
            return NoSpaceError(f"a file must find space, got {reason}; free space there, or choose another place")
        if error.errno == errno.ENAMETOOLONG:
            return InputError(f"a path must be one that the system can have, got {reason[:80]}...; shorten it")
        if error.errno == errno.EAGAIN:
            return _no_thread(reason)
        return MachineError(f"the system refused: {reason}; free what it names, or choose another place")
    if isinstance(error, RuntimeError) and "can't start new thread" in reason:
        return _no_thread(reason)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in reason):
        return MachineError(f"memory must suffice, got {reason}; free memory or use a smaller model (--max-rows, --minibatch)")
    return InternalError(f"an error that nobody foresaw: {type(error).__name__}: {reason} ({_log(error)}); report it with that file")


def check_threads(team: int) -> None:
    """Start as many threads as a run takes, and end them: OpenMP ends the process with words of its own where it cannot have one.

    They are a team of `team`, numpy's OpenBLAS's own team, and the one of progress.

    Raises:
        MachineError: they cannot be started; names the limit.
    """
    count = 2 * team + 1
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(count)]
    started: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise _no_thread(f"{len(started)} of {count}") from None
    finally:
        done.set()
        for thread in started:
            thread.join()


def _no_thread(got: str) -> MachineError:
    limits = []
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if soft != resource.RLIM_INFINITY:
        limits.append(f"the user's processes and threads: {soft} (ulimit -u)")
    if (most := Cgroups(Path("/sys"), Path("/proc")).pids) is not None:
        limits.append(f"the cgroup's: {most} (pids.max)")
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        limits.append(f"the address space, of which each takes its stack: {address_space >> 20} MiB (ulimit -v)")
    named = " and ".join(limits) or "the system's (kernel.threads-max)"
    return MachineError(f"further threads must be allowed, got {got}; the limit is {named}: raise it, or end other programs")


def _log(error: Exception) -> Path | str:
    """Writes the traceback into the cache folder, or into the folder for temporary files where that fails; the path of the file."""
    now = datetime.now(UTC)
    trace = "".join(traceback.format_exception(error))
    text = f"autotune {__version__}, Python {sys.version.split()[0]}, {now:%Y-%m-%d %H:%M:%S} UTC\n{shlex.join(sys.orig_argv)}\n\n{trace}"
    name = f"error-{now:%Y%m%d-%H%M%S}-{os.getpid()}.log"
    for in_cache in (True, False):
        with suppress(OSError, AutotuneError):
            from autotune.config.files import cache_folder

            path = (cache_folder() / "logs" if in_cache else Path(tempfile.mkdtemp(prefix="autotune-error-"))) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return path
    return "no log could be written"
