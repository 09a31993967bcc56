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
from autotune.cli.session import check_tuned, select_model
from autotune.config.files import load_tuned
from autotune.config.knobs import RunConfig
from autotune.config.model import DataSpec, Model
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.config.profile import Topology
from autotune.config.tuned import TunedConfig
from autotune.dlrm.ranks import FOLDER, Ranks, beat, from_environment
from autotune.errors import InputError
from autotune.plan.planner import plan
from autotune.probe.core_sets import OVERSUBSCRIBE, bind, core_sets, topology_of
from autotune.probe.topology import available_memory_bytes, detect
from autotune.tune.launch import launch_of


@dataclass(frozen=True)
class RankSession:
    """All that one rank has decided before torch is imported. The process has its environment and its cores."""

    ranks: Ranks
    model: Model
    """With the global minibatch."""
    partition: Partition
    communication: CommunicationKnobs
    config: RunConfig
    topology: Topology
    """The cores of this rank."""
    communication_cpus: tuple[int, ...]
    data: DataSpec
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of all that the ranks must agree on."""
        parts = (self.model, self.partition, self.communication, self.config, self.data)
        return sha256("\n".join(part.model_dump_json() for part in parts).encode()).hexdigest()[:16]

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Inside, torch.distributed works, and every rank is known to want the same."""
        from autotune.dlrm.ranks import agree, joined

        cpus = self.topology.allowed_cpus
        if self.communication_cpus:
            bind(self.communication_cpus)  # threads of the network inherit the cores of the thread that starts them
        with joined(self.ranks, self.communication.backend):
            bind(cpus)
            agree("model, partition and knobs", self.digest)
            yield


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


def open_rank(
    name: str,
    *,
    max_rows: int | None = None,
    minibatch: int | None = None,
    threads: int | None = None,
    data: str | None = None,
    config_file: Path | None = None,
    force: bool = False,
) -> RankSession:
    """Everything that can be refused is refused here. Raises as `session.open_session` does."""
    ranks = from_environment()
    assert ranks is not None
    if FOLDER in os.environ:
        beat(Path(os.environ[FOLDER]), ranks.rank)
    model = select_model(name, max_rows, minibatch)
    spec = model.data if data is None else parse_data(data, model.data)
    tuned = None if config_file is None else load_tuned(config_file)
    if tuned is not None and threads is not None:
        raise InputError(f"a config decides the threads, got --threads {threads} beside --config; leave one of them out")
    whole = detect()
    if ranks.local_world == ranks.world:
        catalog.check_fits(model, available_memory_bytes(whole))
    cpus = core_sets(whole, ranks.local_world, oversubscribe=OVERSUBSCRIBE in os.environ)[ranks.local_rank]
    notes = () if tuned is None else check_tuned(tuned, model, whole, force)
    communication = (tuned.communication if tuned else None) or CommunicationKnobs()
    apart = communication.communication_cores
    if apart >= len(cpus):
        raise InputError(f"communication_cores must leave a core to compute, got {apart} of {len(cpus)} (config: communication); lower it")
    compute, talk = cpus[: len(cpus) - apart], cpus[len(cpus) - apart :]
    topology = topology_of(whole, compute)
    config = _config(tuned, model, ranks, topology, threads)
    ensure_environment(launch_of(config, topology))
    bind(compute)
    partition = (tuned.partition if tuned else None) or plan(model, ranks.world).partition
    return RankSession(ranks, model, partition, communication, config, topology, talk, spec, notes)


def _config(tuned: TunedConfig | None, model: Model, ranks: Ranks, topology: Topology, threads: int | None) -> RunConfig:
    """The knobs of every rank: those of the config, else only threads and pages; each rank then takes its shapes' defaults."""
    if tuned is not None:
        return tuned.config
    threads = topology.physical_cores if threads is None else threads
    return RunConfig(threads=threads, huge_pages=topology.huge_pages != "never")


def describe(session: RankSession, interface: str) -> tuple[str, ...]:
    """What several sockets were, for the notes of a result."""
    kinds = [placement.kind for placement in session.partition.tables]
    counted = ", ".join(f"{kinds.count(kind)} {kind.replace('_', '-')}" for kind in dict.fromkeys(kinds))
    knobs = session.communication
    overlap = "overlapped" if knobs.overlap else "not overlapped"
    network = f"{knobs.backend} on {interface}, all-to-all {knobs.all_to_all.replace('_', ' ')} in {knobs.wire_dtype}, {overlap}"
    shared = ("more ranks than cores: fit for tests only, the times say nothing",) if OVERSUBSCRIBE in os.environ else ()
    return (f"{session.ranks.world} ranks; tables {counted}", network, *shared, *session.notes)

