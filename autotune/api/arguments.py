"""Arguments of the library front: models, profiles and configs, as they are or by name."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

from autotune import catalog
from autotune.bench.progress import Progress
from autotune.config.files import load_tuned as load_config
from autotune.config.files import load_tuned_and_record
from autotune.config.model import Model
from autotune.config.profile import Profile
from autotune.config.tuned import TunedConfig
from autotune.ranks import interrupt

if TYPE_CHECKING:
    from autotune.ranks.session import Config, ModelName, Session

load_model = catalog.load_model_by_name
load_tuned = load_tuned_and_record


def model_of(model: ModelName) -> Model:
    """A model, of this name or file where it is not one itself."""
    return model if isinstance(model, Model) else load_model(model)


def profile_of(profile: Profile | str | Path) -> Profile:
    """A profile, of this shipped name or file where it is not one itself."""
    return profile if isinstance(profile, Profile) else catalog.load_profile_by_name(str(profile))


def tuned_of(config: TunedConfig | str | Path) -> TunedConfig:
    """A tuned config, of this file where it is not one itself; without its record."""
    return config if isinstance(config, TunedConfig) else load_config(config)


def recorded_of(config: TunedConfig | str | Path) -> TunedConfig:
    """The same with its record."""
    return config if isinstance(config, TunedConfig) else load_tuned(config)


def say_config(session: Session, config: Config, progress: Progress) -> None:
    """What a run on one socket uses, in one line."""
    from autotune.report.text import run_config

    if session.tuned is not None and session.ranks.world == 1 and not isinstance(config, TunedConfig):
        cpus = " ".join(map(str, session.launch.cpus[: session.config.threads]))
        progress.note(f"using {config}: {run_config(session.config)}, bound to CPU {cpus}")


def load_torch(progress: Progress) -> None:
    """The first import of torch, which takes seconds from a cold disk."""
    progress.phase("loading torch", None)
    collecting = gc.isenabled()
    gc.disable()  # what is loaded stays
    try:
        with interrupt.leaving():
            import torch  # noqa: F401
    finally:
        if collecting:
            gc.enable()
