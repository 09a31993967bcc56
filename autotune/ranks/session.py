"""From what a caller asks for to a model, a configuration and cores, in a process that was started for them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from autotune import catalog
from autotune.config.files import load_tuned
from autotune.config.knobs import RunConfig
from autotune.config.model import UNCHANGED, Changes, DataSpec, Model
from autotune.config.partition import CommunicationKnobs
from autotune.config.profile import Topology
from autotune.config.tuned import Launch, TunedConfig
from autotune.errors import InputError
from autotune.machine.compatibility import check
from autotune.machine.limits import remarks, thread_notes
from autotune.machine.memory import available_memory_bytes
from autotune.machine.topology import core_binding, detect, fingerprint
from autotune.ranks.binding import NetworkThreads, RankCores, bind, core_sets, cores_by_rank, topology_of
from autotune.ranks.environment import ALONE, FOLDER, Ranks, from_environment
from autotune.ranks.failures import check_threads
from autotune.ranks.group import agree, gather, joined
from autotune.ranks.interfaces import interface
from autotune.ranks.launch import ensure_environment, launch_of, start_tuned
from autotune.ranks.launcher import given_by_launcher, meeting_place
from autotune.ranks.variables import shares_cores
from autotune.units import plural

if TYPE_CHECKING:
    from autotune.ranks.lockstep import Lockstep

ModelName = Model | str | Path
Config = TunedConfig | RunConfig | str | Path | None


@dataclass(frozen=True)
class Cores:
    """The place of this process: its rank, its host, its cores."""

    ranks: Ranks
    whole: Topology
    """This host, with every core that its ranks may use."""
    topology: Topology
    """The cores of this rank."""
    bound_of: int = 0
    """Of a rank that its launcher has bound: the cores that the host has for each of its ranks. 0 of others."""
    by_rank: list[RankCores] = field(default_factory=list, compare=False)
    """The cores of every rank, once they are joined."""

    def start(self, huge_pages: bool | None = None) -> Launch:
        """Put the process into the environment of a team on every core of its rank; one of several ranks is bound to them.

        Smaller teams run in it as well: OpenMP fills the places from the first on. Of one rank, variables that the user has set stay.

        Args:
            huge_pages: Of several ranks; None takes them where the machine has them, as one rank does.
        """
        several = self.ranks.world > 1
        pages = huge_pages is not False if several else self.topology.huge_pages != "never"
        launch = launch_of(RunConfig(threads=self.topology.physical_cores, huge_pages=pages), self.topology)
        ensure_environment(launch, keep=not several)
        check_threads(len(launch.cpus))
        if several:
            bind([cpus[0] for cpus in self.topology.core_cpus])
        return launch

    @property
    def rank_cpus(self) -> tuple[tuple[int, ...], ...]:
        """The cores of every rank on this host."""
        here = tuple(rank.cpus for rank in self.by_rank if rank.host == self.of_rank.host)
        return here or core_sets(self.whole, self.ranks.local_world, oversubscribe=shares_cores())

    @property
    def of_rank(self) -> RankCores:
        """What the other ranks are told of this one."""
        return RankCores.here(tuple(core[0] for core in self.topology.core_cpus), self.bound_of, self.ranks.launcher)


def own_cores() -> Cores:
    """Where this process stands. A rank that its launcher has bound keeps its cores; others part those of the host.

    Raises:
        MachineError: fewer cores than ranks on this host.
    """
    ranks, here = from_environment() or ALONE, detect()
    if ranks.world == 1:
        return Cores(ranks, here, here)
    given = None if FOLDER in os.environ else given_by_launcher(ranks, here.allowed_cpus)
    os.environ.update(meeting_place(ranks))
    sharing, place = (ranks.local_world, ranks.local_rank) if given is None else (given.sharing, given.place)
    own = topology_of(here, core_sets(here, sharing, oversubscribe=shares_cores())[place])
    if given is None:
        return Cores(ranks, here, own)
    host = detect(allowed=given.host)
    whole = here if ranks.local_world == 1 else host
    return Cores(ranks, whole, own, bound_of=max(1, host.physical_cores // ranks.local_world))


@dataclass(frozen=True)
class Session:
    """What one rank has decided before torch is imported. The process has its environment and its cores."""

    cores: Cores
    name: str
    """Of the model, as a later command finds it again."""
    model: Model
    """With the global minibatch and the data that was asked for."""
    config: RunConfig
    """Passes it does not name take their default. On several ranks without a partition where it has yet to be planned."""
    launch: Launch
    notes: tuple[str, ...]
    tuned: TunedConfig | None = None
    by_default: bool = False
    """Whether nobody has chosen the threads."""

    @property
    def ranks(self) -> Ranks:
        return self.cores.ranks

    @property
    def topology(self) -> Topology:
        """The cores of this rank."""
        return self.cores.topology

    @property
    def communication(self) -> CommunicationKnobs:
        return self.config.communication or CommunicationKnobs()

    @contextmanager
    def joined(self) -> Iterator[tuple[Session, NetworkThreads]]:
        """Inside, the ranks are joined, and every one is known to want the same.

        Yields the session with as many cores as the smallest rank has, and the threads of the network.
        """
        threads = NetworkThreads([core[0] for core in self.topology.core_cpus])
        with joined(self.ranks, self.communication.backend):
            threads.found()
            session = self._evened()
            parts = (session.model, session.config)
            agree("model, partition and knobs", sha256("\n".join(part.model_dump_json() for part in parts).encode()).hexdigest()[:16])
            self.cores.by_rank[:] = gather(session.cores.of_rank)
            yield session, threads

    def _evened(self) -> Session:
        """Ranks wait for the slowest in every step, so all work with the cores and the CPU quota of the smallest."""
        own = (self.topology.physical_cores, math.inf if self.topology.cpu_quota is None else self.topology.cpu_quota)
        every = gather(own)
        cores, quota = (min(values) for values in zip(*every, strict=True))
        if all(rank == (cores, quota) for rank in every):
            return self
        used = topology_of(self.topology, [core[0] for core in self.topology.core_cpus[:cores]])
        used = used.model_copy(update={"cpu_quota": None if math.isinf(quota) else quota})
        config, notes = self.config, self.notes
        if self.by_default:
            config = config.model_copy(update={"threads": used.default_threads()})
            counts = ", ".join(str(count) for count in sorted({count for count, _ in every}))
            notes += (f"every rank has {plural(config.threads, 'thread')}, as many as the smallest can use: ranks have {counts} cores",)
        return replace(self, cores=replace(self.cores, topology=used), config=config, notes=notes)

    def build(self, config: RunConfig, network: NetworkThreads, seed: int | None = None, keep_models: int = 1) -> Lockstep:
        """The model in memory. Every rank calls it; see `Lockstep`."""
        from autotune.data.batches import make_source
        from autotune.ranks.lockstep import Lockstep

        source = make_source(self.model, self.model.data, seed=seed)
        place = network.place
        return Lockstep(self.model, config, source, seed, machine=self.topology, place_network=place, keep_models=keep_models)

    def describe(self, config: RunConfig) -> tuple[str, ...]:
        """What the ranks were and what differs from the config's origin, for the notes of a result."""
        if config.partition is None:
            return self.notes
        knobs = config.communication or CommunicationKnobs()
        overlap = "overlapped" if knobs.overlap else "not overlapped"
        network = f"{knobs.backend} on {interface()}, all-to-all {knobs.all_to_all.replace('_', ' ')} in {knobs.wire_dtype}, {overlap}"
        shared = ("more ranks than cores: fit for tests only, the times say nothing",) if shares_cores() else ()
        told = (*cores_by_rank(self.cores.by_rank), *([self.ranks.note] if self.ranks.note else []))
        return (f"{self.ranks.world} ranks; tables {config.partition.summary}", network, *told, *shared, *self.notes)


def open_session(
    model: ModelName,
    *,
    changes: Changes = UNCHANGED,
    threads: int | None = None,
    data: DataSpec | None = None,
    config: Config = None,
    force: bool = False,
    all_cores: bool = False,
    raced: bool = False,
    written: bool = False,
    started: Callable[[], object] = lambda: None,
) -> Session:
    """Everything that can be refused is refused here, before anything is allocated.

    Args:
        model: a model, a shipped name or a file.
        data: None takes the model's own.
        config: None takes every default.
        force: use a config of other hardware all the same.
        all_cores: start the process for every core also with a config, since something else is measured beside it.
        raced: passes are to be timed alone, which takes memory too.
        written: a checkpoint is to be written, which takes memory too.
        started: called when all is checked and the process stands in its environment, before torch is loaded.

    Raises:
        InputError: a name, file or value is wrong.
        FingerprintError: the config belongs to another model or to other hardware.
        MachineError: the model does not fit, or there are not enough cores.
    """
    cores = own_cores()
    ranks = cores.ranks
    workload = (model if isinstance(model, Model) else catalog.load_model_by_name(model)).changed(changes)
    if config is not None and threads is not None:
        raise InputError(f"a config decides the threads, got --threads {threads} beside --config; leave one of them out")
    tuned = load_tuned(config) if isinstance(config, str | Path) else config if isinstance(config, TunedConfig) else None
    available_bytes = available_memory_bytes(cores.whole)
    catalog.check_fits(workload, available_bytes, raced=raced, written=written, ranks=ranks.world, on_host=ranks.local_world)
    notes = () if tuned is None else check_tuned(tuned, workload, cores, force)
    given = tuned.config if tuned is not None else config if isinstance(config, RunConfig) else None
    run_config = _default(cores, threads) if given is None else given
    notes += (*thread_notes(cores.topology, run_config.threads), *remarks(cores.topology))
    apart = run_config.communication.communication_cores if run_config.communication else 0
    if ranks.world > 1 and run_config.threads + apart > cores.topology.physical_cores:
        rule = f"threads and communication_cores must fit the {cores.topology.physical_cores} cores of a rank"
        raise InputError(f"{rule}, got {run_config.threads} and {apart} (config); lower one of them")
    alone = ranks.world == 1 and tuned is not None and not all_cores
    launch = start_tuned(tuned, cores.topology, force) if alone and tuned else cores.start(run_config.huge_pages)
    started()
    if tuned is not None:
        from autotune.dlrm.defaults import in_full
        from autotune.ops.native import kernels

        # The kernel target is known only once torch is loaded, too late for the environment: so it is compared here.
        check_tuned(tuned, workload, cores, force, kernels.target())
        tuned, changed = in_full(tuned, workload)
        run_config, notes = tuned.config, notes + changed
    name = workload.name if isinstance(model, Model) else spoken_name(str(model), workload)
    workload = workload if data is None else workload.model_copy(update={"data": data})
    return Session(cores, name, workload, run_config, launch, notes, tuned, by_default=given is None and threads is None)


def _default(cores: Cores, threads: int | None) -> RunConfig:
    """Threads and pages alone: each rank then takes its shapes' defaults.

    Raises:
        InputError, MachineError: threads out of range.
    """
    machine, several = cores.topology, cores.ranks.world > 1
    count = machine.physical_cores
    if several and threads is not None and not 1 <= threads <= count:
        raise InputError(f"threads must be 1 to {count}, the cores of a rank, got {threads} (--threads); leave it out to use all")
    threads = machine.default_threads() if threads is None else threads
    core_binding(machine, threads)
    return RunConfig(threads=threads, huge_pages=machine.huge_pages != "never", communication=CommunicationKnobs() if several else None)


def check_tuned(tuned: TunedConfig, model: Model, cores: Cores, force: bool = False, target: str | None = None) -> tuple[str, ...]:
    """Whether a config may be used here; returns what differs.

    Args:
        target: kernel target; None takes the config's, where it is not yet known.

    Raises:
        FingerprintError: it belongs to another model, or to other hardware without `force`.
        MachineError: not enough cores.
    """
    here = fingerprint(cores.whole, target or tuned.fingerprint.target)
    return tuple(check(tuned, model, here, force=force, ranks=cores.ranks.world, ranks_on_host=cores.ranks.local_world))


def spoken_name(given: str, model: Model) -> str:
    """How a later command finds `model` again: as it was given, with what was changed: ``mine.yaml[max_rows=1000]``."""
    if given in catalog.list_models():
        return model.name
    base = catalog.load_model_by_name(given).name
    return given + model.name.removeprefix(base)
