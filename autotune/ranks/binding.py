"""Which cores each rank has: real sockets where as many ranks are asked for, disjoint sets of cores on a smaller machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from autotune.config.profile import Topology
from autotune.errors import InputError, MachineError

OVERSUBSCRIBE = "AUTOTUNE_OVERSUBSCRIBE"
"""Set it to 1 to let ranks share cores: for tests of the logic alone, since times then say nothing."""


def shares_cores(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ranks may share cores. Raises: InputError: the variable is neither 0 nor 1."""
    value = environ.get(OVERSUBSCRIBE, "").strip()
    if value not in ("", "0", "1"):
        raise InputError(f"{OVERSUBSCRIBE} must be 0 or 1, got {value!r}; unset it: with 1 ranks share cores, for tests only")
    return value == "1"


def core_sets(topology: Topology, sockets: int, oversubscribe: bool = False) -> tuple[tuple[int, ...], ...]:
    """For every rank its logical CPUs, one a physical core.

    The machine's own sockets where their number is asked for; else the allowed cores in the order of their sockets, in parts that differ
    by one core at most.

    Args:
        oversubscribe: More ranks than cores share them in turn.

    Raises:
        InputError: sockets below 1.
        MachineError: more sockets than allowed physical cores.
    """
    if sockets < 1:
        raise InputError(f"sockets must be 1 or more, got {sockets} (--sockets); write --sockets 1")
    cores = [core[0] for core in topology.core_cpus]
    if sockets > len(cores):
        if oversubscribe:
            return tuple((cores[rank % len(cores)],) for rank in range(sockets))
        raise MachineError(
            f"every rank needs a core of its own, got {sockets} ranks (--sockets) for {len(cores)} physical cores; "
            f"ask for {len(cores)} or fewer, or widen the cpuset ({OVERSUBSCRIBE}=1 shares cores, for tests only)"
        )
    if sockets == topology.sockets:
        pairs = list(zip(cores, topology.socket_of_core, strict=True))
        return tuple(tuple(cpu for cpu, socket in pairs if socket == wanted) for wanted in sorted(set(topology.socket_of_core)))
    return tuple(tuple(cores[len(cores) * rank // sockets : len(cores) * (rank + 1) // sockets]) for rank in range(sockets))


def bind(cpus: Sequence[int]) -> None:
    """Keep this thread, and those it starts, on these logical CPUs; the memory it touches first is then local to them."""
    os.sched_setaffinity(0, set(cpus))


class NetworkThreads:
    """The threads that a backend starts for the network, to be kept on cores of their own or on all of a rank's.

    Args:
        cpus: Of the rank, one a physical core.
    """

    def __init__(self, cpus: Sequence[int]) -> None:
        self._cpus = tuple(cpus)
        self._before = _threads()
        self._own: set[int] = set()

    def found(self) -> None:
        """Threads started since the making are the network's."""
        self._own = _threads() - self._before

    def place(self, cores: int) -> None:
        """Keep them on the rank's last `cores` cores; 0 lets them run on any."""
        chosen = self._cpus[len(self._cpus) - cores :] if cores else self._cpus
        for thread in self._own:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, chosen)


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def topology_of(topology: Topology, cpus: Sequence[int]) -> Topology:
    """The machine as a process bound to `cpus` sees it."""
    kept = [i for i, core in enumerate(topology.core_cpus) if any(cpu in cpus for cpu in core)]
    sockets = sorted({topology.socket_of_core[i] for i in kept})
    return topology.model_copy(
        update={
            "sockets": len(sockets),
            "physical_cores": len(kept),
            "logical_cpus": len(cpus),
            "allowed_cpus": tuple(sorted(cpus)),
            "core_cpus": tuple(tuple(cpu for cpu in topology.core_cpus[i] if cpu in cpus) for i in kept),
            "socket_of_core": tuple(sockets.index(topology.socket_of_core[i]) for i in kept),
            "numa_nodes": {
                node: tuple(cpu for cpu in node_cpus if cpu in cpus)
                for node, node_cpus in topology.numa_nodes.items()
                if any(cpu in cpus for cpu in node_cpus)
            },
            "l3_instances": max(1, min(topology.l3_instances, len(kept))) if topology.l3_instances else 0,
        }
    )
