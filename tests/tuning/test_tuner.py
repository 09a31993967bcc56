from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.errors import NoSpaceError
from autotune.ops.interaction import InteractionKnobs
from autotune.ops.layer import LayerKnobs
from autotune.tuning.tuner import Tuner

LAYER, INTERACTION = LayerKnobs(bk=32, thread_columns=1), InteractionKnobs(samples_per_task=128)
Make = Callable[..., Tuner]


def test_it_finds_the_fast_choices_and_confirms_them(make_tuner: Make) -> None:
    outcome = make_tuner().run()
    assert outcome.confirmation.significant
    assert outcome.chosen.threads == 4
    assert outcome.chosen.operators["bottom_mlp.0.forward"] == LAYER
    assert outcome.chosen.operators["top_mlp.0.forward"] == LAYER
    assert outcome.chosen.operators["interaction.forward"] == INTERACTION
    assert outcome.confirmation.speedup.median == pytest.approx(3 / (2 / 1.6 + 1 / 1.3), rel=0.02)
    gains = {gain.operator: gain for gain in outcome.gains}
    assert gains["top_mlp.0.forward"].knob == "bk 16 -> 32"
    assert gains["top_mlp.0.forward"].kept
    assert gains["interaction.forward"].speedup.median == pytest.approx(1.3, rel=0.03)


def test_equal_shapes_are_raced_once(make_tuner: Make, world: Any) -> None:
    make_tuner().run()
    assert {key for key, _ in world.ran} == {"bottom_mlp.0.forward", "interaction.forward"}


def test_threads_are_tuned_and_their_gain_is_told_apart(make_tuner: Make, world: Any) -> None:
    world.threads |= {2: 0.7}
    outcome = make_tuner().run()
    assert outcome.chosen.threads == 2
    whole = next(gain for gain in outcome.gains if gain.operator == "iteration")
    assert whole.knob == "threads 4 -> 2"
    assert whole.speedup.median == pytest.approx(1 / 0.7, rel=0.05)


def test_threads_whose_gain_is_noise_stay_the_default(make_tuner: Make, world: Any) -> None:
    world.noise, world.threads = 0.05, dict.fromkeys(world.threads, 1.0)
    outcome = make_tuner().run()
    assert outcome.chosen.threads == 4
    assert not any(gain.kept for gain in outcome.gains if gain.operator == "iteration")


@pytest.mark.parametrize("budget_s", [3.0, 10.0, 60.0, 600.0])
@pytest.mark.parametrize("base_s", [0.0005, 0.02])
def test_the_budget_is_kept_within_15_percent(make_tuner: Make, world: Any, budget_s: float, base_s: float) -> None:
    world.base_s = dict.fromkeys(world.base_s, base_s)
    begin_s = world.clock()
    outcome = make_tuner(budget_s).run()
    assert world.clock() - begin_s <= 1.15 * budget_s
    assert outcome.spent_s == pytest.approx(world.clock() - begin_s)


def test_no_gain_leaves_the_default(make_tuner: Make, world: Any) -> None:
    world.factors = {}
    tuner = make_tuner()
    outcome = tuner.run()
    assert not outcome.confirmation.significant
    assert outcome.chosen == tuner.default
    assert not any(gain.kept for gain in outcome.gains)


def test_an_apparent_gain_that_the_confirmation_denies_is_not_kept(make_tuner: Make, world: Any) -> None:
    """Faster alone, no faster in the whole: as with a cache that the race left warm."""
    tuner = make_tuner()
    step = tuner.lockstep.step

    def flat(batch: Any) -> float:
        world.spend(0.01)
        return 0.7

    tuner.lockstep.step = flat  # type: ignore[method-assign]
    outcome = tuner.run()
    assert step is not None
    assert outcome.chosen == tuner.default
    assert not any(gain.kept for gain in outcome.gains)


def test_a_wrong_candidate_is_named_and_never_timed(make_tuner: Make, world: Any) -> None:
    world.wrong = {LAYER}
    outcome = make_tuner().run()
    assert outcome.chosen.operators["top_mlp.0.forward"] != LAYER
    assert LAYER not in {knobs for _, knobs in world.ran}
    assert any("rejected bk 16 -> 32: error 2" in note for note in outcome.notes)


@pytest.mark.parametrize("runs", [5, 25, 45])
def test_a_tuning_run_killed_in_a_race_goes_on_after_the_finished_ones(make_tuner: Make, world: Any, runs: int) -> None:
    world.die_after_runs = runs
    tuner = make_tuner()
    with pytest.raises(KeyboardInterrupt):
        tuner.run()
    stored = [key for key in tuner.journal.study.user_attrs if key.startswith("race:")]
    tuner.journal.close()
    world.die_after_runs, world.ran = None, []
    outcome = make_tuner().run()
    assert outcome.chosen.operators["interaction.forward"] == INTERACTION
    assert not {key for key, _ in world.ran} & {key.removeprefix("race:") for key in stored}
    assert any(note.startswith("resumed") for note in outcome.notes)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), NoSpaceError("full"), KeyboardInterrupt()])
def test_a_trial_that_was_not_to_blame_for_its_end_is_tried_again(make_tuner: Make, error: BaseException) -> None:
    """Several ranks leave a mark while a trial runs: what holds it after the ranks have ended is what ended them."""
    marks: list[str] = []

    def begin(text: str) -> None:
        marks.append(text)
        raise error

    tuner = make_tuner(before_trial=begin, after_trial=marks.clear)
    with pytest.raises(type(error)):
        tuner.run()
    assert marks == []
    assert not tuner.journal.get("failed")


def test_a_tuning_run_killed_in_a_trial_keeps_the_trials(make_tuner: Make, world: Any) -> None:
    world.die_after_steps = 150
    tuner = make_tuner()
    with pytest.raises(KeyboardInterrupt):
        tuner.run()
    trials = len(tuner.journal.finished_trials())
    assert trials > 0
    assert not tuner.journal.get("iteration_done")
    tuner.journal.close()
    world.die_after_steps, world.ran = None, []
    resumed = make_tuner()
    assert len(resumed.journal.finished_trials()) == trials
    outcome = resumed.run()
    assert world.ran == []
    assert outcome.trials > trials


def test_earlier_runs_count_toward_the_budget(make_tuner: Make, world: Any) -> None:
    world.die_after_steps = 200
    tuner = make_tuner(60.0)
    with pytest.raises(KeyboardInterrupt):
        tuner.run()
    kept_s = tuner.journal.get("spent_s")
    tuner.journal.close()
    world.die_after_steps = None
    begin_s = world.clock()
    outcome = make_tuner(60.0).run()
    assert kept_s + world.clock() - begin_s <= 1.15 * 60.0
    assert outcome.spent_s == pytest.approx(kept_s + world.clock() - begin_s)


def test_a_spent_budget_goes_straight_to_the_confirmation(make_tuner: Make, world: Any) -> None:
    tuner = make_tuner(60.0)
    tuner._races()
    tuner.journal.put("spent_s", 60.0)
    tuner.journal.close()
    world.ran = []
    begin_s = world.clock()
    outcome = make_tuner(60.0).run()
    assert outcome.trials == 0
    assert world.ran == []
    assert outcome.confirmation.significant
    assert world.clock() - begin_s <= 0.15 * 60.0


def test_no_configuration_is_tried_twice(make_tuner: Make) -> None:
    tuner = make_tuner(300.0)
    tuner.run()
    configs = [trial.user_attrs["config"] for trial in tuner.journal.finished_trials()]
    assert len(configs) > 4
    assert len(configs) == len(set(configs))


def test_page_sizes_are_tried_where_the_kernel_offers_them(make_tuner: Make, fake: SimpleNamespace) -> None:
    tuner = make_tuner(host=fake.topology(huge_pages="madvise"))
    tuner.run()
    assert {'"huge_pages":true' in trial.user_attrs["config"] for trial in tuner.journal.finished_trials()} == {True, False}


def test_too_few_rounds_do_not_settle_the_threads(make_tuner: Make, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds may turn out longer than the last trial's, by which the time for them was judged: a resumed run has none to judge by."""
    world.threads |= {2: 0.7}
    tuner = make_tuner()
    space = tuner._space(*tuner._races())
    winner = space.config(2, False)
    compare = tuner.bench.compare
    monkeypatch.setattr(tuner.bench, "compare", lambda *configs, **limits: compare(*configs, **limits | {"max_rounds": 3}))
    settled, (gain,) = tuner._settle_whole(space, winner)
    assert gain.speedup.low > 1.0
    assert not gain.kept
    assert settled.threads == 4


def test_pages_are_not_searched_where_a_table_does_not_fit_twice(make_tuner: Make, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = make_tuner(host=fake.topology(huge_pages="madvise"))
    monkeypatch.setattr("autotune.tuning.tuner.available_memory_bytes", lambda topology: 1000)
    assert tuner._pages() == (False,)
    assert "needs its 62.5 KiB twice" in tuner.notes[-1]
