"""A made-up machine, and its fingerprint."""

from __future__ import annotations

from typing import Any

from autotune.config.profile import Fingerprint, Topology


def topology_of(cores: int = 4, **changes: Any) -> Topology:
    values: dict[str, Any] = {
        "cpu_model": "Example 9000",
        "vendor": "Example",
        "sockets": 1,
        "physical_cores": cores,
        "logical_cpus": cores,
        "allowed_cpus": tuple(range(cores)),
        "core_cpus": tuple((cpu,) for cpu in range(cores)),
        "socket_of_core": (0,) * cores,
        "numa_nodes": {0: tuple(range(cores))},
        "l1d_bytes": 32768,
        "l2_bytes": 1 << 20,
        "l3_bytes": 1 << 25,
        "l3_instances": 1,
        "isa": ("avx2", "fma"),
        "cpu_quota": None,
        "memory_bytes": 1 << 34,
        "memory_limit_bytes": None,
        "huge_pages": "never",
    }
    return Topology(**values | changes)


def fingerprint_of(cores: int = 4, **changes: Any) -> Fingerprint:
    return Fingerprint(topology=topology_of(cores, **changes), kernel="6.1", versions={"torch": "2.13", "autotune": "0.1.0"}, target="avx2")
