"""How to start the process that a tuned config describes: binding, threads, allocator."""

from __future__ import annotations

import os
from collections.abc import Mapping

from autotune.config.knobs import RunConfig
from autotune.config.profile import Topology
from autotune.config.tuned import Launch
from autotune.probe.topology import core_binding

# Activations of up to this size come from a heap that is kept from step to step instead of fresh zero pages of mmap: the largest
# minibatch x width of the shipped models is 0.3 GB. glibc before 2.35 takes at most 32 MiB and ignores more, which then is its default.
_MALLOC_KEEPS_BYTES = 1 << 30
# Memory at the top of the heap that goes back to the system only beyond this.
_MALLOC_TRIM_BYTES = 4 << 30
_TARGET_VARIABLE = "AUTOTUNE_TARGET"


def launch_of(config: RunConfig, topology: Topology, environ: Mapping[str, str] | None = None) -> Launch:
    """Threads, cores and environment that reproduce a run of `config` on this machine.

    The OpenMP runtime reads places and binding when it starts, so they must be in the environment of the process. The wait policy is
    left alone: by default an idle thread spins for some milliseconds, which bridges the gaps between operators; spinning for ever
    (``active``) would take the cores from torch's autograd thread, which has a team of its own.

    Args:
        environ: Where an explicit kernel target is looked up; default the environment of this process.

    Raises:
        MachineError: more threads than physical cores.
    """
    cpus = core_binding(topology, config.threads)
    environment = {
        "OMP_NUM_THREADS": str(config.threads),
        "OMP_PROC_BIND": "true",
        "OMP_PLACES": ",".join(f"{{{cpu}}}" for cpu in cpus),
        "MALLOC_MMAP_THRESHOLD_": str(_MALLOC_KEEPS_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(_MALLOC_TRIM_BYTES),
    }
    if config.huge_pages and topology.huge_pages in ("always", "madvise"):
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    target = (os.environ if environ is None else environ).get(_TARGET_VARIABLE)
    if target:
        environment[_TARGET_VARIABLE] = target
    return Launch(threads=config.threads, cpus=cpus, environment=environment)


def not_in_force(launch: Launch, environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables of a launch that this process was not started with."""
    environ = os.environ if environ is None else environ
    return [name for name, value in launch.environment.items() if environ.get(name) != value]
