"""What a config leaves to the default is compared with what it was tuned with."""

from __future__ import annotations

import pytest

from autotune import catalog
from autotune.config.model import Model
from autotune.config.partition import CommunicationKnobs, Partition, Placement
from autotune.config.profile import Topology
from autotune.config.tuned import TunedConfig, knobs_hash
from autotune.dlrm.defaults import common_defaults, default_config, default_knobs, in_full
from autotune.dlrm.schedule import schedule
from autotune.machine.topology import vector_lanes
from autotune.ops.interaction import InteractionKnobs

KEY = "interaction.forward"


@pytest.fixture
def tiny() -> Model:
    return catalog.load_model_by_name("tiny")


@pytest.fixture
def leaving_all(tuned_config: TunedConfig, tiny: Model) -> TunedConfig:
    """A config that leaves every pass to the default."""
    default = default_config(tiny, tuned_config.fingerprint.topology, threads=2)
    bare = default.model_copy(update={"operators": {}})
    return tuned_config.model_copy(update={"config": bare, "knobs_hash": knobs_hash(default.operators)})


def test_the_same_defaults_complete_the_config_without_a_note(leaving_all: TunedConfig, tiny: Model) -> None:
    full, notes = in_full(leaving_all, tiny)
    default = default_config(tiny, leaving_all.fingerprint.topology, threads=2)
    assert full.config == default.model_copy(update={"huge_pages": full.config.huge_pages})
    assert notes == ()


def test_other_knobs_than_those_tuned_are_noted(leaving_all: TunedConfig, tiny: Model) -> None:
    """As after a change of the defaults: the hash of the file is over knobs that nobody names any more."""
    edited = leaving_all.config.model_copy(update={"operators": {KEY: InteractionKnobs(samples_per_task=7)}})
    full, (note,) = in_full(leaving_all.model_copy(update={"config": edited}), tiny)
    assert full.config.operators[KEY] == InteractionKnobs(samples_per_task=7)
    assert "the defaults changed since autotune 0.1, or the config was edited" in note


def test_older_files_name_every_pass_and_are_taken_as_they_are(leaving_all: TunedConfig, tiny: Model) -> None:
    old = leaving_all.model_copy(update={"knobs_hash": ""})
    assert in_full(old, tiny) == (old, ())


def test_defaults_in_which_ranks_differ_are_left_out(tiny: Model, topology: Topology) -> None:
    tables = tuple(Placement(kind="table_wise", ranks=(min(t, 1),)) for t in range(tiny.num_tables))
    config = default_config(tiny, threads=2).model_copy(
        update={"partition": Partition(ranks=2, tables=tables), "communication": CommunicationKnobs()}
    )
    ranks = [default_knobs(schedule(tiny, config.partition, rank, config.communication), 2, vector_lanes(topology)) for rank in range(2)]
    common = common_defaults(tiny, config, topology)
    assert KEY in common
    assert all(ranks[0][key] == ranks[1][key] == knobs for key, knobs in common.items())
    assert {key for key in ranks[0] if ranks[0][key] != ranks[1].get(key)}.isdisjoint(common)
