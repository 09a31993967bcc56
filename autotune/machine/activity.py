"""What the main thread of a rank is doing, so that a supervisor can tell a rank that hangs from one that waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

LOADING = "loading"
"""What a process does until it says otherwise: importing torch, which may take long and lets no other thread run meanwhile."""


@dataclass(frozen=True)
class Activity:
    """What the main thread does. Each is an object of its own, so that two that follow each other are told apart."""

    what: str = LOADING
    waits: bool = False
    """It only waits for other ranks."""
    limited: bool = False
    """It never takes long: where it does, the supervisor ends the run."""


_activity = Activity()


def current_activity() -> Activity:
    """What the main thread is doing now."""
    return _activity


def advanced() -> None:
    """Says that what the main thread does has come a step further: it may last as long as it likes while it says so."""
    global _activity
    _activity = replace(_activity)


@contextmanager
def busy(what: str, *, waits: bool = False, limited: bool = False) -> Iterator[None]:
    """Marks what the main thread does inside; see `Activity` for the arguments."""
    global _activity
    before = _activity
    _activity = Activity(what, waits, limited)
    try:
        yield
    finally:
        _activity = Activity("working" if before.what == LOADING else before.what, before.waits, before.limited)
