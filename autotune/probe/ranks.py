"""The profile that ranks share: the machine's ceilings, probed apart with every core, and the network between the ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch.distributed as dist

from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.files import cache_folder, load_profile, write_yaml
from autotune.config.network import Network
from autotune.config.profile import Fingerprint, Profile, Topology
from autotune.dlrm.ranks import busy, interface
from autotune.errors import InputError, MachineError
from autotune.ops.native import kernels
from autotune.probe.network import measure_network
from autotune.probe.store import load_or_probe, usable
from autotune.probe.topology import fingerprint, hardware_id

_NO_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")


def load_or_probe_ranks(
    whole: Topology,
    *,
    backend: str = "gloo",
    refresh: bool = False,
    refresh_network: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Profile:
    """The profile of rank 0's machine with the network between all ranks, cached or measured now. Every rank calls it.

    Args:
        whole: This machine with every core, as seen before the ranks were bound.
        backend: Of torch.distributed, in use.
        refresh: Measure both anew.
        refresh_network: Measure the network anew.

    Raises:
        MachineError: the probe failed.
    """
    first = dist.get_rank() == 0
    here = fingerprint(whole, kernels.target())
    path = _path(here, backend, dist.get_world_size()) if first else None
    machine: Profile | None = None
    network: Network | None = None
    if first:
        machine = load_or_probe(refresh=refresh, progress=progress, measure=partial(_probe_apart, whole, refresh), here=here)
        network = None if refresh or refresh_network or path is None else _load(path, here)
    told: list[Network | None] = [network]
    with busy("waiting for the probe", waits=True):
        dist.broadcast_object_list(told, 0)
    network = told[0] or measure_network(backend, progress=progress)
    profiles: list[Profile | None] = [machine and machine.model_copy(update={"network": network})]
    if first and path is not None and told[0] is None:
        _store(path, profiles[0], progress)
    dist.broadcast_object_list(profiles, 0)
    profile = profiles[0]
    assert profile is not None
    return profile


def cached_profile(whole: Topology, ranks: int, backend: str = "gloo") -> Profile | None:
    """What an earlier probe of so many ranks left, if anything; without a network where only the machine was probed."""
    here = fingerprint(whole, kernels.target())
    path = _path(here, backend, ranks)
    if path is None:
        return None
    alone = path.with_name(f"{hardware_id(here)}.yaml")
    for file in (path, alone):
        try:
            found = load_profile(file) if file.exists() else None
        except (InputError, OSError):
            continue
        if found is not None and usable(found, here):
            return found
    return None


def _path(here: Fingerprint, backend: str, ranks: int) -> Path | None:
    try:
        name = f"{hardware_id(here)}.{ranks}-ranks-{backend}-{interface().replace(' ', '-').replace('/', '-')}.yaml"
        return cache_folder() / "profiles" / name
    except InputError:
        return None


def _load(path: Path, here: Fingerprint) -> Network | None:
    try:
        found = load_profile(path) if path.exists() else None
    except (InputError, OSError):
        return None
    return found.network if found is not None and usable(found, here) else None


def _store(path: Path, profile: Profile | None, progress: Progress) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if profile is not None:
            write_yaml(path, profile)
    except (InputError, OSError) as error:
        progress.note(f"the network's profile is not kept ({error})")


def _probe_apart(whole: Topology, refresh: bool, progress: Progress) -> Profile:
    """A rank is bound to its part of the cores; a process with all of them measures the machine, while the ranks wait."""
    kept = {name: value for name, value in os.environ.items() if name not in _NO_LAUNCHER}
    environ = {name: value for name, value in kept.items() if not name.startswith(("OMP_", "AUTOTUNE_RANKS", "AUTOTUNE_RESTARTED"))}
    with tempfile.TemporaryDirectory(prefix="autotune-probe-") as folder:
        file = Path(folder) / "profile.yaml"
        line = [sys.executable, "-m", "autotune", "probe", "-o", str(file), *(["--refresh"] if refresh else [])]
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, set(whole.allowed_cpus))
        try:
            done = subprocess.run(line, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        finally:
            os.sched_setaffinity(0, before)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip().splitlines()
            why = words[-1] if words else f"exit code {done.returncode}"
            raise MachineError(f"the machine must be probed first, got: {why}; run autotune probe")
        return load_profile(file)
