"""What a tuned config leaves to the default: which knobs that is, and whether it is still what was tuned."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.config.knobs import Knobs, RunConfig
from autotune.config.model import Model
from autotune.config.tuned import TunedConfig, knobs_hash
from autotune.dlrm.model import default_knobs
from autotune.dlrm.schedule import schedule


def common_defaults(model: Model, config: RunConfig) -> Mapping[str, Knobs]:
    """The default of every pass for which all ranks of a configuration have the same one.

    Args:
        model: With the global minibatch, and the data it was tuned for.
    """
    ranks = range(config.partition.ranks if config.partition else 1)
    first, *others = (default_knobs(schedule(model, config.partition, rank, config.communication), config.threads) for rank in ranks)
    return {key: knobs for key, knobs in first.items() if all(other.get(key) == knobs for other in others)}


def in_full(config: TunedConfig, model: Model) -> tuple[TunedConfig, tuple[str, ...]]:
    """A tuned config that names every pass, and a note where these are not the knobs that were tuned.

    Args:
        config: With or without its record; files of versions 1 and 2 name every pass and are taken as they are.
        model: The model it was tuned for, with its own data: defaults follow the look-ups.
    """
    if not config.knobs_hash:
        return config, ()
    operators = {**common_defaults(model, config.config), **config.config.operators}
    full = config.model_copy(update={"config": config.config.model_copy(update={"operators": operators})})
    if knobs_hash(operators) == config.knobs_hash:
        return full, ()
    return full, (
        f"knobs differ from those that were tuned: the defaults changed since autotune {config.provenance.autotune_version}, or the config "
        "was edited; tune again for the best ones",
    )
