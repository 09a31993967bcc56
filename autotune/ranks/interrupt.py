"""Ctrl-C and SIGTERM that are never lost, and that end a command with one line.

The bindings read a tensor through its ``__dlpack__``, and take any exception raised there as "cannot be read this way" and try another
way: a KeyboardInterrupt that falls into it is gone. On small models it fell there once in five times, so it is held back until the
conversion is over. Where the main thread is inside a library that heeds no signal (a collective whose peer is gone), the process leaves
after some seconds. While a command loads its modules, and once it has told its result, there is nothing to keep: it leaves at once.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager

from autotune.errors import INTERRUPTED, TERMINATED

TYPE_CHECKING = False  # little is imported: until the handlers stand, Ctrl-C ends in a traceback
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import NoReturn

_RETRY_S = 0.001
_CONVERSIONS = frozenset({"__dlpack__", "__dlpack_device__"})
_FIRST = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_UNHEARD_S = 5.0
# Less than its supervisor waits before it kills (3 s), of which a rank that probes leaves its own children their time.
_UNHEARD_BY_RANK_S = 1.0
_SHOW_CURSOR = b"\x1b[?25h\n"
_rank = False
_held_back = signal.SIGINT
_boundary: Boundary | None = None
_heard = 0  # signals that the main thread has heard


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever ends on Ctrl-C ends on it the same way."""


def exit_code(error: KeyboardInterrupt) -> int:
    """How a command ends after it."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def install(rank: bool = False) -> None:
    """Leave at once on SIGINT and SIGTERM, until `raising`. For the main thread of a command, before it imports much.

    Args:
        rank: This process is a rank of a supervisor, which alone says why it ended.
    """
    global _rank
    _rank = rank
    for number, first in _FIRST.items():
        # A shell starts background jobs with SIGINT ignored, and our supervisor its ranks; that stays.
        if signal.getsignal(number) == first:
            signal.signal(number, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FIRST)


@contextmanager
def raising() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise KeyboardInterrupt and `Terminated`, and SIGALRM is taken for the retry.

    Only in a process that has called `install`.
    """
    ours = [number for number in _FIRST if signal.getsignal(number) is _leave]
    if not ours:
        yield
        return
    from threading import Thread

    for number in (*ours, signal.SIGALRM):
        signal.signal(number, _interrupt)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    heard, before = _heard, signal.set_wakeup_fd(writing)
    Thread(target=_watch, args=(reading, heard), daemon=True, name="autotune-signals").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        for number in ours:
            signal.signal(number, _leave)


@contextmanager
def leaving() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM leave at once, as before `raising`: a library that loads ends in an abort where an exception meets it."""
    ours = [number for number in _FIRST if signal.getsignal(number) is _interrupt]
    for number in ours:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _interrupt)


class Boundary:
    """Holds back the first signal inside `at_boundaries`."""

    def __init__(self) -> None:
        self.held: type[KeyboardInterrupt] | None = None
        """What it would have raised; None before it came."""
        self.reached = False
        """Whether `check` has raised it."""

    def check(self) -> None:
        """Nothing is half done here. Raises: KeyboardInterrupt: a signal came."""
        if self.held:
            self.reached = True
            raise self.held


@contextmanager
def at_boundaries() -> Iterator[Boundary]:
    """Inside, the first signal waits for `check`; a second one does not. For the block of `raising`; not nested."""
    global _boundary
    _boundary = Boundary()
    try:
        yield _boundary
    finally:
        _boundary = None


def _watch(reading: int, before: int) -> None:
    """Leave where a signal has come, as Python tells through a pipe, and the main thread does not get to hear it."""
    came = 0
    while number := os.read(reading, 1):
        if number[0] in _FIRST:
            came += 1
            time.sleep(_UNHEARD_BY_RANK_S if _rank else _UNHEARD_S)
            # What `at_boundaries` holds back may wait for a long pass; a second signal does not.
            if _heard - before < came and not (_boundary is not None and came == 1):
                _leave(number[0], None)
    os.close(reading)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    line, code = (b"terminated\n", TERMINATED) if number == signal.SIGTERM else (b"interrupted\n", INTERRUPTED)
    try:
        if not _rank:
            os.write(2, _SHOW_CURSOR + line if os.isatty(2) else line)  # a bar hides the cursor
    finally:  # also where standard error is closed
        os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _held_back, _heard
    _heard += number != signal.SIGALRM
    wanted = _held_back if number == signal.SIGALRM else signal.Signals(number)
    kind = Terminated if wanted == signal.SIGTERM else KeyboardInterrupt
    if _boundary is not None and _boundary.held is None:
        _boundary.held = kind
        return
    if _converting(frame):
        _held_back = wanted
        signal.setitimer(signal.ITIMER_REAL, _RETRY_S)
        return
    raise kind


def _converting(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in _CONVERSIONS:
            return True
        frame = frame.f_back
    return False
