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
from autotune.ranks.binding import shares_cores
from autotune.ranks.environment import START_S, START_VARIABLE, seconds
from autotune.ranks.supervisor import HANG_S, HANG_VARIABLE

_CACHE = "AUTOTUNE_CACHE"
_THREADS = re.compile(r"\s*[1-9]\d{0,5}\s*(,\s*[1-9]\d{0,5}\s*)*", re.ASCII)


def check_variables(environ: Mapping[str, str] = os.environ) -> None:
    """Raises: InputError: a variable has a value that is not allowed."""
    seconds(HANG_VARIABLE, HANG_S)
    seconds(START_VARIABLE, START_S)
    shares_cores(environ)
    cache = environ.get(_CACHE, "")
    nearest = next((folder for folder in (Path(cache), *Path(cache).absolute().parents) if os.path.lexists(folder)), Path("/"))
    if cache and not nearest.is_dir():
        raise InputError(f"the cache must be a folder, got {cache!r} ({_CACHE}), where {nearest} is none; name another, or unset it")
    threads = environ.get("OMP_NUM_THREADS", "")
    if threads.strip() and not _THREADS.fullmatch(threads):
        raise InputError(f"OMP_NUM_THREADS must be a number of threads, 1 or more, got {threads!r}; write for example 2, or unset it")
