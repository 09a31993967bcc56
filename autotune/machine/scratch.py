"""Folders that go when their owner ends, however it ends: the owner holds a lock on its folder, and whoever starts next sweeps the rest."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder for this process, gone after the block. Those of the same prefix that killed processes left are swept first.

    Args:
        parent: Where; None takes the system's folder for temporary files.
    """
    base = parent or Path(tempfile.gettempdir())
    _sweep(base, prefix)
    made = Path(tempfile.mkdtemp(prefix=f".{prefix}", dir=base))
    folder = made.with_name(made.name[1:])
    lock = os.open(made, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: nothing is swept there
            fcntl.flock(lock, fcntl.LOCK_SH)
        made.rename(folder)  # it has the name that is swept only once it is locked
        yield folder
    finally:
        os.close(lock)
        for path in (made, folder):
            shutil.rmtree(path, ignore_errors=True)


def _sweep(base: Path, prefix: str) -> None:
    ours = re.compile(re.escape(prefix) + r"[a-z0-9_]{8}")  # as mkdtemp names them: a user's folder may begin the same way
    for folder in base.glob(f"{prefix}*"):
        if not ours.fullmatch(folder.name):
            continue
        # Another user's, no folder, or one whose owner lives: the lock cannot be had.
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = os.fstat(lock)
                if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700:
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
