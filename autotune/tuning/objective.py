"""The whole training iteration under two run configurations, step by step in turn on the same batches."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

from autotune.bench.noise import NoiseMonitor
from autotune.bench.rounds import EachRound, Round, Times, run_rounds, timed
from autotune.bench.samples import ENOUGH_SAMPLES, Samples, ratio, significant
from autotune.config.knobs import RunConfig
from autotune.config.tuned import Interval
from autotune.data.batches import Batch
from autotune.errors import InputError
from autotune.ranks.lockstep import Lockstep
from autotune.tuning.budget import Clock

# Steps run after one switch of the configuration, at most: more would let the machine drift between the two.
_MAX_STEPS_PER_TURN = 8
# A switch that takes this share of a step is paid for by several steps (huge pages: it copies the tables).
_CHEAP_SWITCH = 0.5
_LEAST_ROUNDS = 3
# A trial this much slower than the default after three rounds is given up.
_GIVE_UP = 0.95
# One this much faster needs no more rounds: the confirmation gives the figure.
_BEYOND_DOUBT = 1.1


@dataclass(frozen=True)
class Paired:
    """Times of two configurations; entry i of each is a step on the same batch."""

    base_s: tuple[float, ...]
    other_s: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def speedup(self) -> Interval:
        """base / other: above 1, `other` is faster."""
        return ratio(self.base_s, self.other_s)

    @property
    def significant(self) -> bool:
        """Whether the interval of the speedup lies above 1; if not, the base stands."""
        return significant(self.speedup)

    @cached_property
    def base(self) -> Interval:
        return Samples(self.base_s).to_interval()

    @cached_property
    def other(self) -> Interval:
        return Samples(self.other_s).to_interval()


@dataclass
class Bench:
    """A model and its data to time whole steps on; no batch is ever used for two rounds."""

    lockstep: Lockstep
    monitor: NoiseMonitor | None = None
    clock: Clock = time.monotonic
    seed: int = 0
    batches: Iterator[int] = field(default_factory=itertools.count)
    round_s: float = 0.0
    """Seconds of the last round, batches and switches included; 0 before the first."""

    def compare(
        self,
        base: RunConfig,
        other: RunConfig,
        *,
        budget_s: float,
        max_rounds: int | None = None,
        until: Callable[[Paired], bool] | None = None,
        on_round: Callable[[float], object] | None = None,
    ) -> Paired:
        """Interleave steps of two configurations; the switch between them is outside the timed part.

        Args:
            budget_s: Seconds, batches and switches included; a round that would pass it is not begun. The first always runs.
            max_rounds: Rounds at most; where a slow switch makes a round of several steps, as many steps, but not below three rounds.
            until: Asked after each round from the third on, since the steps of one turn share its luck; True ends the comparison.
            on_round: Called after each round with the seconds it took.
        """
        begin_s, steps = self.clock(), self._steps_per_turn(base, other)
        batches: list[Batch] = []

        def prepare() -> None:
            batches[:] = [self.lockstep.batch(next(self.batches)) for _ in range(steps)]

        def report(finished: Round) -> None:
            self.round_s = finished.length_s
            if on_round is not None:
                on_round(self.round_s)

        def ended(times_s: Times) -> bool:
            return until is not None and until(Paired(tuple(times_s["base"]), tuple(times_s["other"])))

        measured = run_rounds(
            {"base": lambda: self._turn(base, batches), "other": lambda: self._turn(other, batches)},
            max_rounds=None if max_rounds is None else max(_LEAST_ROUNDS if steps > 1 else 1, math.ceil(max_rounds / steps)),
            budget_s=budget_s - (self.clock() - begin_s),
            enough_rounds=_LEAST_ROUNDS,
            warmup=0,
            observers=(EachRound(report), *((self.monitor,) if self.monitor else ())),
            prepare=prepare,
            until=ended,
            seed=self.seed,
            clock=self.clock,
        )
        return Paired(measured.samples["base"].times_s, measured.samples["other"].times_s, measured.notes)

    def _step(self, batch: Batch) -> None:
        try:
            self.lockstep.step(batch)
        except IndexError as error:
            raise InputError(f"{error} ({self.lockstep.description}); correct the data or the model's tables") from error

    def _steps_per_turn(self, base: RunConfig, other: RunConfig) -> int:
        """One, unless switching is slow; also warms both configurations up."""
        batch = self.lockstep.batch(next(self.batches))
        switch_s = step_s = 0.0
        for config in (base, other, base):
            begin_s = self.clock()
            self.lockstep.configure(config)
            middle_s = self.clock()
            self._step(batch)
            switch_s, step_s = max(switch_s, middle_s - begin_s), self.clock() - middle_s
        if switch_s <= _CHEAP_SWITCH * step_s:
            return 1
        return min(_MAX_STEPS_PER_TURN, math.ceil(switch_s / max(step_s, 1e-9)))

    def _turn(self, config: RunConfig, batches: list[Batch]) -> list[float]:
        self.lockstep.configure(config)
        if len(batches) > 1:
            self._step(batches[-1])
        return [timed(partial(self._step, batch), self.clock)()[0] for batch in batches]


def decided(paired: Paired) -> bool:
    """Whether a trial can end: it is slower, so that every further round would be wasted, or faster beyond doubt."""
    if len(paired.base_s) < 3:
        return False
    speedup = paired.speedup
    if speedup.samples < ENOUGH_SAMPLES:
        return speedup.high < _GIVE_UP
    return speedup.high < 1.0 or speedup.low > _BEYOND_DOUBT
