"""The model in memory: configuration, buffers, faults."""

import gc
import weakref

import pytest
import torch

from autotune.catalog import load_model_by_name
from autotune.config.knobs import RunConfig
from autotune.data.batches import Batch, make_source
from autotune.dlrm.defaults import complete, default_config
from autotune.dlrm.model import DLRM
from autotune.dlrm.schedule import schedule
from autotune.errors import InputError
from autotune.ops.embedding_tables import EmbeddingUpdateKnobs
from autotune.ops.interaction import InteractionKnobs
from autotune.ops.layer import LayerKnobs
from autotune.ops.native import kernels

TINY = load_model_by_name("tiny")


def batch_of(dlrm: DLRM, number: int = 0) -> Batch:
    return make_source(dlrm.model).batch(number)


def test_every_pass_has_knobs_and_the_lowest_layer_no_backward_data() -> None:
    passes = set(default_config(TINY, threads=1).operators)
    assert "bottom_mlp.0.backward_weights" in passes
    assert "bottom_mlp.0.backward_data" not in passes
    assert "top_mlp.0.backward_data" in passes


def test_a_partial_config_is_completed_with_defaults() -> None:
    wanted = LayerKnobs(implementation="torch")
    config = complete(RunConfig(threads=1, operators={"top_mlp.0.forward": wanted}), schedule(TINY))
    assert config.operators["top_mlp.0.forward"] == wanted
    assert set(config.operators) == set(default_config(TINY, threads=1).operators)


@pytest.mark.parametrize(
    ("operators", "threads", "words"),
    [
        ({"top_mlp.9.forward": LayerKnobs()}, 1, "top_mlp.9.forward"),
        ({"top_mlp.0.forward": InteractionKnobs()}, 1, "kind layer, got interaction"),
        ({"top_mlp.0.forward": LayerKnobs(thread_columns=2)}, 3, "thread_columns must divide threads"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(operators, threads: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        DLRM(TINY, RunConfig(threads=threads, operators=operators))


def test_steady_state_keeps_its_buffers() -> None:
    dlrm = DLRM(TINY)
    dlrm.step(batch_of(dlrm, 0))
    places = {name: buffer.data_ptr() for name, buffer in dlrm.memory.buffers.items() if name not in ("input", "labels")}
    dlrm.step(batch_of(dlrm, 1))
    assert places.items() <= {name: buffer.data_ptr() for name, buffer in dlrm.memory.buffers.items()}.items()


def test_a_smaller_batch_trains_too() -> None:
    dlrm = DLRM(TINY)
    source = make_source(TINY, minibatch=7)
    assert dlrm.step(source.batch(0)) > 0
    assert dlrm.forward(source.batch(1)).shape == (7,)


@pytest.mark.parametrize("strategy", ["race_free_range", "bucketed"])
def test_an_index_outside_its_table_changes_nothing(strategy: str) -> None:
    config = default_config(TINY).model_copy(update={"operators": {"embedding_bag.update": EmbeddingUpdateKnobs(strategy=strategy)}})
    dlrm = DLRM(TINY, config)
    batch = batch_of(dlrm)
    before = {name: weight.clone() for name, weight in dlrm.state_dict().items()}
    batch.indices[-1] = TINY.tables[-1].rows
    with pytest.raises(IndexError, match=f"got {TINY.tables[-1].rows} \\(table {TINY.num_tables - 1}"):
        dlrm.step(batch)
    assert all(torch.equal(weight, before[name]) for name, weight in dlrm.state_dict().items())


def test_times_are_recorded_for_every_pass_and_taken_once() -> None:
    dlrm = DLRM(TINY)
    dlrm.step(batch_of(dlrm))
    times = dlrm.recorder.take()
    assert set(times) == {*dlrm.config.operators, "loss", "bottom_mlp.mask"}
    assert all(value > 0 for value in times.values())
    assert dlrm.recorder.take() == {}


def test_the_same_seed_gives_the_same_losses_and_another_does_not() -> None:
    losses = []
    for seed in (1, 1, 2):
        dlrm = DLRM(TINY, seed=seed)
        losses.append([dlrm.step(batch_of(dlrm, i)) for i in range(3)])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize("name", [name for name in kernels.targets() if name != "reference"])
def test_every_target_trains_alike(name: str) -> None:
    before = kernels.target()
    try:
        kernels.set_target(name)
        dlrm = DLRM(TINY, seed=1)
        losses = [dlrm.step(batch_of(dlrm, i)) for i in range(5)]
    finally:
        kernels.set_target(before)
    dlrm = DLRM(TINY, seed=1)
    assert losses == pytest.approx([dlrm.step(batch_of(dlrm, i)) for i in range(5)], rel=1e-5)


def test_a_model_that_is_let_go_gives_its_memory_back_at_once() -> None:
    """Tables of gigabytes must not wait for a garbage collection: the next model needs their room."""
    dlrm = DLRM(TINY)
    dlrm.step(batch_of(dlrm))
    dlrm.configure(dlrm.config.model_copy(update={"operators": {"top_mlp.0.forward": LayerKnobs(implementation="torch")}}))
    dlrm.step(batch_of(dlrm, 1))
    case = next(operator for operator in dlrm.operators(make_source(TINY)) if operator.runs_alone).case(0)
    case.run(dlrm.config.operators["bottom_mlp.0.forward"], 1)
    memory = weakref.ref(dlrm.memory)
    gc.collect()
    gc.disable()
    try:
        del dlrm, case
        assert memory() is None
    finally:
        gc.enable()
