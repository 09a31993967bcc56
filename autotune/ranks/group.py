"""The process group of the ranks. Every collective here also works in a process that is alone: it is a world of one.

torch is imported on use, so that a rank can choose its environment before.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from autotune.errors import InputError, MachineError
from autotune.machine.activity import busy
from autotune.ranks.environment import FOLDER, Ranks
from autotune.ranks.interfaces import check_interface
from autotune.ranks.meeting import meet

T = TypeVar("T")

TIMEOUT_S = 600.0
"""Limit of one collective: building a large model on one rank may take minutes. A dead peer is noticed at once, through its connection."""
# A week: our supervisor finds ranks that hang, and does not count the time in which all were stopped (Ctrl-Z over night), as gloo does.
_WATCHED_TIMEOUT_S = 7 * 24 * 3600.0


class PeerLostError(MachineError):
    """Another rank ended, and this one cannot go on: never the cause, always a consequence."""


@contextmanager
def joined(ranks: Ranks, backend: str = "gloo") -> Iterator[None]:
    """Inside, torch.distributed is initialised, unless this process is the only rank.

    Ranks of our own supervisor meet in a file of a private folder and talk over loopback; others at MASTER_ADDR and MASTER_PORT.

    Raises:
        InputError: no such backend or interface here, or nobody said where to meet.
        MachineError: not every rank came.
        PeerLostError: inside the block, a collective failed since another rank ended.
    """
    if ranks.world == 1:
        yield
        return
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    if not dist.is_backend_available(backend):
        known = ", ".join(name for name in dist.Backend.backend_list if name != "undefined" and dist.is_backend_available(name))
        raise InputError(f"a backend of torch.distributed must be available, got {backend!r} (communication.backend); take one of {known}")
    folder = os.environ.get(FOLDER)
    if backend == "gloo":
        check_interface()
    try:
        with busy("joining the other ranks", waits=True):
            store = FileStore(f"{folder}/meeting", ranks.world) if folder else meet(ranks)
            timeout = timedelta(seconds=_WATCHED_TIMEOUT_S if folder else TIMEOUT_S)
            store.set_timeout(timeout)
            dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=timeout)
        yield
    except (RuntimeError, dist.DistError) as error:
        # gloo's own words for a connection that ended, or a peer that did not come.
        if any(word in str(error).lower() for word in ("connection", "gloo", "timed out", "timeout", "peer", "socket")):
            raise PeerLostError(f"rank {ranks.rank} lost its peers: {str(error).splitlines()[0]}; see which rank ended first") from error
        raise
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this rank."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of ranks."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: T) -> list[T]:
    """The values of every rank, in their order. Every rank calls it."""
    import torch.distributed as dist

    values = [value] * size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """The value of rank 0, on every rank. Every rank calls it."""
    import torch.distributed as dist

    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, 0)
    return values[0]


def barrier() -> None:
    """Returns once every rank has called it."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def agree(what: str, value: str) -> None:
    """Checks that every rank has the same value. Every rank calls it.

    Raises:
        InputError: on every rank alike, naming the ranks whose value is not the most common one.
    """
    values = gather(value)
    common = Counter(values).most_common(1)[0][0]
    odd = [rank for rank, own in enumerate(values) if own != common]
    if odd:
        others = "rank" if len(odd) == 1 else "ranks"
        raise InputError(
            f"all ranks must run the same {what}, got {values[odd[0]]} on {others} {', '.join(map(str, odd))} and {common} on the others; "
            "give every rank the same files and options"
        )
