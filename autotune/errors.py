"""Every error a user can meet. The exit code sits on the exception; the command line catches `AutotuneError` once."""

from __future__ import annotations

import errno


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


class NoSpaceError(MachineError):
    """A disk is full, or a file has reached the size that the user may write. Whatever was being done is not to blame."""


NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Numbers of the system's errors that are a `NoSpaceError`: a full disk, a full quota, a file above the user's limit."""


class InternalError(AutotuneError):
    """Something that nobody foresaw; the message names the log that holds the traceback."""

    exit_code = 70


class VerificationError(AutotuneError):
    """A check ran to its end and said no."""

    exit_code = 1


INTERRUPTED = 130
"""Exit code after Ctrl-C."""
TERMINATED = 143
"""Exit code after SIGTERM."""


def error_class(exit_code: int, name: str = "") -> type[AutotuneError]:
    """The class of that name, else the one that stands for an exit code; `MachineError` for a code that no class has."""
    classes: tuple[type[AutotuneError], ...] = (VerificationError, InputError, MachineError, NoSpaceError, InternalError)
    named = next((kind for kind in classes if kind.__name__ == name), None)
    return named or next((kind for kind in classes if kind.exit_code == exit_code), MachineError)
