"""From what a caller asks for to a model, a configuration and cores, in a process that was started for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from autotune.machine.topology import available_memory_bytes, core_binding, detect, fingerprint
from autotune.ranks.binding import NetworkThreads, bind, core_sets, shares_cores, topology_of
from autotune.ranks.environment import ALONE, Ranks, from_environment
from autotune.ranks.failures import check_threads
from autotune.ranks.group import agree, joined
from autotune.ranks.interfaces import interface
from autotune.ranks.launch import ensure_environment, launch_of, start_tuned

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
        return core_sets(self.whole, self.ranks.local_world, oversubscribe=shares_cores())


def own_cores() -> Cores:
    """Where this process stands.

    Raises:
        MachineError: fewer cores than ranks on this host.
    """
    ranks, whole = from_environment() or ALONE, detect()
    if ranks.world == 1:
        return Cores(ranks, whole, whole)
    cpus = core_sets(whole, ranks.local_world, oversubscribe=shares_cores())[ranks.local_rank]
    return Cores(ranks, whole, topology_of(whole, cpus))


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
    def joined(self) -> Iterator[NetworkThreads]:
        """Inside, the ranks are joined, and every one is known to want the same. Yields the threads of the network."""
        threads = NetworkThreads(self.topology.allowed_cpus)
        with joined(self.ranks, self.communication.backend):
            threads.found()
            parts = (self.model, self.config)
            agree("model, partition and knobs", sha256("\n".join(part.model_dump_json() for part in parts).encode()).hexdigest()[:16])
            yield threads

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
        return (f"{self.ranks.world} ranks; tables {config.partition.summary}", network, *shared, *self.notes)


def open_session(
    model: ModelName,
    *,
    changes: Changes = UNCHANGED,
    threads: int | None = None,
    data: DataSpec | None = None,
    config: Config = None,
    force: bool = False,
    all_cores: bool = False,
) -> Session:
    """Everything that can be refused is refused here, before anything is allocated.

    Args:
        model: a model, a shipped name or a file.
        data: None takes the model's own.
        config: None takes every default.
        force: use a config of other hardware all the same.
        all_cores: start the process for every core also with a config, since something else is measured beside it.

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
    if ranks.local_world == ranks.world:
        catalog.check_fits(workload, available_memory_bytes(cores.whole))
    notes = () if tuned is None else check_tuned(tuned, workload, cores, force)
    given = tuned.config if tuned is not None else config if isinstance(config, RunConfig) else None
    run_config = _default(cores, threads) if given is None else given
    apart = run_config.communication.communication_cores if run_config.communication else 0
    if ranks.world > 1 and run_config.threads + apart > cores.topology.physical_cores:
        rule = f"threads and communication_cores must fit the {cores.topology.physical_cores} cores of a rank"
        raise InputError(f"{rule}, got {run_config.threads} and {apart} (config); lower one of them")
    alone = ranks.world == 1 and tuned is not None and not all_cores
    launch = start_tuned(tuned, cores.topology, force) if alone and tuned else cores.start(run_config.huge_pages)
    if tuned is not None:
        from autotune.dlrm.defaults import in_full
        from autotune.ops.native import kernels

        # The kernel target is known only once torch is loaded, too late for the environment: so it is compared here.
        check_tuned(tuned, workload, cores, force, kernels.target())
        tuned, changed = in_full(tuned, workload)
        run_config, notes = tuned.config, notes + changed
    name = workload.name if isinstance(model, Model) else spoken_name(str(model), workload)
    workload = workload if data is None else workload.model_copy(update={"data": data})
    return Session(cores, name, workload, run_config, launch, notes, tuned)


def _default(cores: Cores, threads: int | None) -> RunConfig:
    """Threads and pages alone: each rank then takes its shapes' defaults.

    Raises:
        InputError, MachineError: threads out of range.
    """
    machine, several = cores.topology, cores.ranks.world > 1
    count = machine.physical_cores
    if several and threads is not None and not 1 <= threads <= count:
        raise InputError(f"threads must be 1 to {count}, the cores of a rank, got {threads} (--threads); leave it out to use all")
    threads = count if threads is None else threads
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
