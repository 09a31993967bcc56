"""A machine, a model and operators whose times are known, on a clock that only they advance."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from machines import fingerprint_of, topology_of

from autotune import catalog
from autotune.bench.samples import Samples
from autotune.config.knobs import Knobs, RunConfig
from autotune.config.model import Model
from autotune.config.profile import Topology
from autotune.config.tuned import MeasuredPass
from autotune.ops.base import Case, Check, Operator, Work
from autotune.ops.interaction import InteractionKnobs
from autotune.ops.layer import LayerKnobs
from autotune.perf.table import OTHER, OperatorTable
from autotune.tuning.budget import Deadline
from autotune.tuning.journal import Journal
from autotune.tuning.tuner import Tuner

CANDIDATES = {
    "bottom_mlp.0.forward": [LayerKnobs(bk=bk, thread_columns=c) for bk in (16, 32, 48, 64) for c in (1, 2)],
    "top_mlp.0.forward": [LayerKnobs(bk=bk, thread_columns=c) for bk in (16, 32, 48, 64) for c in (1, 2)],
    "interaction.forward": [InteractionKnobs(samples_per_task=n) for n in (8, 32, 128)],
}


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, time_s: float) -> None:
        self.now_s += time_s


@dataclass
class World:
    """Seconds of every choice, and what has been asked."""

    clock: FakeClock = field(default_factory=FakeClock)
    noise: float = 0.01
    random: random.Random = field(default_factory=lambda: random.Random(5))
    factors: dict[tuple[str, Knobs], float] = field(default_factory=dict)
    """Times of a choice over the base time of its pass; 1 where nothing is said."""
    base_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CANDIDATES, 0.004))
    threads: dict[int, float] = field(default_factory=lambda: {4: 1.0, 3: 1.2, 2: 1.6, 1: 3.0})
    batch_s: float = 0.001
    switch_s: float = 0.0001
    wrong: set[Knobs] = field(default_factory=set)
    too_large: set[Knobs] = field(default_factory=set)
    checked: list[tuple[str, Knobs]] = field(default_factory=list)
    ran: list[tuple[str, Knobs]] = field(default_factory=list)
    die_after_runs: int | None = None
    die_after_steps: int | None = None
    steps: int = 0

    def time_of(self, key: str, knobs: Knobs, threads: int) -> float:
        return self.base_s[key] * self.factors.get((key, knobs), 1.0) * self.threads[threads]

    def spend(self, time_s: float) -> None:
        self.clock.advance(time_s * self.random.uniform(1.0 - self.noise, 1.0 + self.noise))


class FakeCase(Case):
    def __init__(self, world: World, key: str) -> None:
        self.world, self.key = world, key

    def run(self, knobs: Any, threads: int) -> None:
        self.world.ran.append((self.key, knobs))
        if self.world.die_after_runs is not None and len(self.world.ran) > self.world.die_after_runs:
            raise KeyboardInterrupt
        self.world.spend(self.world.time_of(self.key, knobs, threads))

    def fits(self, knobs: Any) -> bool:
        return knobs not in self.world.too_large

    def check(self, knobs: Any, threads: int) -> Check:
        self.world.checked.append((self.key, knobs))
        self.world.spend(0.002)
        return Check(2.0 if knobs in self.world.wrong else 0.5, 1.0, "element 3")


class FakeOperator(Operator):
    def __init__(self, world: World, key: str) -> None:
        super().__init__(key)
        self.world = world

    @property
    def shape(self) -> Any:
        return None if self.key == "interaction.forward" else ("forward", 64)

    def run(self, memory: Any, knobs: Any, threads: int) -> None:
        raise AssertionError("only its case runs")

    def work(self) -> Work:
        return Work(1, 1, 1)

    def default(self, threads: int, lanes: int) -> Knobs:
        return CANDIDATES[self.key][0]

    def candidates(self, machine: Topology, threads: int) -> Sequence[Knobs]:
        return CANDIDATES[self.key]

    def case(self, seed: int, warm: bool = False) -> Case:
        self.world.spend(0.01)
        return FakeCase(self.world, self.key)


class FakeLockstep:
    description = "nothing"

    def __init__(self, world: World, config: RunConfig) -> None:
        self.world, self.config = world, config
        self.history: list[tuple[RunConfig, int]] = []

    def batch(self, i: int) -> Any:
        self.world.spend(self.world.batch_s)
        return SimpleNamespace(number=i)

    def configure(self, config: RunConfig) -> None:
        if config != self.config:
            self.world.spend(self.world.switch_s)
        self.config = config

    def step(self, batch: Any) -> float:
        self.world.steps += 1
        if self.world.die_after_steps is not None and self.world.steps > self.world.die_after_steps:
            raise KeyboardInterrupt
        self.history.append((self.config, batch.number))
        self.world.spend(sum(self.world.time_of(key, knobs, self.config.threads) for key, knobs in self.config.operators.items()))
        return 0.7

    def operators(self) -> list[Operator]:
        return [FakeOperator(self.world, key) for key in CANDIDATES]


def default_for(threads: int | None = None) -> RunConfig:
    return RunConfig(threads=threads or 4, huge_pages=False, operators={key: found[0] for key, found in CANDIDATES.items()})


def fake_measure(lockstep: FakeLockstep, *, rounds: int, budget_s: float | None = None, progress: Any = None) -> OperatorTable:
    world = lockstep.world
    begin_s = world.clock()
    for done in range(rounds):
        if budget_s is not None and done >= 3 and world.clock() - begin_s > budget_s:
            break
        lockstep.step(lockstep.batch(done))
    rows = []
    for key, knobs in lockstep.config.operators.items():
        time_s = Samples((world.time_of(key, knobs, lockstep.config.threads),)).to_interval()
        rows.append(MeasuredPass(operator=key, time_s=time_s, flops=1, bytes=1, fractions={"fma": 0.5}, binder="none", detail=""))
    none = Samples((1e-5,)).to_interval()
    rows.append(MeasuredPass(operator=OTHER, time_s=none, fractions={}, binder="none", detail=""))
    return OperatorTable("tiny", "nothing", 64, lockstep.config.threads, none, tuple(rows), ())


@pytest.fixture
def fake() -> SimpleNamespace:
    """The classes and functions of this file."""
    return SimpleNamespace(
        World=World,
        Lockstep=FakeLockstep,
        Operator=FakeOperator,
        Clock=FakeClock,
        candidates=CANDIDATES,
        default_for=default_for,
        measure=fake_measure,
        topology=topology_of,
        fingerprint=fingerprint_of,
    )


@pytest.fixture
def tiny() -> Model:
    return catalog.load_model_by_name("tiny")


@pytest.fixture
def world() -> World:
    """One good choice for the layers (1.6x), one for the interaction (1.3x), the rest 5 to 50 % slower than the default."""
    world = World()
    for key, candidates in CANDIDATES.items():
        for i, knobs in enumerate(candidates[1:]):
            world.factors[key, knobs] = 1.05 + 0.07 * i
        world.factors[key, candidates[2]] = 1 / 1.6 if "mlp" in key else 1 / 1.3
    return world


@pytest.fixture
def make_tuner(tiny: Model, world: World, tmp_path: Path) -> Callable[..., Tuner]:
    def make(budget_s: float = 60.0, name: str = "study", world: World = world, file: str = "out.yaml.journal", **changes: Any) -> Tuner:
        lockstep = FakeLockstep(world, default_for())
        parts: dict[str, Any] = {
            "model": tiny,
            "host": topology_of(),
            "cores": topology_of(),
            "lockstep": lockstep,
            "default_for": default_for,
            "measure": functools.partial(fake_measure, lockstep),
            "deadline": Deadline(budget_s, clock=world.clock),
            "journal": Journal(tmp_path / file, name),
        }
        return Tuner(**parts | changes)

    return make
