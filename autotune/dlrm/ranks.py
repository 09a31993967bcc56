"""One process among several: which rank it is, how it joins the others, and how it tells the supervisor that it lives.

No torch at import: a rank must know its number before it chooses the environment that torch reads.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from autotune.errors import AutotuneError, InputError, MachineError

FOLDER = "AUTOTUNE_RANKS_FOLDER"
"""Set by our own supervisor: where ranks meet, beat, and leave their errors."""
BEAT_S = 0.5
TIMEOUT_S = 600.0
"""Of one collective: building a large model on one rank may take minutes. A dead peer is noticed at once, through its connection."""

# Rank, ranks, rank on this host, ranks on this host; what a launcher sets beside each process.
_LAUNCHERS: dict[str, tuple[str, str, str, str]] = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
}


class PeerLostError(MachineError):
    """Another rank ended, and this one cannot go on: never the cause, always a consequence."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among all."""

    rank: int
    world: int
    """How many ranks there are."""
    local_rank: int
    """Number on this host."""
    local_world: int
    """Ranks on this host."""
    launcher: str


def from_environment(environ: Mapping[str, str] = os.environ) -> Ranks | None:
    """The rank that a launcher made of this process; None where there is no launcher, or one process alone.

    Understands torchrun, Open MPI, MPICH and Slurm. Where a launcher does not tell the local numbers, all ranks are taken for local.

    Raises:
        InputError: a variable is no number, or out of its range.
    """
    for launcher, (rank, world, local_rank, local_world) in _LAUNCHERS.items():
        if rank not in environ or world not in environ:
            continue
        # An allocation sets these in its own shell as well; only a step has ranks.
        if launcher == "Slurm" and "SLURM_STEP_ID" not in environ:
            continue
        count = _number(environ, world, 1, None)
        if count == 1:
            return None
        own = _number(environ, rank, 0, count)
        local_count = _number(environ, local_world, 1, count + 1) if local_world in environ else count
        local = _number(environ, local_rank, 0, local_count) if local_rank in environ else own % local_count
        return Ranks(own, count, local, local_count, launcher)
    return None


def _number(environ: Mapping[str, str], name: str, least: int, end: int | None) -> int:
    text = environ[name].strip()
    if not text.isdecimal() or int(text) < least or (end is not None and int(text) >= end):
        wanted = f"{least} or more" if end is None else f"{least} to {end - 1}"
        raise InputError(f"a launcher's {name} must be a number, {wanted}, got {environ[name]!r}; unset it, or start anew")
    return int(text)


def interface(environ: Mapping[str, str] = os.environ) -> str:
    """The network interface that gloo is told to use; ``by host name`` where nobody told it."""
    return environ.get("GLOO_SOCKET_IFNAME", "by host name")


@contextmanager
def joined(ranks: Ranks, backend: str = "gloo", timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Inside, torch.distributed is initialised.

    Ranks of our own supervisor meet in a file of a private folder and talk over loopback; others at MASTER_ADDR and MASTER_PORT.

    Raises:
        InputError: no such backend here, or nobody said where to meet.
        PeerLostError: inside the block, a collective failed since another rank ended.
    """
    import torch.distributed as dist

    if not dist.is_backend_available(backend):
        found = ", ".join(name for name in dist.Backend.backend_list if name != "undefined" and dist.is_backend_available(name))
        raise InputError(f"a backend of torch.distributed must be available, got {backend!r} (communication.backend); take one of {found}")
    folder = os.environ.get(FOLDER)
    if folder is None and not ("MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ):
        rule = f"ranks started by {ranks.launcher} must know where to meet"
        raise InputError(f"{rule}, got no MASTER_ADDR and MASTER_PORT; export both, the same everywhere")
    where = "env://" if folder is None else f"file://{folder}/meeting"
    try:
        dist.init_process_group(
            backend, init_method=where, rank=ranks.rank, world_size=ranks.world, timeout=timedelta(seconds=timeout_s)
        )
        yield
    except (RuntimeError, dist.DistError) as error:
        # gloo's own words for a connection that ended, or a peer that did not come.
        if any(word in str(error).lower() for word in ("connection", "gloo", "timed out", "timeout", "peer", "socket")):
            raise PeerLostError(f"rank {ranks.rank} lost its peers: {str(error).splitlines()[0]}; see which rank ended first") from error
        raise
    if dist.is_initialized():
        dist.destroy_process_group()


def agree(what: str, value: str) -> None:
    """Every rank calls it with its own value.

    Raises:
        InputError: on every rank alike, naming the ranks whose value is not the most common one.
    """
    import torch.distributed as dist

    values: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(values, value)
    common = Counter(values).most_common(1)[0][0]
    odd = [rank for rank, one in enumerate(values) if one != common]
    if odd:
        others = "rank" if len(odd) == 1 else "ranks"
        raise InputError(
            f"all ranks must run the same {what}, got {values[odd[0]]} on {others} {', '.join(map(str, odd))} and {common} on the others; "
            "give every rank the same files and options"
        )


@dataclass
class _Activity:
    """What the main thread of this rank is at, and since when; the beat tells it to the supervisor."""

    what: str = "starting"
    waits: bool = False
    limited: bool = False
    since_s: float = field(default_factory=time.monotonic)


_activity = _Activity()


@contextmanager
def busy(what: str, *, waits: bool = False, limited: bool = False) -> Iterator[None]:
    """Tell what the main thread is at.

    Args:
        waits: It only waits for other ranks.
        limited: It never takes long: where it does, the supervisor ends the run (`tune.agent.HANG_S`).
    """
    global _activity
    before = _activity
    _activity = _Activity(what, waits, limited)
    try:
        yield
    finally:
        _activity = _Activity(before.what, before.waits, before.limited)


def beat(folder: Path, rank: int) -> None:
    """Start a thread that writes twice a second what this rank is at and for how long, while this process lives and is not stopped."""

    def run() -> None:
        # The folder goes when the supervisor has ended.
        with suppress(OSError):
            while True:
                now = _activity
                told = f"{int(now.waits)} {int(now.limited)} {time.monotonic() - now.since_s:.1f} {now.what}"
                temporary = folder / f"beating.{rank}"
                temporary.write_text(told, encoding="utf-8")
                temporary.replace(folder / f"beat.{rank}")
                time.sleep(BEAT_S)

    threading.Thread(target=run, daemon=True, name="autotune-beat").start()


def report_error(error: BaseException, environ: Mapping[str, str] = os.environ) -> bool:
    """Leave this rank's error to the supervisor, which says it once; False where there is none, so that it must be said here."""
    folder, rank = environ.get(FOLDER), environ.get("RANK")
    if folder is None or rank is None or not Path(folder).is_dir():
        return False
    code = error.exit_code if isinstance(error, AutotuneError) else MachineError.exit_code
    (Path(folder) / f"error.{rank}").write_text(f"{code} {type(error).__name__} {error}", encoding="utf-8")
    return True
