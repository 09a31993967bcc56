"""From the options of a command to a model, data and configuration in a process that was started for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autotune import catalog
from autotune.cli.launch import ensure_environment
from autotune.cli.options import parse_data
from autotune.cli.output import say
from autotune.config.files import load_tuned
from autotune.config.knobs import RunConfig
from autotune.config.model import DataSpec, Model
from autotune.config.profile import Topology
from autotune.config.tuned import Launch, TunedConfig
from autotune.errors import InputError
from autotune.probe.topology import available_memory_bytes, fingerprint
from autotune.tune.compatibility import check
from autotune.tune.launch import launch_of, machine_here

if TYPE_CHECKING:
    from autotune.dlrm.data import BatchSource
    from autotune.dlrm.model import DLRM


@dataclass(frozen=True)
class Session:
    """All that is decided before torch is imported. The process already has the environment of `launch`."""

    model: Model
    topology: Topology
    config: RunConfig | None
    """From a tuned config; None stands for the default."""
    threads: int
    launch: Launch
    data: DataSpec
    notes: tuple[str, ...]

    def build(self, seed: int | None = None) -> tuple[DLRM, BatchSource]:
        """The model in memory and its batches."""
        from autotune.dlrm.data import make_source
        from autotune.dlrm.model import DLRM, default_config

        source = make_source(self.model, self.data, seed=seed)
        config = self.config or default_config(self.model, self.topology, self.threads)
        return DLRM(self.model, config, seed, machine=self.topology), source


def select_model(name: str, max_rows: int | None = None, minibatch: int | None = None) -> Model:
    """A model by name or file, scaled. Raises: InputError: unknown or invalid."""
    return catalog.load_model_by_name(name).scaled(max_rows, minibatch)


def start_default(threads: int | None = None) -> tuple[Topology, Launch]:
    """Put the process into the environment of a run without a config; variables that the user has set stay.

    Raises:
        MachineError: more threads than cores.
    """
    topology = machine_here()
    pages = topology.huge_pages != "never"
    launch = launch_of(RunConfig(threads=topology.physical_cores if threads is None else _positive(threads), huge_pages=pages), topology)
    ensure_environment(launch, keep=True)
    return topology, launch


def open_session(
    name: str,
    *,
    max_rows: int | None = None,
    minibatch: int | None = None,
    threads: int | None = None,
    data: str | None = None,
    config_file: Path | None = None,
    force: bool = False,
) -> Session:
    """Everything that can be refused is refused here, before anything is allocated.

    Raises:
        InputError: a name, file or value is wrong.
        FingerprintError: the config belongs to another model or to other hardware.
        MachineError: the model does not fit, or there are not enough cores.
    """
    model = select_model(name, max_rows, minibatch)
    spec = model.data if data is None else parse_data(data, model.data)
    if config_file is not None and threads is not None:
        raise InputError(f"a config decides the threads, got --threads {threads} beside --config; leave one of them out")
    tuned = None if config_file is None else load_tuned(config_file)
    topology = machine_here()
    catalog.check_fits(model, available_memory_bytes(topology))
    if tuned is None:
        topology, launch = start_default(threads)
        return Session(model, topology, None, launch.threads, launch, spec, ())
    launch, notes = start_tuned(tuned, model, topology, force)
    say(f"using {config_file}: {describe(tuned.config, launch)}")
    return Session(model, topology, tuned.config, tuned.config.threads, launch, spec, notes)


def start_tuned(tuned: TunedConfig, model: Model, topology: Topology, force: bool = False) -> tuple[Launch, tuple[str, ...]]:
    """Check that a config may be used here, and put the process into its environment; returns the launch and what differs.

    Raises:
        FingerprintError: it belongs to another model, to other hardware without `force`, or to another kernel target.
        MachineError: not enough cores.
    """
    # The kernel target is known only once torch is loaded, too late for the environment: it is compared after the restart.
    check(tuned, model, fingerprint(topology, tuned.fingerprint.target), force=force)
    allowed = set(topology.allowed_cpus)
    launch = tuned.launch
    if not allowed.issuperset(launch.cpus):
        if not force:
            outside = ", ".join(str(cpu) for cpu in launch.cpus if cpu not in allowed)
            raise InputError(
                f"a config's CPUs must be allowed here, got {outside} outside this process's cpuset (launch.cpus); "
                "widen the cpuset, tune again here, or bind to other cores with --force"
            )
        launch = launch_of(tuned.config, topology)
    ensure_environment(launch)
    from autotune.tune.launch import kernel_target

    return launch, tuple(check(tuned, model, fingerprint(topology, kernel_target()), force=force))


def describe(config: RunConfig, launch: Launch) -> str:
    """What a run uses, in one line."""
    cpus = " ".join(map(str, launch.cpus))
    pages = "on" if config.huge_pages else "off"
    return f"{config.threads} threads on CPUs {cpus}, huge pages {pages}, knobs for {len(config.operators)} operator passes"


def _positive(threads: int) -> int:
    if threads < 1:
        raise InputError(f"threads must be 1 or more, got {threads} (--threads); leave it out to use every allowed core")
    return threads
