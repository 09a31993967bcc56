"""A command on several sockets: this process starts the ranks, or is one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import typer

from autotune import catalog
from autotune.cli.launch import ensure_environment
from autotune.cli.options import parse_data
from autotune.cli.session import check_tuned, select_model, spoken_name
from autotune.config.files import load_tuned
from autotune.config.knobs import RunConfig
from autotune.config.model import UNCHANGED, Changes, DataSpec, Model
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.config.profile import Profile, Topology
from autotune.config.tuned import TunedConfig
from autotune.dlrm.ranks import FOLDER, Ranks, beat, from_environment
from autotune.errors import InputError
from autotune.probe.core_sets import OVERSUBSCRIBE, NetworkThreads, bind, core_sets, topology_of
from autotune.probe.topology import available_memory_bytes, detect
from autotune.tune.launch import launch_of


@dataclass(frozen=True)
class RankSession:
    """All that one rank has decided before torch is imported. The process has its environment and its cores."""

    ranks: Ranks
    name: str
    """Of the model, as a later command finds it again."""
    model: Model
    """With the global minibatch."""
    config: RunConfig
    """Without a partition where it has yet to be planned; see `RankSession.planned`."""
    whole: Topology
    """This host, with every core that its ranks may use."""
    topology: Topology
    """The cores of this rank."""
    data: DataSpec
    notes: tuple[str, ...]
    tuned: TunedConfig | None = None

    @property
    def first(self) -> bool:
        return self.ranks.rank == 0

    @contextmanager
    def joined(self) -> Iterator[NetworkThreads]:
        """Inside, torch.distributed works, and every rank is known to want the same."""
        from autotune.dlrm.ranks import agree, joined

        cpus = self.topology.allowed_cpus
        communication = self.config.communication or CommunicationKnobs()
        threads = NetworkThreads(cpus)
        with joined(self.ranks, communication.backend):
            threads.found()
            parts = (self.model, self.config, self.data)
            agree("model, partition and knobs", sha256("\n".join(part.model_dump_json() for part in parts).encode()).hexdigest()[:16])
            yield threads

    def planned(self, profile: Profile | None = None) -> RunConfig:
        """The config with a partition: its own, or one planned by rank 0, from what is known of this machine. Every rank calls it."""
        if self.config.partition is not None:
            return self.config
        knobs = self.config.communication or CommunicationKnobs()
        return self.config.model_copy(update={"partition": self.plan(profile), "communication": knobs})

    def plan(self, profile: Profile | None = None) -> Partition:
        """The partition that rank 0 plans for this machine. Every rank calls it."""
        import torch.distributed as dist

        from autotune.plan.profiled import plan_for
        from autotune.probe.ranks import cached_profile

        found: list[Partition | None] = [None]
        if self.first:
            communication = self.config.communication or CommunicationKnobs()
            known = profile or cached_profile(self.whole, self.ranks.world, communication.backend)
            model = self.model.model_copy(update={"data": self.data})
            found = [plan_for(model, self.ranks.world, known, self.ranks.local_world, self.config.threads).partition]
        dist.broadcast_object_list(found, 0)
        assert found[0] is not None
        return found[0]


def wanted_ranks(sockets: int | None, config_file: Path | None) -> int:
    """How many ranks a command asks for: those of the launcher, of the option, or of the config.

    Raises:
        InputError: two of them differ, or the option is below 1.
    """
    if sockets is not None and sockets < 1:
        raise InputError(f"sockets must be 1 or more, got {sockets} (--sockets); write --sockets 1")
    ranks = from_environment()
    tuned = None if config_file is None else load_tuned(config_file)
    asked = {
        "the launcher's ranks": ranks.world if ranks else None,
        "--sockets": sockets,
        f"sockets of {config_file}": tuned.sockets if tuned else None,
    }
    given = {name: count for name, count in asked.items() if count is not None}
    if len(set(given.values())) > 1:
        told = ", ".join(f"{name}: {count}" for name, count in given.items())
        raise InputError(f"the number of sockets must be one, got {told}; leave out --sockets, or tune for this number")
    return next(iter(given.values()), 1)


def start_ranks(sockets: int) -> None:
    """Start this command line again as every rank, wait for them, and end with their exit code; return where this is a rank.

    Raises:
        MachineError: fewer cores than ranks; a rank died or hung.
    """
    if from_environment() is not None:
        return
    core_sets(detect(), sockets, oversubscribe=OVERSUBSCRIBE in os.environ)
    from autotune.tune.agent import launch

    launch(sockets, sys.argv[1:])
    raise typer.Exit(0)


def open_cores() -> tuple[Ranks, Topology, Topology]:
    """Which rank this process is, its host, and its own cores there.

    Raises:
        MachineError: fewer cores than ranks on this host.
    """
    ranks = from_environment()
    assert ranks is not None
    if FOLDER in os.environ:
        beat(Path(os.environ[FOLDER]), ranks.rank)
    whole = detect()
    cpus = core_sets(whole, ranks.local_world, oversubscribe=OVERSUBSCRIBE in os.environ)[ranks.local_rank]
    return ranks, whole, topology_of(whole, cpus)


def rank_cpus(session: RankSession) -> tuple[tuple[int, ...], ...]:
    """The cores of every rank on this host."""
    return core_sets(session.whole, session.ranks.local_world, oversubscribe=OVERSUBSCRIBE in os.environ)


def start_rank(topology: Topology, huge_pages: bool = True) -> None:
    """Put the process into the environment of a team on every core of its rank, and on those cores."""
    ensure_environment(launch_of(RunConfig(threads=topology.physical_cores, huge_pages=huge_pages), topology))
    bind([cores[0] for cores in topology.core_cpus])


def open_rank(
    name: str,
    *,
    changes: Changes = UNCHANGED,
    threads: int | None = None,
    data: str | None = None,
    config_file: Path | None = None,
    force: bool = False,
) -> RankSession:
    """Everything that can be refused is refused here. Raises as `session.open_session` does."""
    ranks, whole, topology = open_cores()
    model = select_model(name, changes)
    spec = model.data if data is None else parse_data(data, model.data)
    tuned = None if config_file is None else load_tuned(config_file)
    if tuned is not None and threads is not None:
        raise InputError(f"a config decides the threads, got --threads {threads} beside --config; leave one of them out")
    if ranks.local_world == ranks.world:
        catalog.check_fits(model, available_memory_bytes(whole))
    here = {"ranks": ranks.world, "ranks_on_host": ranks.local_world}
    notes = () if tuned is None else check_tuned(tuned, model, whole, force, **here)
    config = _config(tuned, topology, threads)
    apart = config.communication.communication_cores if config.communication else 0
    if config.threads + apart > topology.physical_cores:
        rule = f"threads and communication_cores must fit the {topology.physical_cores} cores of a rank"
        raise InputError(f"{rule}, got {config.threads} and {apart} (config); lower one of them")
    start_rank(topology, huge_pages=config.huge_pages)
    return RankSession(ranks, spoken_name(name, model), model, config, whole, topology, spec, notes, tuned)


def _config(tuned: TunedConfig | None, topology: Topology, threads: int | None) -> RunConfig:
    """The knobs of every rank: those of the config, else only threads and pages; each rank then takes its shapes' defaults.

    Raises:
        InputError: threads out of range.
    """
    if tuned is not None:
        return tuned.config
    cores = topology.physical_cores
    if threads is not None and not 1 <= threads <= cores:
        raise InputError(f"threads must be 1 to {cores}, the cores of a rank, got {threads} (--threads); leave it out to use all")
    return RunConfig(threads=threads or cores, huge_pages=topology.huge_pages != "never", communication=CommunicationKnobs())


def describe(session: RankSession, config: RunConfig, interface: str) -> tuple[str, ...]:
    """What several sockets were, for the notes of a result."""
    assert config.partition is not None
    knobs = config.communication or CommunicationKnobs()
    overlap = "overlapped" if knobs.overlap else "not overlapped"
    network = f"{knobs.backend} on {interface}, all-to-all {knobs.all_to_all.replace('_', ' ')} in {knobs.wire_dtype}, {overlap}"
    shared = ("more ranks than cores: fit for tests only, the times say nothing",) if OVERSUBSCRIBE in os.environ else ()
    return (f"{session.ranks.world} ranks; tables {config.partition.summary}", network, *shared, *session.notes)

