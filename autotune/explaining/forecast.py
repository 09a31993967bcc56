"""A config explained together with what is predicted of it: the timeline, and what changes would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autotune.config.model import Model
from autotune.config.profile import Profile
from autotune.config.tuned import TunedConfig
from autotune.errors import InputError
from autotune.explaining.diagnosis import Explanation, explain
from autotune.explaining.terms import ranks_on_host
from autotune.explaining.timeline import Timeline, predicted

if TYPE_CHECKING:
    from autotune.perf.predictor import Predictor

_COMMON = ("bandwidth=2x", "cores=2x", "dtype=bf16", "tables=2x")
_COMMON_OF_MANY = ("network=2x",)


def forecast(config: TunedConfig, changes: Sequence[str] = (), *, common: bool = False, timeline: bool = False) -> Explanation:
    """The explanation, with predictions where the config holds its model and profile; one of version 1 goes without.

    Args:
        changes: as `what_if` takes them, one entry a scenario.
        common: add changes that most people ask for.
        timeline: add the simulated iteration.

    Raises:
        InputError: a change that cannot be read, or asked of a config without a model or a profile.
    """
    if not (changes or common or timeline):
        return explain(config)
    from autotune.explaining.whatif import what_if  # brings torch, which reading a config does without
    from autotune.perf.predictor import Predictor

    predictor = Predictor(config.profile, ranks_on_host(config)) if config.profile is not None else None
    asked = [what_if(config, change, predictor) for change in changes]
    if config.workload is None or config.profile is None or predictor is None:
        lacking = "the model and the profile of the tuning run are not at hand; put its record beside the config, or tune again"
        return explain(config, asked, unpredicted=lacking)
    usual = _COMMON + _COMMON_OF_MANY * (config.sockets > 1)
    try:
        more = [what_if(config, change, predictor) for change in usual] if common else []
        simulated = _simulated(config, config.workload, config.profile, predictor) if timeline else None
    except InputError as error:
        # Nobody asked for these: what can be told of the config is told.
        return explain(config, asked, unpredicted=str(error))
    return explain(config, [*asked, *more], simulated)


def _simulated(config: TunedConfig, model: Model, profile: Profile, predictor: Predictor) -> Timeline | None:
    from autotune.perf.estimate import estimate

    on_host = ranks_on_host(config)
    return predicted(estimate(model, profile, config.config, sockets=config.sockets, ranks_on_host=on_host, predictor=predictor))
