from __future__ import annotations

import pytest
from machines import topology_of

from autotune.config.knobs import RunConfig
from autotune.errors import MachineError
from autotune.ranks.launch import launch_of


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
