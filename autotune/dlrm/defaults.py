"""Configurations by default: of a model without tuning, of what a config leaves out, at random for calibration. No torch is needed."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

from autotune.config.knobs import Knobs, RunConfig
from autotune.config.model import Model
from autotune.config.profile import Topology
from autotune.config.tuned import TunedConfig, knobs_hash
from autotune.dlrm.schedule import schedule
from autotune.errors import InputError
from autotune.machine.topology import vector_lanes
from autotune.ops import libxsmm
from autotune.ops.schedule import Schedule


def default_config(model: Model, machine: Topology | None = None, threads: int | None = None) -> RunConfig:
    """The choice without tuning: a thread per allowed physical core, no more than a CPU quota grants, and the default of every pass.

    Args:
        model: gives the shapes, and how look-ups are distributed.
        machine: gives cores and pages; None takes the CPUs this process may use.
        threads: of the team, instead of one per core.

    Raises:
        InputError: threads below 1.
    """
    if threads is None:
        threads = machine.default_threads() if machine else len(os.sched_getaffinity(0))
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}; leave it out to use every allowed core")
    huge_pages = machine is None or machine.huge_pages != "never"
    return RunConfig(threads=threads, huge_pages=huge_pages, operators=default_knobs(schedule(model), threads, vector_lanes(machine)))


_DRAWN = 0.5
"""Share of the passes that take random knobs: what is learned must hold for defaults too."""


def random_config(model: Model, machine: Topology, threads: int, seed: str) -> RunConfig:
    """The default configuration with random candidates of a tuner in about half of the passes that are calibrated over knobs.

    Each knob is drawn from the values that the knobs drawn before it leave, so that a value is as likely as another however many
    candidates have it.
    """
    config, generator = default_config(model, machine, threads), random.Random(seed)
    operators = dict(config.operators)
    for key, operator in schedule(model).operators.items():
        candidates = [knobs for knobs in operator.calibrated_over(machine, threads) if knobs.valid_for(threads)]
        if not candidates or generator.random() >= _DRAWN:
            continue
        names = [name for name in type(candidates[0]).model_fields if name != "kind"]
        for name in generator.sample(names, len(names)):
            value = generator.choice(sorted({getattr(knobs, name) for knobs in candidates}))
            candidates = [knobs for knobs in candidates if getattr(knobs, name) == value]
        operators[key] = candidates[0]
    return config.model_copy(update={"operators": operators})


def default_knobs(steps: Schedule, threads: int, lanes: int) -> dict[str, Knobs]:
    """The default of every pass that has something to choose, where vectors hold so many floats."""
    knobs = {key: operator.default(threads, lanes) for key, operator in steps.operators.items()}
    return {key: value for key, value in knobs.items() if value.kind != "fixed"}


def complete(config: RunConfig | None, steps: Schedule, machine: Topology | None = None) -> RunConfig:
    """`config` with the default of every pass of a schedule that it does not name.

    Raises:
        InputError: a pass that the schedule has not, or knobs that its operator refuses.
        MachineError: a pass is to run on libxsmm, which is not here.
    """
    if config is None:
        return default_config(steps.model, machine)
    default = default_knobs(steps, config.threads, vector_lanes(machine))
    for key, knobs in config.operators.items():
        if key not in default:
            rule = f"an operator pass must be one of model {steps.model.name}"
            raise InputError(f"{rule}, got {key!r} (config: operators); remove it or tune this model anew")
        steps.operators[key].check_knobs(knobs, config.threads)
    libxsmm.require_for(config, "the config")
    return config.model_copy(update={"operators": {**default, **config.operators}})


def common_defaults(model: Model, config: RunConfig, machine: Topology) -> Mapping[str, Knobs]:
    """The default of every pass for which all ranks of a configuration have the same one.

    Args:
        model: With the global minibatch, and the data it was tuned for.
        machine: What it was tuned on.
    """
    ranks = range(config.partition.ranks if config.partition else 1)
    steps = (schedule(model, config.partition, rank, config.communication) for rank in ranks)
    first, *others = (default_knobs(each, config.threads, vector_lanes(machine)) for each in steps)
    return {key: knobs for key, knobs in first.items() if all(other.get(key) == knobs for other in others)}


def in_full(config: TunedConfig, model: Model) -> tuple[TunedConfig, tuple[str, ...]]:
    """A tuned config that names every pass, and a note where these are not the knobs that were tuned.

    Args:
        config: With or without its record; files of versions 1 and 2 name every pass and are taken as they are.
        model: The model it was tuned for, with its own data: defaults follow the look-ups.
    """
    if not config.knobs_hash:
        return config, ()
    operators = {**common_defaults(model, config.config, config.fingerprint.topology), **config.config.operators}
    full = config.model_copy(update={"config": config.config.model_copy(update={"operators": operators})})
    if knobs_hash(operators) == config.knobs_hash:
        return full, ()
    return full, (
        f"knobs differ from those that were tuned: the defaults changed since autotune {config.provenance.autotune_version}, or the config "
        "was edited; tune again for the best ones",
    )
