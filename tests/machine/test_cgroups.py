"""Limits of control groups, as a topology shows them."""

from __future__ import annotations

from pathlib import Path

from machine_folders import GIB, Machine, write

from autotune.machine.memory import available_memory_bytes


def v2(machine: Machine, path: str = "/a/b", root: str = "/") -> Path:
    machine.cgroup(f"0::{path}", f"30 20 0:25 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate")
    return machine.sysfs / "fs/cgroup"


def test_limits_of_a_v2_container_are_the_least_on_the_path(two_sockets: Machine) -> None:
    top = v2(two_sockets)
    write(top / "a/cpu.max", "150000 100000")
    write(top / "a/b/cpu.max", "max 100000")
    write(top / "a/memory.max", 8 * GIB)
    write(top / "a/b/memory.max", "max")
    write(top / "a/b/cpuset.cpus.effective", "0-1,4-5")
    t = two_sockets.detect()
    assert (t.cpu_quota, t.memory_limit_bytes, t.allowed_cpus) == (1.5, 8 * GIB, (0, 1, 4, 5))


def test_limits_of_a_v1_container(two_sockets: Machine) -> None:
    names = ("cpu,cpuacct", "memory", "cpuset")
    write(two_sockets.proc / "self/cgroup", "\n".join(f"{i}:{name}:/docker/x" for i, name in enumerate(names, 1)))
    mounts = [f"3{i} 20 0:2{i} /docker/x /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}" for i, name in enumerate(names)]
    write(two_sockets.proc / "self/mountinfo", "\n".join(mounts))
    top = two_sockets.sysfs / "fs/cgroup"
    write(top / "cpu,cpuacct/cpu.cfs_quota_us", 200000)
    write(top / "cpu,cpuacct/cpu.cfs_period_us", 100000)
    write(top / "memory/memory.limit_in_bytes", 4 * GIB)
    write(top / "memory/memory.usage_in_bytes", 3 * GIB)
    write(top / "memory/memory.stat", f"total_active_file {GIB}\ntotal_inactive_file {GIB}")
    write(top / "cpuset/cpuset.cpus", "0,4")
    t = two_sockets.detect()
    assert (t.cpu_quota, t.memory_limit_bytes, t.core_cpus) == (2.0, 4 * GIB, ((0, 4),))
    assert available_memory_bytes(t, two_sockets.sysfs, two_sockets.proc) == 3 * GIB


def test_limits_that_do_not_bind_are_no_limits(two_sockets: Machine) -> None:
    top = v2(two_sockets)
    write(top / "a/memory.max", 1 << 62)
    write(two_sockets.sysfs / "fs/cgroup/cpu.cfs_quota_us", -1)
    t = two_sockets.detect()
    assert (t.memory_limit_bytes, t.cpu_quota) == (None, None)


def test_a_v2_cgroup_that_bears_a_controllers_name_is_not_mistaken_for_it(two_sockets: Machine) -> None:
    top = v2(two_sockets)
    write(top / "memory/memory.max", GIB)
    assert two_sockets.detect().memory_limit_bytes is None


def test_a_cpuset_in_other_numbers_is_ignored(two_sockets: Machine) -> None:
    write(v2(two_sockets) / "cpuset.cpus.effective", "100-101")
    assert two_sockets.detect([0, 1]).allowed_cpus == (0, 1)


def test_available_memory_is_the_least_that_any_cgroup_leaves(two_sockets: Machine) -> None:
    top = v2(two_sockets)
    t = two_sockets.detect()
    assert available_memory_bytes(t, two_sockets.sysfs, two_sockets.proc) == 32 * GIB
    write(top / "a/memory.max", 20 * GIB)
    write(top / "a/memory.current", 18 * GIB)
    write(top / "a/b/memory.max", 10 * GIB)
    write(top / "a/b/memory.current", 5 * GIB)
    write(top / "a/memory.stat", f"anon {10 * GIB}\nactive_file {GIB}\ninactive_file {2 * GIB}")
    assert available_memory_bytes(two_sockets.detect(), two_sockets.sysfs, two_sockets.proc) == 5 * GIB
    write(top / "a/memory.current", 25 * GIB)
    assert available_memory_bytes(two_sockets.detect(), two_sockets.sysfs, two_sockets.proc) == 0
