from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autotune.config.tuned import Interval
from autotune.tuning.verify import holds, verify


def interval(low: float, median: float, high: float) -> Interval:
    return Interval(median=median, low=low, high=high, samples=12)


def claim(significant: bool, low: float = 1.2, median: float = 1.25) -> Any:
    return SimpleNamespace(significant=significant, speedup=interval(low, median, 1.3))


@pytest.mark.parametrize(
    ("claimed", "now", "expected"),
    [
        (claim(True), (1.18, 1.22, 1.26), True),
        (claim(True), (1.05, 1.09, 1.13), True),
        (claim(True), (1.01, 1.03, 1.05), False),
        (claim(True), (0.99, 1.0, 1.01), False),
        (claim(True), (0.90, 0.97, 1.15), False),
        (claim(True), (0.7, 0.8, 0.9), False),
        (claim(True, 1.005, 1.01), (0.98, 1.0, 1.02), True),
        (claim(True, 1.005, 1.01), (0.98, 0.985, 0.99), False),
        (claim(False), (0.97, 1.0, 1.03), True),
        (claim(False), (0.90, 0.94, 1.01), True),
        (claim(False), (0.96, 0.97, 0.99), True),
        (claim(False), (0.8, 0.9, 0.95), False),
    ],
)
def test_the_rule(claimed: Any, now: tuple[float, float, float], expected: bool) -> None:
    good, reason = holds(claimed, interval(*now))
    assert good is expected
    assert f"{now[1]:.3f}x" in reason


def test_it_measures_and_judges(fake: SimpleNamespace, world: Any) -> None:
    config = claim(True)
    config.config, config.provenance = fake.default_for(2), SimpleNamespace(seed=3)

    def verified() -> Any:
        lockstep = fake.Lockstep(world, fake.default_for())
        return verify(config, lockstep, fake.default_for(), budget_s=5.0, clock=world.clock, notes=("other torch",))

    world.threads = {4: 1.0, 2: 0.8}
    good = verified()
    assert good.holds
    assert good.speedup.median == pytest.approx(1.25, rel=0.02)
    assert good.notes[0] == "other torch"
    world.threads = {4: 1.0, 2: 1.0}
    gone = verified()
    assert not gone.holds
    assert gone.reason.startswith("the gain is gone")
    assert gone.reason.endswith("tune again")
