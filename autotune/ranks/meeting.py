"""Where the ranks of a launcher meet: a store of torch at MASTER_ADDR and MASTER_PORT.

torch's own waiting heeds no Ctrl-C and tells nobody what it waits for; so each rank comes to the store, and then looks who else is there.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from queue import Queue
from typing import TYPE_CHECKING

from autotune.errors import InputError, MachineError
from autotune.ranks.environment import Ranks
from autotune.ranks.variables import START_S, START_VARIABLE, seconds

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_SAY_AFTER_S = 3.0
_LOOK_S = 0.1
_STORE_TIMEOUT = timedelta(seconds=60)
_LISTED = 5
# The agent of torchrun holds the store itself.
_AGENT_VARIABLE = "TORCHELASTIC_USE_AGENT_STORE"


def meet(ranks: Ranks) -> Store:
    """The store that every rank has come to.

    What it waits for is said on standard error after three seconds, once, by whoever waits for rank 0 and by rank 0 itself.

    Raises:
        InputError: nobody said where to meet.
        MachineError: the place is taken, or a rank did not come in time.
    """
    host, port = _place(ranks)
    wait = _Wait(ranks, f"{host}:{port}")
    holds = ranks.first and os.environ.get(_AGENT_VARIABLE) != str(True)
    while not holds and not _answers(host, port):
        wait.look([0])
    store = _open(host, port, ranks.world, holds, wait)
    store.set(_key(ranks.rank), "here")
    while absent := [rank for rank in range(ranks.world) if not store.check([_key(rank)])]:
        wait.look(absent)
    return store


def _open(host: str, port: int, world: int, holds: bool, wait: _Wait) -> Store:
    from torch._C._distributed_c10d import TCPStore

    done: Queue[Store | RuntimeError] = Queue()

    def connect() -> None:
        try:
            done.put(TCPStore(host, port, world, is_master=holds, timeout=_STORE_TIMEOUT, wait_for_workers=False, multi_tenant=holds))
        except RuntimeError as error:
            done.put(error)

    # Apart, since it has no end where another program answers at that port.
    threading.Thread(target=connect, daemon=True).start()
    while done.empty():
        wait.look([0])
    store = done.get()
    if isinstance(store, RuntimeError):
        rule, reason = f"the ranks must be able to meet at {host}:{port}", str(store).splitlines()[0]
        raise MachineError(f"{rule}, got: {reason}; choose another MASTER_PORT, the same everywhere") from store
    return store


def _key(rank: int) -> str:
    return f"autotune/rank-{rank}"


def _place(ranks: Ranks) -> tuple[str, int]:
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        rule = f"ranks started by {ranks.launcher} must know where to meet"
        raise InputError(f"{rule}, got no MASTER_ADDR and MASTER_PORT; export both, the same everywhere")
    port = os.environ["MASTER_PORT"]
    if not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 1 << 16:
        raise InputError(f"a port must be a number from 1 to 65535, got {port!r} (MASTER_PORT); export a free one, the same everywhere")
    host = os.environ["MASTER_ADDR"]
    try:
        host.encode("idna")
    except UnicodeError:
        rule = "a host must have a name or an address"
        raise InputError(f"{rule}, got {host!r} (MASTER_ADDR); export rank 0's, the same everywhere") from None
    return host, int(port)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


class _Wait:
    """Says what is waited for, and ends the waiting."""

    def __init__(self, ranks: Ranks, place: str) -> None:
        self._ranks, self._place = ranks, place
        self._limit_s, self._begin_s, self._said = seconds(START_VARIABLE, START_S), time.monotonic(), False

    def look(self, absent: list[int]) -> None:
        """Pause before the next look. Raises: MachineError: it has taken too long."""
        waited_s = time.monotonic() - self._begin_s
        more = f" and {len(absent) - _LISTED} more" if len(absent) > _LISTED else ""
        who = f"{'rank' if len(absent) == 1 else 'ranks'} {', '.join(map(str, absent[:_LISTED]))}{more}"
        told = f"{self._ranks.launcher}'s variables make this rank {self._ranks.rank} of {self._ranks.world}"
        if waited_s > self._limit_s:
            raise MachineError(
                f"all ranks must meet at {self._place} within {self._limit_s:g} s ({START_VARIABLE}), got no {who}; {told}: "
                "start every rank, with the same MASTER_ADDR and MASTER_PORT, or unset those variables to run alone"
            )
        if not self._said and waited_s > _SAY_AFTER_S and (self._ranks.first or absent == [0]):
            with suppress(OSError, ValueError):  # nobody can be told
                print(f"waiting for {who} at {self._place}, for at most {self._limit_s:g} s ({START_VARIABLE}); {told}", file=sys.stderr)
            self._said = True
        time.sleep(_LOOK_S)
