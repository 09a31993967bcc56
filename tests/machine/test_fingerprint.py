"""What identifies a machine: its hardware's id, and what differs from another's."""

from __future__ import annotations

import pytest
from machine_folders import GIB, Machine

from autotune.config.profile import Fingerprint
from autotune.machine.topology import fingerprint, fingerprint_differences, hardware_id, software_differences


def changed(base: Fingerprint, **fields: object) -> Fingerprint:
    return base.model_copy(update={"topology": base.topology.model_copy(update=fields)})


@pytest.fixture
def base(two_sockets: Machine) -> Fingerprint:
    return fingerprint(two_sockets.detect(), "avx2")


def test_the_fingerprint_names_the_versions(base: Fingerprint) -> None:
    assert set(base.versions) == {"python", "torch", "numpy", "autotune"}
    assert base.target == "avx2"
    assert Fingerprint.model_validate_json(base.model_dump_json()) == base


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"l2_bytes": 1048576}, "l2_bytes: config 2097152, here 1048576"),
        ({"cpu_model": "Model Y"}, "cpu_model: config Model X, here Model Y"),
        ({"sockets": 1}, "sockets: config 2, here 1"),
        ({"isa": ("avx2", "fma")}, "isa: config avx512f, here without"),
        ({"memory_bytes": 32 * GIB}, f"memory_bytes: config {64 * GIB}, here {32 * GIB}"),
        ({"cpu_quota": 2.0}, "cpu_quota: config None, here 2.0"),
        ({"numa_nodes": {0: (0,)}}, "numa_nodes: config 2, here 1"),
    ],
)
def test_other_hardware_is_named_and_has_another_id(base: Fingerprint, fields: dict[str, object], words: str) -> None:
    here = changed(base, **fields)
    assert fingerprint_differences(base, here) == [words]
    assert hardware_id(here) != hardware_id(base)


def test_another_kernel_target_is_a_difference(base: Fingerprint) -> None:
    here = base.model_copy(update={"target": "scalar"})
    assert fingerprint_differences(base, here) == ["target: config avx2, here scalar"]
    assert hardware_id(here) != hardware_id(base)


def test_the_same_hardware_in_other_numbers_or_settings_is_no_difference(base: Fingerprint) -> None:
    here = changed(base, memory_bytes=63 * GIB, allowed_cpus=(8, 9), memory_limit_bytes=GIB, huge_pages="never")
    assert fingerprint_differences(base, here) == []
    assert hardware_id(here) == hardware_id(base)


def test_software_differences(base: Fingerprint) -> None:
    here = changed(base, huge_pages="never").model_copy(update={"kernel": "9.9", "versions": base.versions | {"torch": "1.0"}})
    assert software_differences(base, here) == [
        f"kernel: config {base.kernel}, here 9.9",
        "huge_pages: config madvise, here never",
        f"torch: config {base.versions['torch']}, here 1.0",
    ]
    assert software_differences(base, base) == []
