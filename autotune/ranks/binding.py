"""Which cores each rank has: disjoint sets that follow sockets and NUMA nodes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

from autotune.config.profile import Topology
from autotune.errors import InputError, MachineError
from autotune.ranks.variables import OVERSUBSCRIBE, shares_cores


def core_sets(topology: Topology, sockets: int, oversubscribe: bool = False) -> tuple[tuple[int, ...], ...]:
    """For every rank its logical CPUs, one a physical core.

    As many ranks as sockets, or as NUMA nodes, have one each. With more ranks than nodes every rank lies within one node, and a larger node
    has more ranks; with fewer, ranks have whole nodes. Ranks that share a node differ by one core at most, and by one of each kind of core.

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
    socket_of = dict(zip(cores, topology.socket_of_core, strict=True))
    node_of = {cpu: node for node, cpus in topology.numa_nodes.items() for cpu in cpus}
    levels: list[Callable[[int], int]] = [lambda cpu: socket_of[cpu], lambda cpu: node_of.get(cpu, -1)]
    if len({(socket_of[cpu], node_of.get(cpu, -1)) for cpu in cores}) > len({node_of.get(cpu, -1) for cpu in cores}):
        levels.reverse()  # nodes that reach over sockets: memory goes first
    return tuple(tuple(part) for part in _parts(cores, sockets, levels, mixed=len(set(topology.core_kinds)) > 1))


def _parts(cores: Sequence[int], ranks: int, levels: Sequence[Callable[[int], int]], mixed: bool) -> list[Sequence[int]]:
    """Cores parted among ranks: by the first of `levels` as far as it goes, and its groups by the next.

    Args:
        mixed: Fast cores come before slow ones, and every rank takes of both.
    """
    if not levels:
        count = len(cores)
        return [cores[rank::ranks] if mixed else cores[count * rank // ranks : count * (rank + 1) // ranks] for rank in range(ranks)]
    groups: dict[int, list[int]] = {}
    for cpu in cores:
        groups.setdefault(levels[0](cpu), []).append(cpu)
    members = list(groups.values())
    if ranks < len(members):
        bounds = [len(members) * rank // ranks for rank in range(ranks + 1)]
        return [[cpu for group in members[low:high] for cpu in group] for low, high in pairwise(bounds)]
    shares = [1] * len(members)
    for _ in range(ranks - len(members)):
        # Whose ranks have most cores takes the next one.
        shares[max(range(len(members)), key=lambda i: len(members[i]) / shares[i])] += 1
    return [part for group, share in zip(members, shares, strict=True) for part in _parts(group, share, levels[1:], mixed)]


def bind(cpus: Sequence[int]) -> None:
    """Keep this thread, and those it starts, on these logical CPUs; the memory it touches first is then local to them."""
    os.sched_setaffinity(0, set(cpus))


@dataclass(frozen=True)
class RankCores:
    """The cores of a rank, as all ranks are told them."""

    host: str
    """Name of the host and its network namespace, since containers on one host have CPUs of their own."""
    cpus: tuple[int, ...]
    """One a physical core."""
    bound_of: int
    """Where the launcher has bound the rank: the cores that the host has for each of its ranks. 0 where autotune has."""
    launcher: str

    @classmethod
    def here(cls, cpus: tuple[int, ...], bound_of: int, launcher: str) -> RankCores:
        """Those of a rank on this host."""
        space = Path("/proc/self/ns/net")
        return cls(f"{os.uname().nodename} {space.readlink() if space.exists() else ''}", cpus, bound_of, launcher)


def cores_by_rank(ranks: Sequence[RankCores]) -> tuple[str, ...]:
    """Notes: which cores every rank has, who bound it, and where that leaves cores idle or shares them."""
    if len(ranks) < 2:
        return ()
    several = len({rank.host for rank in ranks}) > 1
    bound = {number: rank for number, rank in enumerate(ranks) if rank.bound_of}
    by = ranks[0].launcher if bound else "autotune"
    told = (f"rank {number}: {_spans(rank.cpus)}{f' of {rank.host.split()[0]}' if several else ''}" for number, rank in enumerate(ranks))
    notes = [f"cores of {', '.join(told)}; bound by {by}"]
    unbound = "unbound ranks (mpirun --bind-to none, srun --cpu-bind=none) part the cores themselves"
    pairs = combinations(enumerate(ranks), 2)
    meeting = [f"{a} and {b}" for (a, one), (b, other) in pairs if one.host == other.host and set(one.cpus) & set(other.cpus)]
    if meeting and not shares_cores():
        notes.append(f"ranks {meeting[0]} share cores, so the times say little: bind each to cores of its own; {unbound}")
    idle = [number for number, rank in bound.items() if len(rank.cpus) < rank.bound_of]
    if idle:
        rank = ranks[idle[0]]
        notes.append(f"{by} bound rank {idle[0]} to {len(rank.cpus)} of the {rank.bound_of} cores that its host has for it; {unbound}")
    return tuple(notes)


def _spans(cpus: Iterable[int]) -> str:
    """``0-3,8`` for the CPUs 0, 1, 2, 3 and 8."""
    spans: list[list[int]] = []
    for cpu in sorted(cpus):
        if spans and cpu == spans[-1][-1] + 1:
            spans[-1][1:] = [cpu]
        else:
            spans.append([cpu])
    return ",".join("-".join(map(str, span)) for span in spans)


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
    """The machine as a process bound to `cpus` sees it; of a CPU quota it has the share of its cores."""
    kept = [i for i, core in enumerate(topology.core_cpus) if any(cpu in cpus for cpu in core)]
    sockets = sorted({topology.socket_of_core[i] for i in kept})
    share = len(kept) / topology.physical_cores
    return topology.model_copy(
        update={
            "sockets": len(sockets),
            "physical_cores": len(kept),
            "logical_cpus": len(cpus),
            "allowed_cpus": tuple(sorted(cpus)),
            "core_cpus": tuple(tuple(cpu for cpu in topology.core_cpus[i] if cpu in cpus) for i in kept),
            "socket_of_core": tuple(sockets.index(topology.socket_of_core[i]) for i in kept),
            "core_kinds": tuple(topology.core_kinds[i] for i in kept) if topology.core_kinds else (),
            "numa_nodes": {
                node: tuple(cpu for cpu in node_cpus if cpu in cpus)
                for node, node_cpus in topology.numa_nodes.items()
                if any(cpu in cpus for cpu in node_cpus)
            },
            "l3_instances": -(-topology.l3_instances * len(kept) // topology.physical_cores),
            "cpu_quota": None if topology.cpu_quota is None else topology.cpu_quota * share,
        }
    )
