"""How long work reports where it is; the command line renders it, a library user may pass nothing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the course of a long computation."""

    def phase(self, name: str, total: float | None) -> None:
        """A new phase begins; `total` is in the unit of `advance`, None when unknown."""

    def advance(self, amount: float, detail: str = "") -> None:
        """Part of the phase is done; `detail` says what is being worked on."""

    def note(self, message: str) -> None:
        """Something the user should see, once."""


class _Silent:
    def phase(self, name: str, total: float | None) -> None:
        pass

    def advance(self, amount: float, detail: str = "") -> None:
        pass

    def note(self, message: str) -> None:
        pass


NO_PROGRESS: Progress = _Silent()
