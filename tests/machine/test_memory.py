"""What memory counts for this process: of which nodes, below which limits."""

from __future__ import annotations

import pytest
from machine_folders import GIB, Machine, write

from autotune.errors import InputError


@pytest.fixture
def two_nodes(machine: Machine) -> Machine:
    """96 GiB each, of which node 0 has 2 free and node 1 90."""
    machine.grid(2, 1, 2)
    machine.node(0, [0, 1], gib=96, free_gib=2)
    machine.node(1, [2, 3], gib=96, free_gib=90)
    machine.system(192 << 20, 91 << 20)
    return machine


def test_memory_of_all_nodes_is_what_the_system_has_available(two_nodes: Machine) -> None:
    assert two_nodes.available() == 91 * GIB


def test_nodes_whose_pages_are_still_being_set_up_bound_nothing(two_nodes: Machine) -> None:
    two_nodes.node(1, [2, 3], gib=9, free_gib=7)
    assert (two_nodes.available(), two_nodes.detect().memory_bytes) == (91 * GIB, 192 * GIB)


@pytest.mark.parametrize("field", [{"Mems_allowed_list": "0"}, {"Mems_allowed": "00000000,00000001"}])
def test_nodes_that_the_cpuset_forbids_do_not_count(two_nodes: Machine, field: dict[str, str]) -> None:
    two_nodes.status(**field)
    assert (two_nodes.available(), two_nodes.detect().memory_bytes) == (2 * GIB, 192 * GIB)


@pytest.mark.parametrize("file", ["cpuset.mems", "cpuset.effective_mems"])
def test_nodes_that_the_cgroup_forbids_do_not_count(two_nodes: Machine, file: str) -> None:
    two_nodes.cgroup("3:cpuset:/x", "30 20 0:25 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset")
    write(two_nodes.sysfs / f"fs/cgroup/cpuset/x/{file}", "0")
    assert two_nodes.available() == 2 * GIB


@pytest.mark.parametrize("policy", ["bind:0", "bind=static:0"])
def test_nodes_outside_a_binding_memory_policy_do_not_count(two_nodes: Machine, policy: str) -> None:
    write(two_nodes.proc / "self/numa_maps", f"5620e79be000 {policy} file=/usr/bin/python mapped=2 N0=2\n5620e79c0000 default heap")
    assert two_nodes.available() == 2 * GIB


@pytest.mark.parametrize("policy", ["default", "interleave:0", "weighted interleave:0", "prefer:0", "prefer (many):0", "local"])
def test_policies_that_do_not_bind_leave_every_node(two_nodes: Machine, policy: str) -> None:
    write(two_nodes.proc / "self/numa_maps", f"5620e79be000 {policy} file=/usr/bin/python mapped=2 N0=2")
    assert two_nodes.available() == 91 * GIB


def test_file_cache_of_a_node_is_given_back(two_nodes: Machine) -> None:
    sizes = {"MemTotal": 96, "MemFree": 2, "Active(file)": 3, "Inactive(file)": 4, "SReclaimable": 1}
    text = "\n".join(f"Node 0 {name}: {size << 20} kB" for name, size in sizes.items())
    write(two_nodes.sysfs / "devices/system/node/node0/meminfo", text)
    two_nodes.status(Mems_allowed_list="0")
    assert two_nodes.available() == 10 * GIB


def accelerated(machine: Machine) -> Machine:
    """Two nodes of 96 GiB, and six of 15 GiB that have no CPUs."""
    machine.grid(2, 1, 2, gib=96, free_gib=80)
    for number in range(250, 256):
        machine.node(number, [], gib=15)
    machine.system(282 << 20, 250 << 20)
    return machine


def test_memory_of_nodes_without_cpus_does_not_count(machine: Machine) -> None:
    accelerated(machine)
    assert (machine.detect().memory_bytes, machine.available()) == (192 * GIB, 160 * GIB)


@pytest.mark.parametrize(("policy", "gib"), [("interleave:0-1,250", 175), ("bind:250", 15), ("prefer:251", 175)])
def test_memory_of_nodes_without_cpus_counts_where_the_policy_names_them(machine: Machine, policy: str, gib: int) -> None:
    accelerated(machine)
    write(machine.proc / "self/numa_maps", f"5620e79be000 {policy} file=/usr/bin/python")
    assert machine.available() == gib * GIB
    assert machine.detect().memory_bytes == 207 * GIB


def test_memory_counts_where_nodes_with_cpus_have_none(machine: Machine) -> None:
    machine.core([0])
    machine.node(0, [0])
    write(machine.sysfs / "devices/system/node/node0/meminfo", "Node 0 MemTotal: 0 kB\nNode 0 MemFree: 0 kB")
    machine.node(1, [], gib=20)
    machine.system()
    assert (machine.available(), machine.detect().memory_bytes) == (20 * GIB, 64 * GIB)


def test_memory_high_bounds_as_memory_max_does(two_sockets: Machine) -> None:
    two_sockets.cgroup("0::/a", "30 20 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    folder = two_sockets.sysfs / "fs/cgroup/a"
    write(folder / "memory.max", 8 * GIB)
    write(folder / "memory.high", 6 * GIB)
    write(folder / "memory.current", GIB)
    assert (two_sockets.detect().memory_limit_bytes, two_sockets.available()) == (6 * GIB, 5 * GIB)


def test_version_1_tells_the_limits_of_hidden_parents(two_sockets: Machine) -> None:
    two_sockets.cgroup("4:memory:/pod/x", "30 20 0:25 /pod/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory")
    folder = two_sockets.sysfs / "fs/cgroup/memory"
    write(folder / "memory.limit_in_bytes", 9223372036854771712)
    write(folder / "memory.usage_in_bytes", GIB)
    write(folder / "memory.stat", f"hierarchical_memory_limit {5 * GIB}")
    assert (two_sockets.detect().memory_limit_bytes, two_sockets.available()) == (5 * GIB, 4 * GIB)


@pytest.mark.parametrize(
    ("environ", "gib"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4),
        ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "3"}, 3),
        ({"SLURM_MEM_PER_NODE": "0"}, 32),
        ({"SLURM_MEM_PER_CPU": "1024"}, 32),
    ],
)
def test_limits_of_a_job_bound_where_no_cgroup_shows_them(two_sockets: Machine, environ: dict[str, str], gib: int) -> None:
    assert two_sockets.available(**environ) == gib * GIB
    assert two_sockets.detect(**environ).memory_limit_bytes == (gib * GIB if gib < 32 else None)


def test_a_limit_of_a_job_that_is_no_number_is_refused(two_sockets: Machine) -> None:
    with pytest.raises(InputError, match="SLURM_MEM_PER_NODE must be a whole number, got '4G'; unset it"):
        two_sockets.detect(SLURM_MEM_PER_NODE="4G")


@pytest.mark.parametrize(("limit", "used"), [("Max address space", "VmSize"), ("Max data size", "VmData")])
def test_limits_of_the_shell_bound(two_sockets: Machine, limit: str, used: str) -> None:
    write(two_sockets.proc / "self/limits", f"{limit}         {6 * GIB}           unlimited            bytes")
    two_sockets.status(**{used: f"{1 << 20} kB"})
    assert two_sockets.available() == 5 * GIB
