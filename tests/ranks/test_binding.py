"""Every rank has cores of its own: those of a socket, or a share of those there are."""

from __future__ import annotations

import pytest

from autotune.config.profile import Topology
from autotune.errors import InputError, MachineError
from autotune.ranks.binding import core_sets, topology_of


def machine(topology: Topology, cores_of_socket: tuple[int, ...]) -> Topology:
    """Sockets with so many cores, two hyperthreads each, siblings 100 apart."""
    sockets = [socket for socket, count in enumerate(cores_of_socket) for _ in range(count)]
    cores = tuple((i, i + 100) for i in range(len(sockets)))
    nodes = {s: tuple(cpu for core, of in zip(cores, sockets, strict=True) if of == s for cpu in core) for s in range(len(cores_of_socket))}
    return topology.model_copy(
        update={
            "sockets": len(cores_of_socket), "physical_cores": len(sockets), "logical_cpus": 2 * len(sockets), "core_cpus": cores,
            "allowed_cpus": tuple(sorted(cpu for core in cores for cpu in core)), "socket_of_core": tuple(sockets), "numa_nodes": nodes,
        }
    )  # fmt: skip


def test_as_many_ranks_as_sockets_take_a_socket_each(topology: Topology) -> None:
    assert core_sets(machine(topology, (3, 2)), 2) == ((0, 1, 2), (3, 4))


def test_other_numbers_share_the_cores_evenly(topology: Topology) -> None:
    assert core_sets(machine(topology, (8,)), 3) == ((0, 1), (2, 3, 4), (5, 6, 7))
    assert core_sets(machine(topology, (2, 2)), 4) == ((0,), (1,), (2,), (3,))


def test_more_ranks_than_cores_only_when_told(topology: Topology) -> None:
    with pytest.raises(MachineError, match="got 3 ranks"):
        core_sets(machine(topology, (2,)), 3)
    assert core_sets(machine(topology, (2,)), 3, oversubscribe=True) == ((0,), (1,), (0,))
    with pytest.raises(InputError, match="1 or more"):
        core_sets(topology, 0)


def test_a_rank_sees_its_own_cores_alone(topology: Topology) -> None:
    own = topology_of(machine(topology, (3, 2)), (3, 4))
    assert (own.sockets, own.physical_cores, own.allowed_cpus, own.core_cpus) == (1, 2, (3, 4), ((3,), (4,)))
    assert (own.socket_of_core, own.numa_nodes) == ((0, 0), {1: (3, 4)})
