"""The environment of a process: threads, binding, allocator. OpenMP and the allocator read it once, when the process starts; so a process
that was started in another one starts itself again."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from autotune.errors import InputError
from autotune.ranks import child
from autotune.ranks.failures import check_threads
from autotune.ranks.launcher import undo_openmp_binding

if TYPE_CHECKING:
    from autotune.config.knobs import RunConfig
    from autotune.config.profile import Topology
    from autotune.config.tuned import Launch, TunedConfig

# Activations of up to this size come from a heap that is kept from step to step instead of fresh zero pages of mmap: the largest
# minibatch x width of the shipped models is 0.3 GB. glibc before 2.35 takes at most 32 MiB and ignores more, which then is its default.
_MALLOC_KEEPS_BYTES = 1 << 30
# Memory at the top of the heap that goes back to the system only beyond this.
_MALLOC_TRIM_BYTES = 4 << 30
_TARGET_VARIABLE = "AUTOTUNE_TARGET"
TUNABLES = "GLIBC_TUNABLES"
"""One variable for many settings, ``name=value`` joined by colons: ours stand beside the user's, who may need theirs to load anything."""
GUARD = "AUTOTUNE_RESTARTED"
"""Holds the id of the process that has started itself again: execve keeps the id, and children have another."""

_restart_allowed = False


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
    from autotune.config.tuned import Launch
    from autotune.machine.topology import core_binding

    cpus = core_binding(topology, config.threads)
    environment = {
        "OMP_NUM_THREADS": str(config.threads),
        "OMP_PROC_BIND": "true",
        "OMP_PLACES": ",".join(f"{{{cpu}}}" for cpu in cpus),
        "MALLOC_MMAP_THRESHOLD_": str(_MALLOC_KEEPS_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(_MALLOC_TRIM_BYTES),
    }
    if config.huge_pages and topology.huge_pages in ("always", "madvise"):
        environment[TUNABLES] = "glibc.malloc.hugetlb=1"
    target = (os.environ if environ is None else environ).get(_TARGET_VARIABLE)
    if target:
        environment[_TARGET_VARIABLE] = target
    return Launch(threads=config.threads, cpus=cpus, environment=environment)


def environment(launch: Launch) -> dict[str, str]:
    """Every variable a process needs before OpenMP and the allocator start, sorted by name.

    `launch.environment` as it is; threads and binding, where it does not name them, follow from `launch.threads` and `launch.cpus`.

    Source: OpenMP 5.2, OMP_NUM_THREADS, OMP_PROC_BIND, OMP_PLACES.
    """
    derived = {"OMP_NUM_THREADS": str(launch.threads)}
    if places := ",".join(f"{{{cpu}}}" for cpu in dict.fromkeys(launch.cpus)):
        derived |= {"OMP_PROC_BIND": "true", "OMP_PLACES": places}
    return dict(sorted((derived | launch.environment).items()))


def put_into(environ: Mapping[str, str], variables: Mapping[str, str], keep: bool = False) -> dict[str, str]:
    """`environ` with `variables` set; what else `environ` has in GLIBC_TUNABLES stays beside ours.

    Args:
        keep: What `environ` sets already stays as it is.
    """
    merged = {**variables, **environ} if keep else {**environ, **variables}
    if TUNABLES in environ and TUNABLES in variables:
        theirs, ours = (dict.fromkeys(filter(None, each[TUNABLES].split(":"))) for each in (environ, variables))
        weak, strong = (ours, theirs) if keep else (theirs, ours)
        decided = {setting.partition("=")[0] for setting in strong}
        merged[TUNABLES] = ":".join([setting for setting in weak if setting.partition("=")[0] not in decided] + list(strong))
    return merged


def allow_restart() -> None:
    """Let `ensure_environment` replace this process. For processes that are commands or ranks of ours, never for a user's program."""
    if os.environ.get(GUARD) != str(os.getpid()):  # after our own restart the binding is the one that was asked for
        undo_openmp_binding()
    global _restart_allowed
    _restart_allowed = True


def missing(launch: Launch, keep: bool = False) -> dict[str, str]:
    """Variables of `launch` that this process was not started with. With `keep`, those set to something else are left alone."""
    variables = environment(launch)
    wanted = put_into(os.environ, variables, keep)
    return {name: wanted[name] for name in variables if os.environ.get(name) != wanted[name]}


def ensure_environment(launch: Launch, keep: bool = False) -> None:
    """Replace this process by the same command line in the environment of `launch`, once; return where it already stands.

    Call it before torch is imported. In a process that has not called `allow_restart` nothing is done.

    Args:
        keep: Leave variables that the user has set as they are: for a run without a config.

    Raises:
        InputError: the environment is not the one asked for even after a restart.
    """
    variables = missing(launch, keep)
    if not variables or not _restart_allowed:
        return
    if os.environ.get(GUARD) == str(os.getpid()):
        names = ", ".join(f"{name}={os.environ.get(name, '')!r}" for name in variables)
        raise InputError(
            f"a run needs its launch environment, and something resets it at start: {names}; "
            'set it by hand: eval "$(autotune export CONFIG --to env)"'
        )
    sys.stdout.flush()
    sys.stderr.flush()
    with child.held_back():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variables, GUARD: str(os.getpid())})


def start_tuned(tuned: TunedConfig, topology: Topology, force: bool = False) -> Launch:
    """Put the process into the environment of a config; with `force`, on cores of this machine.

    Raises:
        InputError: its CPUs are not this process's.
    """
    launch, outside = tuned.launch, [str(cpu) for cpu in tuned.launch.cpus if cpu not in topology.allowed_cpus]
    if outside and not force:
        raise InputError(
            f"a config's CPUs must be allowed here, got {', '.join(outside)} outside this process's cpuset (launch.cpus); "
            "widen the cpuset, tune again here, or bind to other cores with --force"
        )
    if outside:
        launch = launch_of(tuned.config, topology)
    ensure_environment(launch)
    check_threads(len(launch.cpus))
    return launch
