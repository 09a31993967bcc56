"""Ctrl-C that is never lost.

The bindings read a tensor through its ``__dlpack__``, and take any exception raised there as "cannot be read this way" and try another
way: a KeyboardInterrupt that falls into it is gone. On small models it fell there once in five times, so it is held back until the
conversion is over.
"""

from __future__ import annotations

import signal
from types import FrameType

_RETRY_S = 0.001
_CONVERSIONS = frozenset({"__dlpack__", "__dlpack_device__"})


def install() -> None:
    """Handle SIGINT this way, and take SIGALRM for the retry. For the main thread of a command."""
    # A shell starts background jobs with SIGINT ignored; that stays.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGALRM, _interrupt)


def _interrupt(_signal: int, frame: FrameType | None) -> None:
    if _converting(frame):
        signal.setitimer(signal.ITIMER_REAL, _RETRY_S)
        return
    raise KeyboardInterrupt


def _converting(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in _CONVERSIONS:
            return True
        frame = frame.f_back
    return False
