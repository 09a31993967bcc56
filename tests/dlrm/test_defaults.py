"""What a config leaves to the default is compared with what it was tuned with."""

from __future__ import annotations

import pytest

from autotune import catalog
from autotune.config.knobs import InteractionKnobs
from autotune.config.model import Model
from autotune.config.tuned import TunedConfig, knobs_hash
from autotune.dlrm import model as dlrm_model
from autotune.dlrm.defaults import changed_defaults
from autotune.dlrm.model import default_config


@pytest.fixture
def tiny() -> Model:
    return catalog.load_model_by_name("tiny")


@pytest.fixture
def leaving_all(tuned_config: TunedConfig, tiny: Model) -> TunedConfig:
    """A config that leaves every pass to the default."""
    default = default_config(tiny, threads=2)
    bare = default.model_copy(update={"operators": {}})
    return tuned_config.model_copy(update={"config": bare, "knobs_hash": knobs_hash(default.operators)})


def test_the_same_defaults_need_no_note(leaving_all: TunedConfig, tiny: Model) -> None:
    assert changed_defaults(leaving_all, tiny) == ()


def test_a_version_with_other_defaults_says_so(leaving_all: TunedConfig, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlrm_model, "InteractionKnobs", lambda: InteractionKnobs(samples_per_task=7))
    (note,) = changed_defaults(leaving_all, tiny)
    assert "the defaults changed since autotune 0.1, or the config was edited" in note


def test_older_files_name_every_pass_and_never_differ(leaving_all: TunedConfig, tiny: Model) -> None:
    assert changed_defaults(leaving_all.model_copy(update={"knobs_hash": ""}), tiny) == ()
