"""A world of one: what drives several ranks drives one, and nothing of it changes what the model does."""

from __future__ import annotations

import pytest

from autotune import catalog
from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.data.batches import make_source
from autotune.dlrm.model import DLRM
from autotune.errors import InputError
from autotune.ranks import group
from autotune.ranks.environment import ALONE
from autotune.ranks.lockstep import Lockstep


@pytest.fixture
def model() -> Model:
    return catalog.load_model_by_name("tiny")


@pytest.fixture
def lockstep(model: Model) -> Lockstep:
    return Lockstep(model, RunConfig(threads=1), make_source(model), seed=3)


def test_one_rank_trains_as_the_model_does(model: Model, lockstep: Lockstep) -> None:
    dlrm, source = DLRM(model, RunConfig(threads=1), seed=3), make_source(model)
    assert [lockstep.step(lockstep.batch(i)) for i in range(3)] == [dlrm.step(source.batch(i)) for i in range(3)]
    assert (lockstep.rank, lockstep.ranks, lockstep.minibatch) == (0, 1, model.minibatch)


def test_what_rank_0_returns_is_the_result(lockstep: Lockstep) -> None:
    assert lockstep.drive(lambda driven: (driven is lockstep, driven.description)) == (True, lockstep.description)


def test_a_task_runs_here_with_its_arguments(lockstep: Lockstep) -> None:
    def task(driven: Lockstep, first: int, second: int) -> tuple[bool, int]:
        return driven is lockstep, first - second

    assert lockstep.everywhere(task, 5, second=3) == (True, 2)


def test_another_config_keeps_the_weights(lockstep: Lockstep) -> None:
    before = lockstep.dlrm
    lockstep.configure(RunConfig(threads=1, huge_pages=False))
    assert lockstep.dlrm is before
    assert lockstep.config.huge_pages is False


def test_an_error_of_rank_0_is_the_callers(lockstep: Lockstep) -> None:
    with pytest.raises(ZeroDivisionError):
        lockstep.drive(lambda _: 1 / 0)


def test_ranks_that_disagree_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "gather", lambda value: ["a", "b", "a"])
    with pytest.raises(InputError, match="same config, got b on rank 1 and a on the others"):
        group.agree("config", "a")


def test_collectives_of_a_process_that_is_alone() -> None:
    assert group.gather("own") == ["own"]
    assert group.broadcast("own") == "own"
    group.barrier()
    group.agree("config", "a")
    assert (group.rank(), group.size()) == (0, 1)
    with group.joined(ALONE):
        assert group.size() == 1
