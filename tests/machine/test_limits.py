"""What limits an environment, in one line."""

from __future__ import annotations

import pytest
from machine_folders import GIB, Machine, write

from autotune.config.profile import Topology
from autotune.machine.limits import limits, remarks, thread_notes


def line(machine: Machine, allowed: list[int] | None = None, **environ: str) -> str:
    return limits(machine.detect(allowed, **environ), machine.sysfs, machine.proc, environ)


def test_nothing_limits_a_whole_machine(machine: Machine) -> None:
    assert line(machine.grid(2, 1, 2)) == "limits of this environment: none (4 cores, 64.0 GiB of memory)"


def test_a_cpuset_inside_one_cache_of_several_is_told(machine: Machine) -> None:
    machine.grid(2, 1, 4)
    assert line(machine, [4, 5]) == "limits of this environment: cpuset 2 of 8 CPUs, all on one of 2 L3 caches"
    assert line(machine, [3, 4]) == "limits of this environment: cpuset 2 of 8 CPUs"


def test_everything_is_on_one_line(machine: Machine) -> None:
    machine.grid(2, 1, 2, gib=32)
    machine.node(8, [], gib=16)
    machine.cgroup("0::/a", "30 20 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    write(machine.sysfs / "fs/cgroup/a/cpu.max", "150000 100000")
    write(machine.sysfs / "fs/cgroup/a/memory.max", 4 * GIB)
    write(machine.sysfs / "kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    machine.status(Mems_allowed_list="0,8")
    assert line(machine) == (
        "limits of this environment: CPU quota 1.5 CPUs; memory limit 4.00 GiB of 64.0 GiB (cgroup); "
        "memory of NUMA node 8 left out (without CPUs); memory of NUMA node 1 left out (outside the memory policy or cpuset); "
        "huge pages off"
    )
    assert "memory limit 2.00 GiB of 64.0 GiB (SLURM_MEM_PER_NODE)" in line(machine, SLURM_MEM_PER_NODE="2048")


def test_fast_and_slow_cores_and_a_memory_side_cache_are_told(topology: Topology) -> None:
    assert remarks(topology) == ()
    cores = topology.physical_cores
    kinds = (0, *(1 for _ in range(cores - 1)))
    notes = remarks(topology.model_copy(update={"core_kinds": kinds, "memory_side_cache_bytes": 16 * GIB}))
    assert notes[0].startswith(f"1 fast and {cores - 1} slow cores: threads take the fast ones first")
    assert notes[1].startswith("a memory-side cache of 16.0 GiB")


@pytest.mark.parametrize(("quota", "threads"), [(0.5, 1), (1.0, 1), (1.5, 1), (2.0, 2), (3.99, 3), (4.0, 4), (9.0, 4), (None, 4)])
def test_a_quota_bounds_the_default_threads_rounded_down(machine: Machine, quota: float | None, threads: int) -> None:
    t = machine.grid(1, 1, 4).detect().model_copy(update={"cpu_quota": quota})
    assert t.default_threads() == threads
    assert bool(thread_notes(t, threads)) == (threads < 4)


def test_a_quota_is_shared_by_ranks(machine: Machine) -> None:
    t = machine.grid(1, 1, 4).detect().model_copy(update={"cpu_quota": 3.0})
    assert [t.default_threads(ranks) for ranks in (1, 2, 3, 4)] == [3, 1, 1, 1]


def test_threads_under_a_quota_are_told(machine: Machine) -> None:
    t = machine.grid(1, 1, 4).detect().model_copy(update={"cpu_quota": 1.5})
    assert thread_notes(t, 1) == ("1 thread on 4 cores: the CPU quota grants 1.5 CPUs' worth of time",)
    assert thread_notes(t, 4)[0].endswith("and 4 threads are stopped whenever it is used up; 1 thread would not be")
