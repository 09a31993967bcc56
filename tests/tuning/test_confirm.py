from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autotune.bench.noise import NoiseMonitor
from autotune.bench.samples import ENOUGH_SAMPLES
from autotune.config.knobs import RunConfig
from autotune.tuning.confirm import confirm
from autotune.tuning.objective import Bench, Paired, decided


@pytest.fixture
def two(fake: SimpleNamespace) -> tuple[RunConfig, RunConfig]:
    return fake.default_for(4), fake.default_for(2)


def confirmed(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig], budget_s: float = 20.0) -> Paired:
    return confirm(Bench(fake.Lockstep(world, two[0]), clock=world.clock), *two, budget_s=budget_s)


def test_a_gain_is_significant_and_ends_early(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig]) -> None:
    world.threads = {4: 1.0, 2: 0.8}
    begin_s = world.clock()
    found = confirmed(fake, world, two)
    assert found.significant
    assert found.speedup.low > 1.2
    assert found.base.median == pytest.approx(0.012, rel=0.02)
    assert world.clock() - begin_s < 5.0


def test_no_gain_uses_the_budget_and_says_so(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig]) -> None:
    world.threads, world.noise = {4: 1.0, 2: 1.0}, 0.1
    begin_s = world.clock()
    found = confirmed(fake, world, two)
    assert not found.significant
    assert 18.0 < world.clock() - begin_s <= 20.1


def test_a_loss_is_not_significant(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig]) -> None:
    world.threads = {4: 1.0, 2: 1.2}
    assert not confirmed(fake, world, two).significant


def test_the_same_configuration_has_speedup_one(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig]) -> None:
    found = confirmed(fake, world, (two[0], two[0]))
    assert (found.speedup.median, found.significant) == (1.0, False)


def test_a_budget_of_one_round_decides_nothing(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig]) -> None:
    world.threads = {4: 1.0, 2: 0.5}
    found = confirmed(fake, world, two, budget_s=0.001)
    assert found.speedup.samples == 1
    assert not found.significant


def test_both_train_on_the_same_batches_and_none_twice(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig]) -> None:
    lockstep = fake.Lockstep(world, two[0])
    Bench(lockstep, clock=world.clock).compare(*two, budget_s=100.0, max_rounds=10)
    timed = lockstep.history[3:]
    by_config = [[number for config, number in timed if config == which] for which in two]
    assert by_config[0] == by_config[1] == list(range(1, 11))
    assert {timed[i][0].threads for i in range(0, 20, 2)} == {4, 2}


def test_a_slow_switch_is_shared_by_several_steps(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig]) -> None:
    world.switch_s, world.threads = 0.1, {4: 1.0, 2: 1.0}
    bench = Bench(fake.Lockstep(world, two[0]), clock=world.clock)
    paired = bench.compare(*two, budget_s=100.0, max_rounds=10)
    assert len(paired.base_s) == 24
    assert max(paired.base_s + paired.other_s) < 0.02


class _Restless(NoiseMonitor):
    """Every third window is disturbed."""

    count = 0

    def after(self) -> str:
        self.count += 1
        return "" if self.count % 3 else "other programs took 1.00 CPUs"


def test_a_disturbed_round_is_repeated(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig]) -> None:
    bench = Bench(fake.Lockstep(world, two[0]), monitor=_Restless(), clock=world.clock)
    paired = bench.compare(*two, budget_s=100.0, max_rounds=10)
    assert len(paired.base_s) == 10
    assert paired.notes == ("4 of 14 rounds were disturbed (other programs took 1.00 CPUs): 4 measured again, 0 kept",)


def test_a_hopeless_trial_is_given_up(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig]) -> None:
    bench = Bench(fake.Lockstep(world, two[0]), clock=world.clock)
    assert len(bench.compare(*two, budget_s=100.0, max_rounds=10, until=decided).base_s) == 3


def test_one_lucky_turn_of_several_steps_decides_nothing(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig]) -> None:
    world.switch_s, world.threads = 0.1, {4: 1.0, 2: 0.5}
    bench = Bench(fake.Lockstep(world, two[0]), clock=world.clock)
    paired = bench.compare(*two, budget_s=100.0, until=lambda _: True)
    assert len(paired.base_s) == 3 * 8


def test_a_trial_that_is_faster_beyond_doubt_ends_early(fake: SimpleNamespace, world: Any, two: tuple[RunConfig, RunConfig]) -> None:
    bench = Bench(fake.Lockstep(world, two[0]), clock=world.clock)
    rounds = len(bench.compare(two[1], two[0], budget_s=100.0, max_rounds=50, until=decided).base_s)
    assert ENOUGH_SAMPLES <= rounds < 50
