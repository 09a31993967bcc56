"""Which rank a launcher made of this process.

No torch at import: a rank must know its number before it chooses the environment that torch reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from autotune.errors import InputError

START_VARIABLE = "AUTOTUNE_START_S"
START_S = 600.0
"""Seconds in which every rank must have loaded torch and met the others; `AUTOTUNE_START_S` sets another limit."""

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

    @property
    def first(self) -> bool:
        """This rank decides and answers for all."""
        return self.rank == 0


ALONE = Ranks(0, 1, 0, 1, "")
"""A process that no launcher started."""


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
