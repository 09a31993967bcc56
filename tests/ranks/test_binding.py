"""Every rank has cores of its own: those of a socket, or a share of those there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from machine_folders import Machine

from autotune.config.profile import Topology
from autotune.errors import InputError, MachineError
from autotune.ranks.binding import RankCores, core_sets, cores_by_rank, topology_of
from autotune.ranks.variables import OVERSUBSCRIBE


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


def nodes_of(t: Topology, sets: tuple[tuple[int, ...], ...]) -> list[set[int]]:
    node = {cpu: number for number, cpus in t.numa_nodes.items() for cpu in cpus}
    return [{node[cpu] for cpu in cpus} for cpus in sets]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("ranks", "nodes"), [(4, 1), (8, 1), (5, 1), (16, 1), (2, 2), (3, 2), (1, 4)])
def test_ranks_follow_sub_numa_nodes(tmp_path: Path, interleaved: bool, ranks: int, nodes: int) -> None:
    t = Machine(tmp_path).grid(2, 2, 8, threads=2, interleaved=interleaved).detect()
    sets = core_sets(t, ranks)
    assert sorted(cpu for cpus in sets for cpu in cpus) == list(range(32))
    assert max(len(held) for held in nodes_of(t, sets)) == nodes
    if ranks in (1, 2, 4, 8, 16):
        assert {len(cpus) for cpus in sets} == {32 // ranks}


def test_ranks_follow_nodes_of_any_numbers(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    first = [0, 1, 2, 5, 6, 10, 11, 12, 15, 16]
    second = [cpu for cpu in range(20) if cpu not in first]
    for cpu in range(20):
        machine.core([cpu])
    machine.node(0, first)
    machine.node(1, second)
    machine.system()
    t = machine.detect()
    assert core_sets(t, 2) == (tuple(first), tuple(second))
    assert core_sets(t, 4) == (tuple(first[:5]), tuple(first[5:]), tuple(second[:5]), tuple(second[5:]))


def test_unequal_nodes_are_a_rank_each(tmp_path: Path) -> None:
    machine, bounds = Machine(tmp_path), (0, 43, 86, 128)
    for cpu in range(128):
        machine.core([cpu])
    for node in range(3):
        machine.node(node, range(bounds[node], bounds[node + 1]))
    machine.system()
    assert [len(cpus) for cpus in core_sets(machine.detect(), 3)] == [43, 43, 42]


def test_the_larger_of_unequal_nodes_has_more_ranks(topology: Topology) -> None:
    assert core_sets(machine(topology, (6, 2)), 4) == ((0, 1), (2, 3), (4, 5), (6, 7))


def test_nodes_that_reach_over_sockets_go_before_them(topology: Topology) -> None:
    t = machine(topology, (4, 4)).model_copy(update={"numa_nodes": {0: (0, 1, 4, 5), 1: (2, 3, 6, 7)}})
    assert all(len(held) == 1 for held in nodes_of(t, core_sets(t, 4)))
    one_node = t.model_copy(update={"numa_nodes": {0: tuple(range(8))}})
    assert core_sets(one_node, 2) == ((0, 1, 2, 3), (4, 5, 6, 7))


def test_every_rank_has_fast_and_slow_cores(topology: Topology) -> None:
    t = machine(topology, (6,)).model_copy(update={"core_kinds": (0, 0, 0, 1, 1, 1)})
    assert core_sets(t, 2) == ((0, 2, 4), (1, 3, 5))
    assert topology_of(t, (1, 3, 5)).core_kinds == (0, 1, 1)


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


def test_a_rank_has_its_share_of_a_quota_and_of_the_caches(topology: Topology) -> None:
    whole = machine(topology, (4, 2)).model_copy(update={"cpu_quota": 3.0, "l3_instances": 2})
    own = topology_of(whole, (4, 5))
    assert (own.cpu_quota, own.default_threads(), own.l3_instances) == (1.0, 1, 1)


def rank_cores(*cpus: int, bound_of: int = 0, host: str = "a") -> RankCores:
    return RankCores(f"{host} net:[1]", cpus, bound_of, "Open MPI")


def test_the_cores_of_every_rank_are_told() -> None:
    assert cores_by_rank([rank_cores(0)]) == ()
    assert cores_by_rank([rank_cores(0, 1, 2, 8), rank_cores(4, 6)]) == ("cores of rank 0: 0-2,8, rank 1: 4,6; bound by autotune",)
    bound = [rank_cores(0, 1, bound_of=2), rank_cores(0, 1, bound_of=2, host="b")]
    assert cores_by_rank(bound) == ("cores of rank 0: 0-1 of a, rank 1: 0-1 of b; bound by Open MPI",)


def test_ranks_that_share_cores_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OVERSUBSCRIBE, raising=False)
    _, note = cores_by_rank([rank_cores(0, 1), rank_cores(2, 3), rank_cores(1, 2)])
    assert note.startswith("ranks 0 and 2 share cores, so the times say little")


def test_a_launcher_that_leaves_cores_idle_is_named() -> None:
    _, note = cores_by_rank([rank_cores(0, bound_of=32), rank_cores(0, bound_of=32, host="b")])
    assert note.startswith("Open MPI bound rank 0 to 1 of the 32 cores that its host has for it")
    assert "--bind-to none" in note
