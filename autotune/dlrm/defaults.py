"""Whether what a tuned config leaves to the default is still what it was tuned with."""

from __future__ import annotations

from autotune.config.model import Model
from autotune.config.tuned import TunedConfig, knobs_hash
from autotune.dlrm.model import complete
from autotune.ops.all_to_all import sample_bounds


def changed_defaults(config: TunedConfig, model: Model) -> tuple[str, ...]:
    """A note where the knobs of all passes, once completed here, are not those that were tuned; empty where they are.

    Args:
        config: With or without its record; files of versions 1 and 2 name every pass and never differ.
        model: The model it was tuned for, with the global minibatch.
    """
    local = model.model_copy(update={"minibatch": sample_bounds(model.minibatch, config.sockets)[1]})
    if not config.knobs_hash or knobs_hash(complete(config.config, local).operators) == config.knobs_hash:
        return ()
    version = config.provenance.autotune_version
    return (
        f"knobs differ from those that were tuned: the defaults changed since autotune {version}, or the config was edited; tune again for "
        "the best ones",
    )
