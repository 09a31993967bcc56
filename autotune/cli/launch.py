"""OpenMP and the allocator read their environment once, when the process starts: so a command starts itself again with the right one."""

from __future__ import annotations

import os
import sys

from autotune.config.tuned import Launch
from autotune.errors import InputError
from autotune.export.env import environment

GUARD = "AUTOTUNE_RESTARTED"
"""Holds the id of the process that has started itself again: execve keeps the id, and children have another."""

_restart_allowed = False


def allow_restart() -> None:
    """Let `ensure_environment` replace this process: it belongs to the command line alone."""
    global _restart_allowed
    _restart_allowed = True


def missing(launch: Launch, keep: bool = False) -> dict[str, str]:
    """Variables of `launch` that this process was not started with. With `keep`, those set to something else are left alone."""
    return {
        name: value for name, value in environment(launch).items() if os.environ.get(name) != value and not (keep and name in os.environ)
    }


def ensure_environment(launch: Launch, keep: bool = False) -> None:
    """Replace this process by the same command line in the environment of `launch`, once; return where it already stands.

    Call it before torch is imported. Inside a program that is not the command line nothing is done.

    Args:
        keep: Leave variables that the user has set as they are: for a run without a config.

    Raises:
        InputError: the environment is not the one asked for even after a restart.
    """
    variables = missing(launch, keep)
    if not variables or not _restart_allowed:
        return
    if os.environ.get(GUARD) == str(os.getpid()):
        names = ", ".join(f"{name}={os.environ.get(name, '')!r}" for name in variables)
        raise InputError(
            f"a run needs its launch environment, and something resets it at start: {names}; "
            'set it by hand: eval "$(autotune export CONFIG --to env)"'
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variables, GUARD: str(os.getpid())})
