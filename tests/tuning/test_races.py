from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.config.tuned import RaceResult
from autotune.errors import VerificationError
from autotune.ops.layer import LayerKnobs
from autotune.tuning.races import OperatorGroup, OperatorRace, group_operators, race_choices

Race = Callable[[OperatorGroup, float], RaceResult]
KEY = "bottom_mlp.0.forward"
GOOD = LayerKnobs(bk=32, thread_columns=1)


@pytest.fixture
def race(fake: SimpleNamespace, world: Any) -> Race:
    def run(group: OperatorGroup, budget_s: float) -> RaceResult:
        return OperatorRace(group, budget_s, fake.topology(), fake.default_for(), clock=world.clock).run()

    return run


@pytest.fixture
def group(fake: SimpleNamespace, world: Any) -> OperatorGroup:
    return OperatorGroup((fake.Operator(world, KEY), fake.Operator(world, "top_mlp.0.forward")), 1.0)


def test_the_fastest_wins_with_its_interval(race: Race, group: OperatorGroup) -> None:
    result = race(group, 5.0)
    assert result.finalists[0].knobs == GOOD
    assert result.finalists[0].speedup.low > 1.5
    assert race_choices(result)[0] == GOOD
    assert race_choices(result)[-1] == result.default
    assert result.keys == (KEY, "top_mlp.0.forward")
    assert result.candidates == result.offered == 8


def test_every_candidate_is_checked_before_it_is_timed(race: Race, group: OperatorGroup, world: Any) -> None:
    world.wrong = {GOOD}
    result = race(group, 5.0)
    assert {knobs for _, knobs in world.ran} <= {knobs for _, knobs in world.checked}
    assert GOOD not in {knobs for _, knobs in world.ran}
    assert result.rejected == ("bk 16 -> 32: error 2, allowed 1",)


def test_candidates_that_need_too_much_memory_are_left_out_and_told(race: Race, group: OperatorGroup, world: Any) -> None:
    world.too_large = {LayerKnobs(bk=bk, thread_columns=c) for bk in (48, 64) for c in (1, 2)}
    result = race(group, 5.0)
    assert not world.too_large & {knobs for _, knobs in (*world.checked, *world.ran)}
    assert (result.candidates, result.offered, result.finalists[0].knobs) == (4, 8, GOOD)
    assert any(note.startswith(f"{KEY}: 4 candidates left out") for note in result.notes)


def test_a_wrong_default_ends_it(race: Race, group: OperatorGroup, world: Any, fake: SimpleNamespace) -> None:
    world.wrong = {fake.default_for().operators[KEY]}
    with pytest.raises(VerificationError, match=r"default must match the reference.*bottom_mlp.0.forward"):
        race(group, 5.0)


@pytest.mark.parametrize("budget_s", [0.3, 1.0, 5.0])
def test_the_budget_is_kept(race: Race, group: OperatorGroup, world: Any, budget_s: float) -> None:
    begin_s = world.clock()
    race(group, budget_s)
    assert world.clock() - begin_s <= 1.1 * budget_s


def test_a_small_budget_tries_those_nearest_to_the_default(race: Race, group: OperatorGroup, world: Any, fake: SimpleNamespace) -> None:
    world.factors = {(KEY, knobs): 1.05 for knobs in fake.candidates[KEY][1:]}
    result = race(group, 0.2)
    tried = [knobs for _, knobs in world.checked]
    assert 1 < result.candidates < 8
    assert all((knobs.bk != 16) + (knobs.thread_columns != 1) <= 1 for knobs in tried)


def test_noise_alone_makes_no_finalist(race: Race, group: OperatorGroup, world: Any) -> None:
    world.factors, world.noise = {}, 0.05
    assert race(group, 5.0).finalists == ()


def test_what_is_claimed_rests_on_a_final_that_had_no_part_in_the_choice(race: Race, group: OperatorGroup, world: Any) -> None:
    result = race(group, 5.0)
    rounds = result.default_s.samples
    final = [knobs for _, knobs in world.ran[-2 * rounds :]]
    assert result.finalists[0].speedup.samples == rounds
    assert final.count(GOOD) == final.count(result.default) == rounds


@pytest.mark.parametrize("seed", range(6))
def test_the_luckiest_of_many_equals_is_no_finalist(race: Race, group: OperatorGroup, world: Any, seed: int) -> None:
    """The best of 60 that are all alike looks a few percent faster in the very samples that chose it."""
    world.factors, world.noise, world.random = {}, 0.12, random.Random(seed)
    group.operators[0].candidates = lambda *_: [LayerKnobs(bk=16, bn=bn) for bn in range(1, 61)]  # type: ignore[method-assign]
    assert race(group, 5.0).finalists == ()


def test_short_operators_are_sampled_in_bunches_and_reported_per_call(race: Race, group: OperatorGroup, world: Any) -> None:
    world.base_s = dict.fromkeys(world.base_s, 1e-5)
    result = race(group, 5.0)
    assert result.default_s.median == pytest.approx(1e-5, rel=0.02)


def test_a_result_survives_the_journal(race: Race, group: OperatorGroup) -> None:
    result = race(group, 5.0)
    assert RaceResult.model_validate(result.model_dump(mode="json")) == result


def test_equal_shapes_go_together_and_the_largest_gain_first(fake: SimpleNamespace, world: Any) -> None:
    operators = fake.Lockstep(world, fake.default_for()).operators()
    groups = group_operators(operators, fake.default_for(), {"interaction.forward": 0.5, KEY: 0.3, "top_mlp.0.forward": 0.3})
    assert [group.keys for group in groups] == [(KEY, "top_mlp.0.forward"), ("interaction.forward",)]
    assert groups[0].weight_s == pytest.approx(0.6)


def test_a_pass_without_knobs_is_left_out(fake: SimpleNamespace, world: Any) -> None:
    default = fake.default_for()
    del default.operators["interaction.forward"]
    operators = fake.Lockstep(world, default).operators()
    assert [group.keys[0] for group in group_operators(operators, default, {})] == [KEY]
