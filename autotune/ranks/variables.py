"""Environment variables that the product reads: a bad value is refused by name before anything else is done.

Those of launchers are checked where they are read (`environment.py`, `meeting.py`, `interfaces.py`), and AUTOTUNE_TARGET and
AUTOTUNE_LIBXSMM once the kernels are loaded, which alone know what runs here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from autotune.errors import InputError

START_VARIABLE = "AUTOTUNE_START_S"
START_S = 600.0
"""Limit of silence while a rank loads torch, and of the meeting of the ranks of a launcher; `AUTOTUNE_START_S` sets another."""

HANG_VARIABLE = "AUTOTUNE_HANG_S"
HANG_S = 20.0
"""A training step that takes longer is taken for hung, and so is a rank that has loaded and then is silent for as long (40 beats).
`AUTOTUNE_HANG_S` sets another limit."""

STALL_VARIABLE = "AUTOTUNE_STALL_S"
STALL_S = 3600.0
"""Where for so long no rank begins anything else or says that it has come further, all are ended; `AUTOTUNE_STALL_S` sets another limit."""

OVERSUBSCRIBE = "AUTOTUNE_OVERSUBSCRIBE"
"""Set it to 1 to let ranks share cores: for tests of the logic alone, since times then say nothing."""

_CACHE = "AUTOTUNE_CACHE"
_THREADS = re.compile(r"\s*[1-9]\d{0,5}\s*(,\s*[1-9]\d{0,5}\s*)*", re.ASCII)


def check_variables(environ: Mapping[str, str] = os.environ) -> None:
    """Raises: InputError: a variable has a value that is not allowed."""
    for name, default in ((HANG_VARIABLE, HANG_S), (START_VARIABLE, START_S), (STALL_VARIABLE, STALL_S)):
        seconds(name, default)
    shares_cores(environ)
    cache = environ.get(_CACHE, "")
    nearest = next((folder for folder in (Path(cache), *Path(cache).absolute().parents) if os.path.lexists(folder)), Path("/"))
    if cache and not nearest.is_dir():
        raise InputError(f"the cache must be a folder, got {cache!r} ({_CACHE}), where {nearest} is none; name another, or unset it")
    threads = environ.get("OMP_NUM_THREADS", "")
    if threads.strip() and not _THREADS.fullmatch(threads):
        raise InputError(f"OMP_NUM_THREADS must be a number of threads, 1 or more, got {threads!r}; write for example 2, or unset it")


def shares_cores(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ranks may share cores. Raises: InputError: the variable is neither 0 nor 1."""
    value = environ.get(OVERSUBSCRIBE, "").strip()
    if value not in ("", "0", "1"):
        raise InputError(f"{OVERSUBSCRIBE} must be 0 or 1, got {value!r}; unset it: with 1 ranks share cores, for tests only")
    return value == "1"


def seconds(name: str, default: float) -> float:
    """A time limit that a variable may set.

    Raises:
        InputError: it is not a positive number.
    """
    text = os.environ.get(name, str(default))
    try:
        limit_s = float(text)
    except ValueError:
        limit_s = 0.0
    if not 0.0 < limit_s < float("inf"):
        raise InputError(f"a time limit must be a positive number of seconds, got {text!r} ({name}); write for example 60")
    return limit_s
