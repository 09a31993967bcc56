from __future__ import annotations

import ctypes
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_folders import GIB, Machine, listed, masked, write

from autotune.errors import InputError, MachineError
from autotune.machine import topology
from autotune.machine.memory import available_memory_bytes
from autotune.machine.sysfs import parse_cpu_list, parse_cpu_mask
from autotune.machine.topology import (
    core_binding,
    detect,
)


def test_two_sockets_with_hyperthreads(two_sockets: Machine) -> None:
    t = two_sockets.detect()
    assert (t.sockets, t.physical_cores, t.logical_cpus) == (2, 4, 8)
    assert t.core_cpus == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert t.socket_of_core == (0, 0, 1, 1)
    assert t.numa_nodes == {0: (0, 1, 4, 5), 1: (2, 3, 6, 7)}
    assert (t.l1d_bytes, t.l2_bytes, t.l3_bytes, t.l3_instances) == (48 << 10, 2 << 20, 36 << 20, 2)
    assert (t.cpu_model, t.vendor, t.isa) == ("Model X", "GenuineIntel", ("avx2", "fma", "avx512f"))
    assert (t.memory_bytes, t.memory_limit_bytes, t.cpu_quota, t.huge_pages) == (64 * GIB, None, None, "madvise")


def test_a_process_bound_to_the_second_socket_sees_that_alone(two_sockets: Machine) -> None:
    t = two_sockets.detect([2, 3])
    assert (t.sockets, t.physical_cores, t.logical_cpus, t.l3_instances) == (1, 2, 2, 1)
    assert (t.core_cpus, t.socket_of_core, t.numa_nodes) == (((2,), (3,)), (0, 0), {1: (2, 3)})
    assert t.l2_bytes == 2 << 20, "a hyperthread that is not allowed is no second core"


def test_a_single_core(machine: Machine) -> None:
    machine.core([0])
    machine.cache(1, "32K", [0], "Data")
    machine.cache(2, "1024K", [0])
    machine.cache(3, "8192K", [0])
    machine.node(0, [0])
    machine.system()
    t = machine.detect()
    assert (t.sockets, t.physical_cores, t.core_cpus, t.l3_bytes) == (1, 1, ((0,),), 8 << 20)
    assert core_binding(t, 1) == (0,)


def test_no_l3(machine: Machine) -> None:
    machine.core([0])
    machine.cache(2, "1M", [0])
    machine.system()
    t = machine.detect()
    assert (t.l2_bytes, t.l3_bytes, t.l3_instances) == (1 << 20, 0, 0)


def test_a_cache_without_a_size_is_worked_out_from_its_sets(machine: Machine) -> None:
    machine.core([0])
    machine.cache(2, "", [0])
    write(machine.cpu(0) / "cache/index2/number_of_sets", 1024)
    write(machine.cpu(0) / "cache/index2/ways_of_associativity", 8)
    machine.system()
    assert machine.detect().l2_bytes == 1024 * 8 * 64


def test_a_hybrid_machine_takes_the_smallest_share_of_a_core(machine: Machine) -> None:
    machine.core([0, 1])
    machine.cache(2, "2M", [0, 1])
    for cpu in (2, 3, 4, 5):
        machine.core([cpu])
    machine.cache(2, "4M", [2, 3, 4, 5])
    machine.system()
    t = machine.detect()
    assert (t.core_cpus, t.l2_bytes) == (((0, 1), (2,), (3,), (4,), (5,)), 1 << 20)
    assert core_binding(t, 6, oversubscribe=True) == (0, 2, 3, 4, 5, 1)


def test_a_numa_node_of_memory_alone_is_left_out(machine: Machine) -> None:
    machine.core([0])
    machine.core([1])
    machine.node(0, [0, 1])
    machine.node(2, [])
    machine.system()
    assert machine.detect().numa_nodes == {0: (0, 1)}


def test_an_offline_cpu_is_not_counted(machine: Machine) -> None:
    for cpu in (0, 1, 3):
        machine.core([cpu])
    write(machine.cpu(2) / "online", 0)
    machine.node(0, [0, 1, 3])
    machine.system()
    assert machine.detect([0, 1, 2, 3]).allowed_cpus == (0, 1, 3)


def test_a_container_without_sysfs_still_has_cores(machine: Machine) -> None:
    t = detect(machine.sysfs, machine.proc, [3, 5])
    assert (t.core_cpus, t.sockets, t.numa_nodes) == (((3,), (5,)), 1, {0: (3, 5)})
    assert (t.l1d_bytes, t.l2_bytes, t.l3_bytes, t.line_bytes) == (32 << 10, 256 << 10, 0, 64)
    assert (t.isa, t.huge_pages, t.vendor) == ((), "unknown", "unknown")
    assert t.memory_bytes > 0


def test_cores_and_sockets_from_cpuinfo_where_sysfs_has_no_topology(machine: Machine) -> None:
    blocks = [f"processor : {cpu}\nphysical id : {cpu // 4}\ncore id : {cpu // 2 % 2}\n" for cpu in range(8)]
    write(machine.proc / "cpuinfo", "\n".join(blocks))
    t = detect(machine.sysfs, machine.proc, range(8))
    assert (t.core_cpus, t.socket_of_core) == (((0, 1), (2, 3), (4, 5), (6, 7)), (0, 0, 1, 1))


def test_aarch64(machine: Machine) -> None:
    machine.core([0], package=-1)
    machine.core([1], package=-1)
    machine.system(fields="Features : fp asimd asimddp sve bf16 i8mm\nCPU implementer : 0x41\nCPU part : 0xd40")
    t = machine.detect()
    assert (t.cpu_model, t.vendor, t.sockets) == ("Neoverse-V1", "ARM", 1)
    assert t.isa == ("asimd", "asimddp", "bf16", "i8mm", "sve")


def test_an_extension_that_one_cpu_lacks_is_not_offered(machine: Machine) -> None:
    write(machine.proc / "cpuinfo", "processor : 0\nflags : avx2 avx512f\n\nprocessor : 1\nflags : avx2\n")
    assert detect(machine.sysfs, machine.proc, [0, 1]).isa == ("avx2",)
    assert detect(machine.sysfs, machine.proc, [0]).isa == ("avx2", "avx512f")


@pytest.mark.parametrize("masks", [False, True])
def test_masks_of_old_kernels_say_what_lists_say(machine: Machine, masks: bool) -> None:
    machine.masks = masks
    t = machine.grid(2, 2, 2, threads=2).detect()
    assert (t.sockets, t.physical_cores, t.logical_cpus, t.l3_instances, t.l2_bytes) == (2, 8, 16, 2, 1 << 20)
    assert t.socket_of_core == (0, 0, 0, 0, 1, 1, 1, 1)
    assert t.numa_nodes == {n: (2 * n, 2 * n + 1, 2 * n + 8, 2 * n + 9) for n in range(4)}


@pytest.mark.parametrize("package", [-1, 0, None])
def test_sockets_are_told_apart_where_package_ids_do_not(machine: Machine, package: int | None) -> None:
    for first in (0, 2):
        for cpu in (first, first + 1):
            machine.core([cpu], package, siblings=[first, first + 1])
    machine.system()
    t = machine.detect()
    assert (t.sockets, t.socket_of_core) == (2, (0, 0, 1, 1))


def test_packages_of_one_id_in_several_books_are_several_sockets(machine: Machine) -> None:
    for book in (0, 1):
        for package in (0, 1):
            siblings = [4 * book + 2 * package, 4 * book + 2 * package + 1]
            for cpu in siblings:
                machine.core([cpu], package, siblings)
                write(machine.cpu(cpu) / "topology/book_id", book)
    machine.system()
    assert machine.detect().socket_of_core == (0, 0, 1, 1, 2, 2, 3, 3)


def test_clusters_are_neither_cores_nor_sockets(machine: Machine) -> None:
    machine.grid(1, 1, 4)
    for cpu in range(4):
        write(machine.cpu(cpu) / "topology/cluster_id", cpu // 2)
        write(machine.cpu(cpu) / "topology/cluster_cpus_list", "0-1" if cpu < 2 else "2-3")
    t = machine.detect()
    assert (t.sockets, t.physical_cores) == (1, 4)


def test_a_thread_that_is_offline_leaves_its_core(machine: Machine) -> None:
    machine.core([0, 4])
    machine.core([1])
    machine.cache(2, "1M", [0, 4])
    machine.cache(2, "1M", [1])
    write(machine.cpu(5) / "online", 0)
    machine.system()
    t = machine.detect([0, 1, 4, 5])
    assert (t.core_cpus, t.logical_cpus, t.l2_bytes) == (((0, 4), (1,)), 3, 1 << 20)


def test_cores_that_are_offline_in_one_socket_leave_the_other_whole(machine: Machine) -> None:
    machine.grid(2, 1, 4)
    for cpu in (6, 7):
        write(machine.cpu(cpu) / "online", 0)
    t = machine.detect()
    assert (t.sockets, t.socket_of_core, t.numa_nodes) == (2, (0, 0, 0, 0, 1, 1), {0: (0, 1, 2, 3), 1: (4, 5)})


def test_modules_that_share_a_floating_point_unit_are_cores_by_their_ids(machine: Machine) -> None:
    for cpu in range(4):
        machine.core([cpu - cpu % 2, cpu - cpu % 2 + 1])
        write(machine.cpu(cpu) / "topology/core_id", cpu)
    machine.cpus = [0, 1, 2, 3]
    machine.cache(2, "2M", [0, 1])
    machine.cache(2, "2M", [2, 3])
    machine.system(fields="vendor_id : AuthenticAMD\ncpu family : 21\nflags : avx fma")
    t = machine.detect()
    assert (t.core_cpus, t.l2_bytes) == (((0,), (1,), (2,), (3,)), 1 << 20)


def test_threads_with_ids_of_their_own_are_one_core(machine: Machine) -> None:
    machine.core([0, 1])
    for cpu in (0, 1):
        write(machine.cpu(cpu) / "topology/core_id", cpu)
    machine.system()
    assert machine.detect().core_cpus == ((0, 1),)


@pytest.mark.parametrize("shared", ["00000000,00000000", ""])
def test_a_cache_that_names_nobody_is_its_cores(machine: Machine, shared: str) -> None:
    machine.core([0, 1])
    machine.core([2, 3])
    for cpus in ([0, 1], [2, 3]):
        machine.cache(3, "9M", cpus)
        for cpu in cpus:
            (machine.cpu(cpu) / "cache/index3/shared_cpu_list").unlink()
            write(machine.cpu(cpu) / "cache/index3/shared_cpu_map", shared)
    machine.system()
    assert (machine.detect().l3_instances, machine.detect().l3_bytes) == (2, 9 << 20)


def test_nodes_with_gaps_and_without_cpus(machine: Machine) -> None:
    for cpu in range(4):
        machine.core([cpu])
    for node, cpus in ((0, [0, 1]), (8, [2, 3]), (252, []), (255, [])):
        machine.node(node, cpus)
    machine.system()
    assert machine.detect().numa_nodes == {0: (0, 1), 8: (2, 3)}


def test_nodes_that_claim_the_same_cpus_are_one(machine: Machine) -> None:
    for cpu in range(4):
        machine.core([cpu])
    for node in range(3):
        machine.node(node, [0, 1, 2, 3])
    machine.system()
    assert machine.detect().numa_nodes == {0: (0, 1, 2, 3)}


def test_a_memory_side_cache_is_seen_and_kept_in_files(machine: Machine) -> None:
    machine.grid(1, 1, 1)
    plain = machine.detect()
    assert "memory_side_cache_bytes" not in plain.model_dump()
    machine.node(0, [0], gib=64, side_cache_gib=16)
    t = machine.detect()
    assert t.memory_side_cache_bytes == 16 * GIB
    assert type(t).model_validate(t.model_dump()) == t


FAST_AND_SLOW = {
    "capacity": {f"devices/system/cpu/cpu{cpu}/cpu_capacity": value for cpu, value in enumerate((446, 446, 1024, 1010))},
    "lists": {"devices/cpu_core/cpus": "2-3", "devices/cpu_atom/cpus": "0-1"},
    "frequency": {f"devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq": v for cpu, v in enumerate((3300000, 3300000, 5100000, 5000000))},
}


@pytest.mark.parametrize("source", FAST_AND_SLOW)
def test_fast_cores_come_before_slow_ones(machine: Machine, source: str) -> None:
    machine.grid(1, 1, 4)
    for file, value in FAST_AND_SLOW[source].items():
        write(machine.sysfs / file, value)
    t = machine.detect()
    assert (t.core_cpus, t.core_kinds) == (((2,), (3,), (0,), (1,)), (0, 0, 1, 1))
    assert core_binding(t, 3) == (2, 3, 0)
    assert type(t).model_validate(t.model_dump()) == t


def test_cores_that_boost_a_little_higher_are_of_the_same_kind(machine: Machine) -> None:
    machine.grid(1, 1, 4)
    for cpu, frequency in enumerate((5400000, 5500000, 5700000, 5800000)):
        write(machine.cpu(cpu) / "cpufreq/cpuinfo_max_freq", frequency)
    assert machine.detect().core_kinds == ()
    (machine.cpu(2) / "cpufreq/cpuinfo_max_freq").unlink()
    assert machine.detect().core_kinds == ()


@pytest.mark.parametrize("mounted", ["mountinfo", "mounts"])
def test_a_cpuset_mounted_without_prefix_elsewhere(machine: Machine, mounted: str) -> None:
    machine.grid(1, 1, 4)
    if mounted == "mountinfo":
        machine.cgroup("5:cpuset:/job", "30 20 0:25 / /dev/cpuset rw - cgroup none rw,cpuset,noprefix")
    else:
        write(machine.proc / "self/cpuset", "/job")
        write(machine.proc / "mounts", "none /dev/cpuset cgroup rw,cpuset,noprefix 0 0")
    write(machine.root / "dev/cpuset/job/cpus", "1-2")
    assert machine.detect().allowed_cpus == (1, 2)


def test_binding_takes_one_hyperthread_a_core_and_the_first_socket_first(two_sockets: Machine) -> None:
    t = two_sockets.detect()
    assert core_binding(t, 3) == (0, 1, 2)
    assert core_binding(t, 10, oversubscribe=True) == (0, 1, 2, 3, 4, 5, 6, 7, 0, 1)


def test_more_threads_than_cores_are_refused_with_the_way_out(two_sockets: Machine) -> None:
    with pytest.raises(MachineError, match=r"must not exceed the 4 physical cores .* got 5; use 4 or fewer"):
        core_binding(two_sockets.detect(), 5)
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        core_binding(two_sockets.detect(), 0)


def test_no_allowed_cpu_is_refused(machine: Machine) -> None:
    with pytest.raises(InputError, match="at least one CPU"):
        detect(machine.sysfs, machine.proc, [])


@given(st.sets(st.integers(0, 300)))
def test_cpu_lists_are_read_as_they_are_written(cpus: set[int]) -> None:
    assert parse_cpu_list(listed(sorted(cpus))) == tuple(sorted(cpus))


@given(st.sets(st.integers(0, 95)))
def test_masks_are_read_as_they_are_written(cpus: set[int]) -> None:
    assert parse_cpu_mask(masked(sorted(cpus))) == tuple(sorted(cpus))


def test_a_list_with_a_stride() -> None:
    assert parse_cpu_list("0-10:2/4,13") == (0, 1, 4, 5, 8, 9, 13)
    assert parse_cpu_list("0-7:1/2") == (0, 2, 4, 6)
    assert parse_cpu_mask("not a mask") == parse_cpu_mask("") == ()


@given(st.integers(0, 200), st.integers(0, 100))
def test_cpu_ranges(first: int, length: int) -> None:
    assert parse_cpu_list(f"{first}-{first + length}\n") == tuple(range(first, first + length + 1))


@given(st.sets(st.integers(0, 7), min_size=1))
def test_any_affinity_gives_a_consistent_topology(tmp_path_factory: pytest.TempPathFactory, allowed: set[int]) -> None:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    for core in range(4):
        machine.core([core, core + 4], package=core // 2)
    machine.system()
    t = machine.detect(sorted(allowed))
    assert sorted(cpu for core in t.core_cpus for cpu in core) == list(t.allowed_cpus) == sorted(allowed)
    assert len(t.socket_of_core) == len(t.core_cpus) == t.physical_cores
    assert set(t.socket_of_core) == set(range(t.sockets))
    assert len(set(core_binding(t, t.physical_cores))) == t.physical_cores


def test_cores_that_openmp_bound_this_thread_away_from_are_still_allowed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class OpenMP:
        def omp_get_num_places(self) -> int:
            return 2

        def omp_get_place_num_procs(self, place: int) -> int:
            return 1

        def omp_get_place_proc_ids(self, place: int, ids: list[int]) -> None:
            ids[0] = (4, 6)[place]

    write(machine.proc / "self/maps", "7f00-7f01 r-xp 00000000 00:01 2 /opt/torch/lib/libgomp.so.1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4})
    monkeypatch.setattr(topology, "_SEEN_AT_IMPORT", frozenset({8}))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: OpenMP())
    monkeypatch.delenv("OMP_PLACES", raising=False)
    monkeypatch.delenv("GOMP_CPU_AFFINITY", raising=False)
    monkeypatch.delenv("KMP_AFFINITY", raising=False)
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    assert detect(machine.sysfs, machine.proc).allowed_cpus == (4,)
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    assert detect(machine.sysfs, machine.proc).allowed_cpus == (4, 6, 8)


def test_this_machine_can_be_described() -> None:
    t = detect()
    assert t.physical_cores <= t.logical_cpus
    assert 0 < available_memory_bytes(t) <= t.memory_bytes
