"""The profile that ranks share: the machine's ceilings, probed apart with every core, and the network between the ranks."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.knobs import RunConfig
from autotune.config.profile import Fingerprint, Profile, Topology
from autotune.errors import AutotuneError, InputError, MachineError
from autotune.machine.activity import busy
from autotune.machine.topology import fingerprint
from autotune.ops.native import kernels
from autotune.probing.network import measure_network
from autotune.probing.store import load_or_probe, profile_path, read_profile, write_profile
from autotune.ranks import group
from autotune.ranks.driver import run_apart
from autotune.ranks.environment import VARIABLES
from autotune.ranks.interfaces import interface
from autotune.ranks.launch import environment, launch_of, put_into


def shared_profile(
    whole: Topology,
    *,
    backend: str = "gloo",
    refresh: bool = False,
    refresh_network: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Profile:
    """The profile of rank 0's machine with the network between all ranks, cached or measured now. Every rank calls it.

    One rank has no network, and probes in its own process.

    Args:
        whole: This machine with every core, as seen before the ranks were bound.
        backend: Of torch.distributed, in use.
        refresh: Measure both anew.
        refresh_network: Measure the network anew.

    Raises:
        MachineError: the probe failed.
    """
    if group.size() == 1:
        return load_or_probe(refresh=refresh, progress=progress)
    here, profile, cached = fingerprint(whole, kernels.target()), None, None
    if group.rank() == 0:
        profile = load_or_probe(refresh=refresh, progress=progress, measure=partial(_probe_apart, whole, refresh), here=here)
        cached = None if refresh or refresh_network else _cached(here, _network_name(group.size(), backend))
    with busy("waiting for the probe", waits=True):
        network = group.broadcast(cached and cached.network)
    measured = network or measure_network(backend, progress=progress)
    if profile is not None:
        profile = profile.model_copy(update={"network": measured})
        with suppress(InputError):  # no cache folder
            if network is None:
                write_profile(profile_path(here, _network_name(group.size(), backend)), profile, progress)
    profile = group.broadcast(profile)
    assert profile is not None
    return profile


def cached_profile(whole: Topology, ranks: int, backend: str = "gloo") -> Profile | None:
    """What an earlier probe of so many ranks left, if anything; without a network where only the machine was probed."""
    here = fingerprint(whole, kernels.target())
    return _cached(here, _network_name(ranks, backend)) or _cached(here)


def _network_name(ranks: int, backend: str) -> str:
    return f".{ranks}-ranks-{backend}-{interface().replace(' ', '-').replace('/', '-')}"


def _cached(here: Fingerprint, network: str = "") -> Profile | None:
    with suppress(InputError):
        return read_profile(profile_path(here, network), here)
    return None


def _probe_apart(whole: Topology, refresh: bool, progress: Progress) -> Profile:
    """A rank is bound to its part of the cores; a process with all of them measures the machine, while the ranks wait."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environ = {name: value for name, value in kept.items() if not name.startswith(("OMP_", "AUTOTUNE_RANKS", "AUTOTUNE_RESTARTED"))}
    team = RunConfig(threads=whole.physical_cores, huge_pages=whole.huge_pages != "never")
    environ = put_into(environ, environment(launch_of(team, whole)))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(whole.allowed_cpus))
    try:
        return run_apart(load_or_probe, {"refresh": refresh, "progress": progress}, environ=environ)
    except AutotuneError as error:
        raise MachineError(f"the machine must be probed first, got: {error}; run autotune probe") from error
    finally:
        os.sched_setaffinity(0, before)
