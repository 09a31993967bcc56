from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from autotune.config.knobs import RunConfig
from autotune.config.partition import CommunicationKnobs
from autotune.ops.embedding_tables import EmbeddingForwardKnobs
from autotune.ops.interaction import InteractionKnobs
from autotune.ops.layer import LayerKnobs
from autotune.tuning.space import Group, Space, changes, huge_page_choices, thread_choices

DEFAULT = LayerKnobs(bk=16)
WIDE = LayerKnobs(bk=32, thread_columns=4)
GOOD = LayerKnobs(bk=48, thread_columns=1)


@pytest.mark.parametrize(
    ("cores", "quota", "expected"),
    [
        (1, None, (1,)),
        (2, None, (2, 1)),
        (4, None, (4, 3, 2, 1)),
        (6, None, (6, 5, 4, 2, 1)),
        (56, None, (56, 55, 32, 16, 8, 4, 2, 1)),
        (8, 3.5, (8, 7, 4, 3, 2, 1)),
        (2, 0.5, (2, 1)),
    ],
)
def test_threads_follow_the_cores(fake: SimpleNamespace, cores: int, quota: float | None, expected: tuple[int, ...]) -> None:
    assert thread_choices(fake.topology(cores, cpu_quota=quota), cores) == expected


@pytest.mark.parametrize(("offer", "count"), [("madvise", 2), ("always", 1), ("never", 1), ("unknown", 1)])
def test_page_sizes_are_a_choice_only_on_request(fake: SimpleNamespace, offer: str, count: int) -> None:
    assert len(huge_page_choices(fake.topology(huge_pages=offer), True)) == count


@pytest.mark.parametrize(
    ("default", "chosen", "words"),
    [
        (DEFAULT, DEFAULT, ""),
        (DEFAULT, WIDE, "bk 16 -> 32, thread_columns 1 -> 4"),
        (DEFAULT, LayerKnobs(implementation="torch"), "implementation blocked -> torch"),
        (DEFAULT, DEFAULT.model_copy(update={"implementation": "libxsmm", "bn": 3}), "implementation blocked -> libxsmm, bn 64 -> 3"),
        (EmbeddingForwardKnobs(), EmbeddingForwardKnobs(streaming_stores=True), "streaming_stores off -> on"),
        (InteractionKnobs(), InteractionKnobs(samples_per_task=8), "samples_per_task 32 -> 8"),
        (RunConfig(threads=4), RunConfig(threads=2, huge_pages=False), "threads 4 -> 2, huge_pages on -> off"),
    ],
)
def test_changes_are_named(default: Any, chosen: Any, words: str) -> None:
    named = changes(default, chosen) if isinstance(default, RunConfig) else default.changes(chosen)
    assert named == words


def space() -> Space:
    default = RunConfig(threads=4, operators={"a": DEFAULT, "b": DEFAULT, "c": InteractionKnobs()})
    groups = (Group(("a", "b"), (WIDE, GOOD, DEFAULT)), Group(("c",), (InteractionKnobs(samples_per_task=8),)))
    return Space(default, (4, 3, 2, 1), (True, False), groups, lambda threads: default.model_copy(update={"threads": threads}))


def test_no_draw_is_invalid_and_equal_shapes_share_a_choice() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    here = space()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(60):
        trial = study.ask()
        config = here.suggest(trial)
        study.tell(trial, 1.0)
        assert all(knobs.valid_for(config.threads) for knobs in config.operators.values())
        assert config.operators["a"] == config.operators["b"]
        assert config.operators["c"] == InteractionKnobs(samples_per_task=8)
        seen.add((config.threads, config.huge_pages, config.operators["a"]))
    assert (4, True, WIDE) in seen
    assert (3, True, GOOD) in seen


def test_planned_trials_are_the_winners_at_every_thread_count() -> None:
    here = space()
    study = optuna.create_study()
    drawn = []
    for params in here.planned():
        study.enqueue_trial(params)
        drawn.append(here.suggest(study.ask()))
    assert [(config.threads, config.huge_pages) for config in drawn] == [(4, True), (3, True), (2, True), (1, True), (4, False)]
    assert [config.operators["a"] for config in drawn] == [WIDE, GOOD, GOOD, GOOD, WIDE]


def test_an_operator_without_a_valid_finalist_takes_the_default_of_those_threads() -> None:
    other = LayerKnobs(bk=64)
    default = RunConfig(threads=4, operators={"a": WIDE})
    here = Space(default, (4, 3), (True,), (Group(("a",), (WIDE,)),), lambda threads: RunConfig(threads=threads, operators={"a": other}))
    assert here.config(3, True).operators["a"] == other


def test_choices_that_gained_alone_are_tried_together() -> None:
    default = RunConfig(threads=1, operators={"a": GOOD}, communication=CommunicationKnobs())
    communication = {"all_to_all": ("native", "fused_scatter", "scatter_list"), "overlap": (True, False), "wire_dtype": ("fp32", "bf16")}
    here = Space(default, (1,), (True,), (), lambda threads: default, communication)
    base, fused, listed, blocking, narrow = here.planned()
    tried = [(base, 0.98), (fused, 0.9), (listed, 0.85), (blocking, 0.99), (narrow, 0.7)]
    assert here.combined(tried) == base | {"all_to_all": "scatter_list", "wire_dtype": "bf16"}
    assert here.combined(tried[:4]) is None, "one choice alone was tried already"
    assert here.combined([(fused, 0.9), (narrow, 1.01)]) is None
    assert here.combined([(fused, 0.9), (narrow, 0.99)]) == base | {"all_to_all": "fused_scatter", "wire_dtype": "bf16"}
