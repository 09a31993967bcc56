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
from autotune.ranks.environment import FOLDER, Ranks

T = TypeVar("T")

TIMEOUT_S = 600.0
"""Limit of one collective: building a large model on one rank may take minutes. A dead peer is noticed at once, through its connection."""


class PeerLostError(MachineError):
    """Another rank ended, and this one cannot go on: never the cause, always a consequence."""


@contextmanager
def joined(ranks: Ranks, backend: str = "gloo", timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Inside, torch.distributed is initialised, unless this process is the only rank.

    Ranks of our own supervisor meet in a file of a private folder and talk over loopback; others at MASTER_ADDR and MASTER_PORT.

    Raises:
        InputError: no such backend here, or nobody said where to meet.
        PeerLostError: inside the block, a collective failed since another rank ended.
    """
    if ranks.world == 1:
        yield
        return
    import torch.distributed as dist

    if not dist.is_backend_available(backend):
        known = ", ".join(name for name in dist.Backend.backend_list if name != "undefined" and dist.is_backend_available(name))
        raise InputError(f"a backend of torch.distributed must be available, got {backend!r} (communication.backend); take one of {known}")
    folder = os.environ.get(FOLDER)
    if folder is None and not ("MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ):
        rule = f"ranks started by {ranks.launcher} must know where to meet"
        raise InputError(f"{rule}, got no MASTER_ADDR and MASTER_PORT; export both, the same everywhere")
    where = "env://" if folder is None else f"file://{folder}/meeting"
    try:
        dist.init_process_group(backend, init_method=where, rank=ranks.rank, world_size=ranks.world, timeout=timedelta(seconds=timeout_s))
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
