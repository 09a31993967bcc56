from __future__ import annotations

import pytest
from machines import topology_of

from autotune.config.knobs import RunConfig
from autotune.errors import MachineError
from autotune.ranks.launch import TUNABLES, launch_of, put_into


def test_a_launch_binds_one_thread_to_a_core() -> None:
    topology = topology_of(4, core_cpus=((0, 4), (1, 5), (2, 6), (3, 7)))
    launch = launch_of(RunConfig(threads=2, huge_pages=False), topology, {})
    assert launch.cpus == (0, 1)
    assert launch.environment["OMP_PLACES"] == "{0},{1}"
    assert launch.environment["OMP_NUM_THREADS"] == "2"
    assert "GLIBC_TUNABLES" not in launch.environment
    assert "AUTOTUNE_TARGET" not in launch.environment


def test_huge_pages_and_an_explicit_target_are_part_of_it() -> None:
    config = RunConfig(threads=2)
    launch = launch_of(config, topology_of(huge_pages="madvise"), {"AUTOTUNE_TARGET": "scalar"})
    assert launch.environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert launch.environment["AUTOTUNE_TARGET"] == "scalar"


def test_too_few_cores_are_refused() -> None:
    with pytest.raises(MachineError):
        launch_of(RunConfig(threads=4, huge_pages=False), topology_of(2), {})


@pytest.mark.parametrize(
    ("theirs", "keep", "both"),
    [
        ("glibc.rtld.optional_static_tls=8192", False, "glibc.rtld.optional_static_tls=8192:glibc.malloc.hugetlb=1"),
        ("glibc.rtld.optional_static_tls=8192", True, "glibc.malloc.hugetlb=1:glibc.rtld.optional_static_tls=8192"),
        ("glibc.malloc.hugetlb=0:a=1", False, "a=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0:a=1", True, "glibc.malloc.hugetlb=0:a=1"),
        ("", True, "glibc.malloc.hugetlb=1"),
    ],
)
def test_tunables_of_the_user_stay_beside_ours(theirs: str, keep: bool, both: str) -> None:
    ours = {TUNABLES: "glibc.malloc.hugetlb=1", "OMP_NUM_THREADS": "2"}
    there = {TUNABLES: theirs, "OMP_NUM_THREADS": "4", "HOME": "/"}
    merged = put_into(there, ours, keep)
    assert merged == {TUNABLES: both, "OMP_NUM_THREADS": "4" if keep else "2", "HOME": "/"}
    # A process that starts again in it asks for nothing more.
    assert put_into(merged, ours, keep) == merged
