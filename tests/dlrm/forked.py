"""Processes forked from one that has loaded torch, which takes each process that loads it seconds."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence


def run_forked(bodies: Sequence[Callable[[], object]]) -> None:
    """Run each body in a process of its own, side by side. The caller must not have started a team of threads.

    Raises:
        SystemExit: a body failed; the others are ended.
    """
    children = {_fork(body) for body in bodies}
    failed = False
    while children:
        child, status = os.wait()
        children.discard(child)
        if status and not failed:
            failed = True
            for other in children:
                os.kill(other, 9)
    if failed:
        raise SystemExit(1)


def _fork(body: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        body()
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)
