"""Which rank a launcher made of this process.

No torch at import: a rank must know its number before it chooses the environment that torch reads.

Source: torchrun (torch.distributed.elastic), mpirun(1) of Open MPI, Hydra's MPI_LOCALRANKID, srun(1) OUTPUT ENVIRONMENT VARIABLES, and the
environment of a PyTorchJob; recorded from Open MPI 4.1 and 5.0, MPICH 4.0 and 5.0, and Slurm 22.05.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NoReturn

from autotune.errors import InputError

FOLDER = "AUTOTUNE_RANKS_FOLDER"
"""Folder in which the ranks of our own supervisor meet, beat, and leave their errors and results. Set by the supervisor alone."""

# Rank, ranks, rank on this host, ranks on this host; what a launcher sets beside each process.
_LAUNCHERS: dict[str, tuple[str, str, str, str]] = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
}
VARIABLES = frozenset(name for names in _LAUNCHERS.values() for name in names)
"""Variables that launchers set."""
# From here on, steps of Slurm that are no tasks: batch scripts, interactive shells of salloc, those still to be started.
_SPECIAL_STEPS = 0xFFFFFF00
# Of a number that anything can be counted with; Python reads no more than 4300.
_DIGITS = 18


@dataclass(frozen=True)
class Ranks:
    """The place of this process among all ranks."""

    rank: int
    world: int
    """Number of ranks."""
    local_rank: int
    """Number on this host."""
    local_world: int
    """Ranks on this host."""
    launcher: str
    note: str = field(default="", compare=False)
    """What the launcher does not tell, and what is taken for it; empty where it tells everything."""

    @property
    def first(self) -> bool:
        """This rank decides and answers for all."""
        return self.rank == 0

    @property
    def variables(self) -> tuple[str, str]:
        """Names of the variables that hold the rank and its number on this host."""
        rank, _, local_rank, _ = _LAUNCHERS[self.launcher]
        return rank, local_rank


ALONE = Ranks(0, 1, 0, 1, "")
"""A process that no launcher started."""


def _has_terminal() -> bool:
    """Whether somebody sits before this process: it belongs to a terminal's session."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def from_environment(environ: Mapping[str, str] = os.environ, has_terminal: Callable[[], bool] = _has_terminal) -> Ranks | None:
    """The rank that a launcher made of this process; None where there is no launcher, or one process alone.

    Understands torchrun, a PyTorchJob, Open MPI, MPICH and Slurm. Of two that tell different ranks, the one that torchrun set counts, since
    it is the inner one; RANK and WORLD_SIZE alone may be anybody's, and must then agree with the other launcher's.

    Args:
        has_terminal: Whether this process belongs to a terminal.

    Raises:
        InputError: a variable is no number, out of its range, or contradicts another.
    """
    rank, world, *local = _LAUNCHERS["torchrun"]
    if rank not in environ or world not in environ:
        return _started(environ, has_terminal)
    if all(name in environ for name in local):
        own, started = _plain("torchrun", environ), None
        with suppress(InputError):
            started = _started(environ, has_terminal)
        # A wrapper that hands on what mpirun or srun told it.
        return started if started and own and replace(started, launcher=own.launcher) == own else own
    started = _started(environ, has_terminal)
    if _number(environ, world, 1, None) == 1:
        return started
    own = _pod(environ) if started is None else None
    if started is not None and (environ[rank], environ[world]) != (str(started.rank), str(started.world)):
        _contradict("two launchers must tell the same rank", environ, rank, world, *_LAUNCHERS[started.launcher][:2])
    return own or started


def _started(environ: Mapping[str, str], has_terminal: Callable[[], bool]) -> Ranks | None:
    """The rank that mpirun or srun made of this process."""
    in_step = "SLURM_STEP_ID" in environ
    for launcher in ("Open MPI", "MPICH"):
        rank, world, local_rank, _ = _LAUNCHERS[launcher]
        # Slurm sets PMI's variables too (`srun --mpi=pmi2`), but not those of the local numbers.
        if rank in environ and world in environ and (local_rank in environ or not in_step):
            return _plain(launcher, environ)
    if in_step:
        return _slurm(environ, has_terminal)
    if "PMIX_RANK" in environ:
        raise InputError(
            f"a launcher must tell the number of ranks, got PMIX_RANK={environ['PMIX_RANK']!r} alone; start the ranks with mpirun, srun or "
            "torchrun, or unset it to run alone"
        )
    return None


def _plain(launcher: str, environ: Mapping[str, str]) -> Ranks | None:
    """The rank of a launcher that sets four numbers."""
    rank, world, local_rank, local_world = _LAUNCHERS[launcher]
    count = _number(environ, world, 1, None)
    if count == 1:
        return None
    own = _number(environ, rank, 0, count)
    if local_rank not in environ and local_world not in environ:
        return _all_here(launcher, own, count, local_world)
    for name, other in ((local_rank, local_world), (local_world, local_rank)):
        if name not in environ:
            raise InputError(f"a launcher must tell {local_rank} and {local_world}, got {other}={environ[other]!r} alone; set {name} too")
    local_count = _number(environ, local_world, 1, count + 1)
    return Ranks(own, count, _number(environ, local_rank, 0, local_count), local_count, launcher)


def _all_here(launcher: str, own: int, count: int, name: str) -> Ranks:
    note = f"{launcher} does not tell how many ranks share this host (no {name}): all {count} are taken to be here"
    return Ranks(own, count, own, count, launcher, note)


def _pod(environ: Mapping[str, str]) -> Ranks | None:
    """The rank of a process that was told RANK and WORLD_SIZE alone, as each pod of a PyTorchJob is."""
    *_, local_rank, local_world = _LAUNCHERS["torchrun"]
    each = environ.get("PET_NPROC_PER_NODE", "1").strip()
    if each.isdecimal() and each.lstrip("0") != "1":
        raise InputError(
            f"a pod that is to hold several ranks must start them with torchrun, got PET_NPROC_PER_NODE={each!r} and no {local_rank}; "
            "start torchrun in it, or set nprocPerNode to 1"
        )
    told = _plain("torchrun", environ)
    address = environ.get("MASTER_ADDR", "")
    if told is None or local_rank in environ or local_world in environ:
        return told
    if address in ("localhost", "::1") or address.startswith("127."):
        return replace(told, note="")
    note = f"nobody tells how many ranks share this host (no {local_rank} and {local_world}): this one is taken to be alone here"
    return replace(told, local_rank=0, local_world=1, note="" if "PET_NPROC_PER_NODE" in environ else note)


def _slurm(environ: Mapping[str, str], has_terminal: Callable[[], bool]) -> Ranks | None:
    """The rank of a task of Slurm; None in a shell: that of salloc, or that of `srun --pty`, whose other tasks have no input and end."""
    if _number(environ, "SLURM_STEP_ID", 0, None) >= _SPECIAL_STEPS:
        return None
    # What srun starts from that shell inherits the variable, but neither its terminal nor, where it is to meet others, a bare environment.
    if "SLURM_PTY_PORT" in environ and ("MASTER_ADDR" not in environ or has_terminal()):
        return None
    rank, world, local_rank, fixed = _LAUNCHERS["Slurm"]
    world = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else world
    if rank not in environ or world not in environ:
        return None
    count = _number(environ, world, 1, None)
    if count == 1:
        return None
    own = _number(environ, rank, 0, count)
    for name, wanted in (("PMI_RANK", own), ("PMI_SIZE", count), ("PMIX_RANK", own)):
        if environ.get(name, str(wanted)).strip() != str(wanted):
            _contradict("Slurm and the PMI it offers must tell the same rank", environ, rank, world, name)
    listed = next((name for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") if name in environ), "")
    if listed:
        local_count = _tasks_on_node(environ, listed, world, count)
    elif fixed in environ:
        local_count = _number(environ, fixed, 1, count + 1)
    else:
        return _all_here("Slurm", own, count, "SLURM_STEP_TASKS_PER_NODE")
    local = _number(environ, local_rank, 0, local_count) if local_rank in environ else own % local_count
    return Ranks(own, count, local, local_count, "Slurm")


def _tasks_on_node(environ: Mapping[str, str], listed: str, world: str, count: int) -> int:
    """Tasks on this node, of a list such as ``2(x3),1``: two on each of three nodes, one on the next."""
    text, tasks = environ[listed].strip(), list[int]()
    if re.fullmatch(r"\d{1,18}(\(x\d{1,18}\))?(,\d{1,18}(\(x\d{1,18}\))?)*", text, re.ASCII):
        for each, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
            tasks += [int(each)] * min(int(times or 1), count + 1)
    if sum(tasks) != count:
        _contradict(f"tasks by node must look like 2(x3),1 and make {world}", environ, listed, world)
    return tasks[_number(environ, "SLURM_NODEID", 0, len(tasks)) if len(set(tasks)) > 1 or "SLURM_NODEID" in environ else 0]


def _contradict(rule: str, environ: Mapping[str, str], *names: str) -> NoReturn:
    told = " and ".join(f"{name}={environ[name]!r}" for name in names)
    raise InputError(f"{rule}, got {told}; unset what is left over from another launcher, or start anew")


def _number(environ: Mapping[str, str], name: str, least: int, end: int | None) -> int:
    text = environ.get(name, "").strip()
    if not text.isdecimal() or len(text) > _DIGITS or int(text) < least or (end is not None and int(text) >= end):
        wanted = f"{least} or more" if end is None else f"{least} to {end - 1}"
        raise InputError(f"a launcher's {name} must be a number, {wanted}, got {environ.get(name, '')!r}; unset it, or start anew")
    return int(text)
