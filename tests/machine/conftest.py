"""Machines that tests describe."""

from __future__ import annotations

from pathlib import Path

import pytest
from machine_folders import Machine, write


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def two_sockets(machine: Machine) -> Machine:
    """2 sockets x 2 cores x 2 hyperthreads, numbered as Linux does: siblings are 4 apart, sockets alternate by pairs."""
    for package, cores in enumerate(([0, 1], [2, 3])):
        cpus = [*cores, *(core + 4 for core in cores)]
        for core in cores:
            machine.core([core, core + 4], package)
            machine.cache(1, "48K", [core, core + 4], "Data")
            machine.cache(1, "32K", [core, core + 4], "Instruction")
            machine.cache(2, "2048K", [core, core + 4])
        machine.cache(3, "36M", cpus)
        machine.node(package, cpus)
    machine.system()
    write(machine.sysfs / "kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    return machine
