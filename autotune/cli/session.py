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
from autotune.config.model import UNCHANGED, Changes, DataSpec, Model
from autotune.config.profile import Topology
from autotune.config.tuned import Launch, TunedConfig
from autotune.errors import InputError
from autotune.probe.topology import available_memory_bytes, core_binding, detect, fingerprint
from autotune.report.text import run_config
from autotune.tune.compatibility import check
from autotune.tune.launch import launch_of

if TYPE_CHECKING:
    from autotune.data.batches import BatchSource
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
    tuned: TunedConfig | None = None
    force: bool = False

    def build(self, seed: int | None = None) -> tuple[DLRM, BatchSource]:
        """The model in memory and its batches."""
        from autotune.data.batches import make_source
        from autotune.dlrm.model import DLRM, default_config

        self._check_target()
        if self.tuned is not None:
            from autotune.dlrm.defaults import changed_defaults

            for note in changed_defaults(self.tuned, self.model):
                say(f"note: {note}")
        source = make_source(self.model, self.data, seed=seed)
        config = self.config or default_config(self.model.model_copy(update={"data": self.data}), self.topology, self.threads)
        return DLRM(self.model, config, seed, machine=self.topology), source

    def _check_target(self) -> None:
        """The kernel target is known only once torch is loaded, too late for the environment: so it is compared here."""
        from autotune.ops.native import kernels

        if self.tuned is not None:
            check(self.tuned, self.model, fingerprint(self.topology, kernels.target()), force=self.force)


def select_model(name: str, changes: Changes = UNCHANGED) -> Model:
    """A model by name or file, changed. Raises: InputError: unknown or invalid."""
    return catalog.load_model_by_name(name).changed(changes)


def spoken_name(given: str, model: Model) -> str:
    """How a later command finds `model` again: as it was given, with what was changed: ``mine.yaml[max_rows=1000]``."""
    if given in catalog.list_models():
        return model.name
    base = catalog.load_model_by_name(given).name
    return given + model.name.removeprefix(base)


def start_default(topology: Topology) -> Launch:
    """Put the process into the environment of a team on every allowed core; variables that the user has set stay.

    Smaller teams run in it as well: OpenMP fills the places from the first on.
    """
    launch = launch_of(RunConfig(threads=topology.physical_cores, huge_pages=topology.huge_pages != "never"), topology)
    ensure_environment(launch, keep=True)
    return launch


def open_session(
    name: str,
    *,
    changes: Changes = UNCHANGED,
    threads: int | None = None,
    data: str | None = None,
    config_file: Path | None = None,
    force: bool = False,
    all_cores: bool = False,
) -> Session:
    """Everything that can be refused is refused here, before anything is allocated.

    Args:
        all_cores: Start the process for every core also with a config, since something else is measured beside it.

    Raises:
        InputError: a name, file or value is wrong.
        FingerprintError: the config belongs to another model or to other hardware.
        MachineError: the model does not fit, or there are not enough cores.
    """
    model = select_model(name, changes)
    spec = model.data if data is None else parse_data(data, model.data)
    if config_file is not None and threads is not None:
        raise InputError(f"a config decides the threads, got --threads {threads} beside --config; leave one of them out")
    tuned = None if config_file is None else load_tuned(config_file)
    topology = detect()
    catalog.check_fits(model, available_memory_bytes(topology))
    if tuned is None:
        threads = topology.physical_cores if threads is None else threads
        core_binding(topology, threads)
        return Session(model, topology, None, threads, start_default(topology), spec, ())
    notes = check_tuned(tuned, model, topology, force)
    launch = start_default(topology) if all_cores else start_tuned(tuned, topology, force)
    say(f"using {config_file}: {describe(tuned.config, launch)}")
    return Session(model, topology, tuned.config, tuned.config.threads, launch, spec, notes, tuned, force)


def check_tuned(
    tuned: TunedConfig, model: Model, topology: Topology, force: bool = False, *, ranks: int = 1, ranks_on_host: int = 1
) -> tuple[str, ...]:
    """Whether a config may be used here, as far as that is known before torch is loaded; returns what differs.

    Raises:
        FingerprintError: it belongs to another model, or to other hardware without `force`.
        MachineError: not enough cores.
    """
    here = fingerprint(topology, tuned.fingerprint.target)
    return tuple(check(tuned, model, here, force=force, ranks=ranks, ranks_on_host=ranks_on_host))


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
    return launch


def describe(config: RunConfig, launch: Launch) -> str:
    """What a run uses, in one line."""
    cpus = " ".join(map(str, launch.cpus[: config.threads]))
    return f"{run_config(config)}, bound to CPU {cpus}"
