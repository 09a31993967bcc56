"""What a change is predicted to do, pass by pass."""

from __future__ import annotations

import pytest
from configs import recorded_with
from machines import calibrated

from autotune.catalog import load_model_by_name
from autotune.config.knobs import RunConfig
from autotune.config.partition import Placement
from autotune.config.tuned import TunedConfig
from autotune.dlrm.defaults import default_config
from autotune.errors import InputError
from autotune.explaining.whatif import what_if
from autotune.report.json import to_json
from autotune.report.layout import to_text
from autotune.report.predict import what_if as render

MODEL = load_model_by_name("small")


@pytest.fixture(scope="module")
def config(tuned_config: TunedConfig) -> TunedConfig:
    """Of schema 2, for the made-up machine."""
    chosen: RunConfig = default_config(MODEL, threads=4)
    return recorded_with(tuned_config, workload=MODEL, profile=calibrated()).model_copy(update={"config": chosen})


def test_bandwidth_helps_what_memory_binds(config: TunedConfig) -> None:
    found = what_if(config, "bandwidth=2x")
    rows = {one.key: one for one in found.operators}
    assert rows["embedding_bag.forward"].speedup > 1.2
    assert rows["top_mlp.1.forward"].speedup < 1.1
    assert found.speedup > 1
    assert sum(one.before.time_s for one in found.operators) == pytest.approx(found.before.time_s)


def test_cores_help_layers_most(config: TunedConfig) -> None:
    rows = {one.key: one for one in what_if(config, "cores=8").operators}
    assert rows["top_mlp.1.forward"].speedup > 1.6
    assert rows["top_mlp.1.forward"].speedup > rows["embedding_bag.forward"].speedup


def test_nothing_changes_by_a_factor_of_one(config: TunedConfig) -> None:
    found = what_if(config, "bandwidth=1x, compute=1x,tables=1x,minibatch=1x,pooling=1x,dtype=fp32")
    assert found.after.time_s == pytest.approx(found.before.time_s)
    assert len(found.changes) == 6


def test_changes_add_up_and_go_their_way(config: TunedConfig) -> None:
    assert what_if(config, "minibatch=2x").speedup < 1
    assert what_if(config, "pooling=2x").speedup < 1
    assert what_if(config, "tables=.001x").speedup >= 1
    assert what_if(config, "dtype=bf16").speedup > 1
    assert what_if(config, "optimizer=adagrad").speedup < 1
    assert what_if(config, "bandwidth=2x,compute=2x").speedup > what_if(config, "bandwidth=2x").speedup


def test_it_renders(config: TunedConfig) -> None:
    found = what_if(config, "bandwidth=2x,cores=8")
    for width in (60, 80, 160):
        assert max(map(len, to_text(render(found, width), width).splitlines())) <= width
    assert '"binder_after"' in to_json(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("speed=2x", "a change must be one of bandwidth, compute, .*got 'speed=2x'"),
        ("bandwidth", "a change must be one of"),
        ("bandwidth=2", "bandwidth must be a factor above 0 and up to 1e.06, such as 2x, got '2'"),
        ("bandwidth=0x", "bandwidth must be a factor above 0"),
        ("cores=-1", "cores must be a count up to 4096 such as 56"),
        ("cores=5000", "cores must be a count up to 4096"),
        (f"tables={10**400}x", "tables must be a factor above 0 and up to"),
        ("dtype=int8", "dtype must be one of fp32, bf16, got 'int8'"),
        ("network=200Gb", "only be changed where the profile has one"),
    ],
)
def test_what_cannot_be_read_is_refused(config: TunedConfig, changes: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        what_if(config, changes)


def test_a_config_of_schema_1_is_told_what_is_missing(tuned_config: TunedConfig) -> None:
    with pytest.raises(InputError, match="what-if needs the model and the profile of the tuning run"):
        what_if(tuned_config, "bandwidth=2x")


def test_a_change_that_the_partition_does_not_allow_is_refused_as_running_it_would_be(four_sockets: TunedConfig) -> None:
    split = Placement(kind="column_wise", ranks=(0, 1, 2, 3), bounds=(0, 16, 32, 48, 64))
    assert four_sockets.config.partition is not None
    partition = four_sockets.config.partition.model_copy(update={"tables": (split, *four_sockets.config.partition.tables[1:])})
    changed = four_sockets.config.model_copy(update={"partition": partition, "operators": {}})
    config = four_sockets.model_copy(update={"config": changed})
    assert what_if(config, "minibatch=2x").after.time_s > 0
    with pytest.raises(InputError, match=r"Adagrad needs whole rows.*tables\[0\]"):
        what_if(config, "optimizer=adagrad")
