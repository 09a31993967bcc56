"""The process that started this rank: the CPUs it has, and those it gave to each of its ranks.

A launcher may bind its ranks (`mpirun --bind-to socket`, `srun --cpu-bind=cores`), each to CPUs of its own or several to the same ones. No
variable tells it everywhere, but its process does: it has more CPUs than the ranks that it has bound.

Source: proc_pid_status(5), proc_pid_environ(5), proc_pid_maps(5).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.config.words import OPENMP_BINDING
from autotune.machine.cgroups import Cgroups
from autotune.machine.memory import PROC, SYSFS
from autotune.machine.sysfs import read_text
from autotune.ranks.environment import FOLDER, Ranks
from autotune.ranks.interfaces import LOOPBACK, VARIABLE

_OPENMP = re.compile(r"/lib[gi]?omp[\w.-]*\.so")
# Ranks of one host are started one after the other; a loaded host took 0.2 s for 64.
_SIBLINGS_S = 10.0
_LOOK_S = 0.05


@dataclass(frozen=True)
class Process:
    """What `/proc` tells of a process."""

    pid: int
    proc: Path = PROC
    affinity: Callable[[int], Collection[int]] = os.sched_getaffinity

    @property
    def parent(self) -> Process | None:
        """None for the first process, and where the parent is outside this container."""
        number = self._status("PPid")
        return replace(self, pid=int(number)) if number.isdecimal() and int(number) else None

    @property
    def ancestors(self) -> Iterator[Process]:
        """Parent first."""
        parent = self.parent
        while parent is not None:
            yield parent
            parent = parent.parent

    @property
    def cpus(self) -> frozenset[int]:
        """The affinity of its main thread; empty where it has ended."""
        try:
            return frozenset(self.affinity(self.pid))
        except OSError:
            return frozenset()

    @property
    def environ(self) -> dict[str, str]:
        """The environment that it was started with; empty where it cannot be read, as of another user's process."""
        entries = (entry.partition("=") for entry in read_text(self.proc / f"{self.pid}/environ").split("\0"))
        return {name: value for name, _, value in entries}

    @property
    def has_openmp(self) -> bool:
        """Whether it has loaded an OpenMP library."""
        return bool(_OPENMP.search(read_text(self.proc / f"{self.pid}/maps")))

    @property
    def children(self) -> Iterator[Process]:
        """Its child processes."""
        for folder in self.proc.glob("[0-9]*"):
            child = replace(self, pid=int(folder.name))
            if child._status("PPid") == str(self.pid):
                yield child

    def _status(self, field: str) -> str:
        found = re.search(rf"^{field}:\s*(\S+)", read_text(self.proc / f"{self.pid}/status"), re.MULTILINE)
        return found.group(1) if found else ""


@dataclass(frozen=True)
class Given:
    """The CPUs that a launcher gave to a rank."""

    host: frozenset[int]
    """CPUs that all ranks of this host may use."""
    own: frozenset[int]
    """CPUs that this rank is bound to."""
    place: int
    """Number of this rank among those that are bound to the same CPUs."""
    sharing: int
    """Ranks that are bound to the same CPUs."""


def launcher_of(ranks: Ranks, process: Process | None = None) -> Process | None:
    """The nearest ancestor of `process` that is no part of its rank; None where it is out of sight.

    Shells and wrappers between a launcher and the program have the variables of the rank.
    """
    name, _ = ranks.variables
    this = process or Process(os.getpid())
    return next((each for each in this.ancestors if each.environ.get(name) != str(ranks.rank)), None)


def given_by_launcher(ranks: Ranks, own: Collection[int], process: Process | None = None, wait_s: float = _SIBLINGS_S) -> Given | None:
    """What the launcher gave to this rank; None where it left all ranks of this host on the same CPUs, or is out of sight.

    Args:
        own: CPUs that this rank may use.
        wait_s: Limit of waiting for the other ranks of this host to be started.
    """
    launcher = launcher_of(ranks, process)
    # A cgroup confines all ranks of a host, and is no binding.
    confined = Cgroups(SYSFS, PROC).cpuset
    host = frozenset() if launcher is None else launcher.cpus & confined or launcher.cpus
    if launcher is None or not set(own) < host:
        return None
    # A rank that has already bound itself has a part of the CPUs it was given, so it still meets the ranks that share them.
    deadline_s = time.monotonic() + wait_s
    while len(cpus_of := _cpus_of_ranks(ranks, launcher)) < ranks.local_world and time.monotonic() < deadline_s:
        time.sleep(_LOOK_S)
    same = sorted({number for number, cpus in cpus_of.items() if cpus & set(own)} | {ranks.local_rank})
    return Given(host, frozenset(own), same.index(ranks.local_rank), len(same))


def _cpus_of_ranks(ranks: Ranks, launcher: Process) -> dict[int, frozenset[int]]:
    """The CPUs of every rank of this host that has been started, by its number on this host."""
    _, name = ranks.variables
    numbers = ((child, child.environ.get(name, "")) for child in launcher.children)
    return {int(number): child.cpus for child, number in numbers if number.isdecimal()}


def meeting_place(ranks: Ranks, environ: Mapping[str, str] = os.environ, process: Process | None = None) -> dict[str, str]:
    """Variables by which ranks on one host meet there, where nobody said where to meet: loopback, and a port that the launcher's number
    makes, below those that Linux gives to connections (32768)."""
    told = any(name in environ for name in ("MASTER_ADDR", "MASTER_PORT", FOLDER))
    launcher = None if told or ranks.note or ranks.local_world < ranks.world else launcher_of(ranks, process)
    if launcher is None:
        return {}
    interface = {} if VARIABLE in environ else {VARIABLE: LOOPBACK}  # one that the user named stays, and is checked
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + launcher.pid % 10000), **interface}


def undo_openmp_binding(environ: Mapping[str, str] = os.environ, process: Process | None = None) -> frozenset[int]:
    """Give this process the CPUs back that an OpenMP library in one of its ancestors has taken from it; returns them, if any.

    With ``OMP_PLACES`` or the like in the environment, a program that loads torch is bound to its first place, and whatever it starts
    inherits that one core: the agent of torchrun is such a program.
    """
    if not any(name in environ for name in OPENMP_BINDING):
        return frozenset()
    this = process or Process(os.getpid())
    # A taskset or a launcher may have bound an ancestor that has loaded OpenMP but was not told to bind by it.
    told = [each for each in this.ancestors if any(name in each.environ for name in OPENMP_BINDING)]
    bound = [each for each in told if each.has_openmp and each.cpus == this.cpus]
    before = bound[-1].parent if bound else None
    if before is None or not this.cpus < before.cpus:
        return frozenset()
    with suppress(OSError):
        os.sched_setaffinity(this.pid, before.cpus)
    return before.cpus
