"""Every error a user can meet. The exit code sits on the exception; the command line catches `AutotuneError` once."""

from __future__ import annotations


class AutotuneError(Exception):
    """Base of all errors raised on purpose.

    The message names the rule, the value, the place and the next step:
    ``embedding dim must be positive, got -4 (my.yaml: tables[2].dim); set it to 1 or more``.
    """

    exit_code = 2


class InputError(AutotuneError):
    """Wrong usage or wrong input: a file, an option, a value."""

    exit_code = 2


class FingerprintError(InputError):
    """A file belongs to other hardware or to another model, and nobody said to use it anyway."""


class MachineError(AutotuneError):
    """The machine cannot do it: memory, cores, instruction set."""

    exit_code = 3


class VerificationError(AutotuneError):
    """A check ran to its end and said no."""

    exit_code = 1


INTERRUPTED = 130
"""Exit code after Ctrl-C."""
TERMINATED = 143
"""Exit code after SIGTERM."""


def error_class(exit_code: int) -> type[AutotuneError]:
    """The class that stands for an exit code; `MachineError` for a code that no class has."""
    classes: tuple[type[AutotuneError], ...] = (VerificationError, InputError, MachineError)
    return next((kind for kind in classes if kind.exit_code == exit_code), MachineError)
