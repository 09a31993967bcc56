"""Races per operator: candidates checked against the reference, then timed in interleaved rounds, the clearly slower ones dropped.

Passes of one shape are raced once. An operator may offer hundreds of candidates, more than any budget can time; so a race goes in two
heats. The first takes those that differ from the default in one knob, then in two and so on, as many as the budget holds; the second
those nearest to the first heat's best. The default runs in both. The best of tens look faster than they are, since luck helped to choose
them; so what is claimed comes from a final of the default and the leaders alone, on samples of its own.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from autotune.bench.noise import NoiseMonitor
from autotune.bench.race import Race, drop_clearly_worse, race
from autotune.bench.rounds import EachRound, Measurement, Observer, Turn, run_rounds, timed
from autotune.bench.samples import ratio, significant
from autotune.config.knobs import Knobs, RunConfig
from autotune.config.profile import Topology
from autotune.config.tuned import Finalist, RaceResult
from autotune.errors import VerificationError
from autotune.ops.base import Case, Operator
from autotune.tuning.budget import Clock
from autotune.tuning.space import MAX_FINALISTS
from autotune.units import plural

# A sample shorter than this would measure the clock and the call as much as the operator; short operators are called several times.
_SAMPLE_S = 5e-4
# Samples of a finalist: a 95 % interval needs 6, and past some tens it narrows slower than the machine drifts.
_FINAL_ROUNDS = 10
_MAX_ROUNDS = 40
# Less than one percent is no gain: of two finalists one in twenty is clear of 1 by chance.
_MARGIN = 0.01
# An untimed warm-up, and two rounds before anything can be dropped.
_RUNS_PER_CANDIDATE = 3
_CANDIDATE_SLOWER = 1.5
"""How much slower than the default a candidate is expected to be, on the average."""
_HEATS = (0.65, 1.0)
"""Share of what is left that each heat may take, the least a final needs being set aside."""


def race_choices(result: RaceResult) -> tuple[Knobs, ...]:
    """Knobs that the whole iteration may choose from: best first, the default last."""
    return (*(finalist.knobs for finalist in result.finalists[: MAX_FINALISTS - 1]), result.default)


@dataclass(frozen=True)
class OperatorGroup:
    """Operators of one shape."""

    operators: tuple[Operator, ...]
    weight_s: float
    """Seconds of an iteration that could be gained at most: time x distance to the nearest ceiling."""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(operator.key for operator in self.operators)


def group_operators(operators: Sequence[Operator], default: RunConfig, gain_s: dict[str, float]) -> list[OperatorGroup]:
    """Equal passes together, those with the largest expected gain first; passes with nothing to choose are left out.

    Args:
        gain_s: Seconds that could be gained, by pass.
    """
    groups: dict[Hashable, list[Operator]] = {}
    for operator in operators:
        if operator.key in default.operators:
            groups.setdefault(operator.key if operator.shape is None else (operator.kind, operator.shape), []).append(operator)
    weighed = [OperatorGroup(tuple(group), sum(gain_s.get(operator.key, 0.0) for operator in group)) for group in groups.values()]
    return sorted(weighed, key=lambda group: -group.weight_s)


@dataclass
class OperatorRace:
    """A race between the candidates of one group, at the threads of the default configuration."""

    group: OperatorGroup
    budget_s: float
    """Seconds, making the inputs and checking included. One round of the default always runs."""
    topology: Topology
    config: RunConfig
    """The default configuration."""
    monitor: NoiseMonitor | None = None
    clock: Clock = time.monotonic
    seed: int = 0
    on_time: Callable[[float, str], object] = lambda seconds, detail: None
    rejected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timed: set[Knobs] = field(default_factory=set)
    """Checked, and raced if they passed."""
    too_large: set[Knobs] = field(default_factory=set)
    """Left out, since they need more memory than a race should take."""

    def __post_init__(self) -> None:
        operator = self.group.operators[0]
        self.threads = self.config.threads
        self.default = self.config.operators[operator.key]
        self.begin_s = self.clock()
        offered = [knobs for knobs in operator.candidates(self.topology, self.threads) if knobs.valid_for(self.threads)]
        self.offered = list(dict.fromkeys([self.default, *offered]))
        random.Random(self.seed).shuffle(self.offered)

    @property
    def left_s(self) -> float:
        return self.budget_s - (self.clock() - self.begin_s)

    def run(self) -> RaceResult:
        """Race.

        Raises:
            VerificationError: the default itself does not match the reference.
        """
        operator, clock = self.group.operators[0], self.clock
        case = operator.case(self.seed)
        check_s = self._check_default(case)
        once_s = self._time_default(case)
        calls = max(1, min(64, math.ceil(_SAMPLE_S / max(once_s, 1e-7))))
        final_s = _FINAL_ROUNDS * MAX_FINALISTS * once_s * calls
        leaders: list[Knobs] = [self.default]
        measured: Measurement | None = None
        for share in _HEATS:
            heat_end_s = clock() + share * max(0.0, self.left_s - final_s)
            entrants = self._admit(case, leaders[0], check_s, once_s * calls, heat_end_s)
            if measured is not None and not entrants:
                break
            names = self._named([*leaders, *entrants])
            heat = self._heat(case, names, calls, heat_end_s - clock())
            measured, leaders = heat.measurement, [names[name] for name in heat.ranking[: MAX_FINALISTS - 1]]
            if len(self.timed) + len(self.too_large) >= len(self.offered):
                break
        assert measured is not None
        names = self._named(leaders)
        if len(names) > 1:
            measured = self._final(case, names, calls)
        return self._result(measured, names)

    def _named(self, knobs: Sequence[Knobs]) -> dict[str, Knobs]:
        """The default and `knobs`, by what they change."""
        return {self.default.changes(each) or "default": each for each in (self.default, *knobs)}

    def _check_default(self, case: Case) -> float:
        """Seconds of a check: of the second one, since the first works out the reference as well."""
        check = case.check(self.default, self.threads)
        if not check.passed:
            raise VerificationError(
                f"a default must match the reference, got an error of {check.worst:.3g} where {check.tolerance:.3g} is allowed "
                f"({self.group.keys[0]}, {check.where}); please report this with the output of autotune probe"
            )
        self.timed.add(self.default)
        begin_s = self.clock()
        case.check(self.default, self.threads)
        return self.clock() - begin_s

    def _time_default(self, case: Case) -> float:
        case.run(self.default, self.threads)
        begin_s = self.clock()
        case.run(self.default, self.threads)
        return self.clock() - begin_s

    def _admit(self, case: Case, near: Knobs, check_s: float, sample_s: float, end_s: float) -> list[Knobs]:
        """Candidates that pass their check, nearest to `near` first, as many as there is time to race until `end_s`."""
        admitted: list[Knobs] = []
        waiting = sorted((knobs for knobs in self.offered if knobs not in self.timed | self.too_large), key=near.distance)
        each_s = _RUNS_PER_CANDIDATE * _CANDIDATE_SLOWER * sample_s
        for knobs in waiting:
            begin_s = self.clock()
            if begin_s + check_s + (len(admitted) + 1) * each_s > end_s:
                break
            if not case.fits(knobs):
                self.too_large.add(knobs)
                continue
            check = case.check(knobs, self.threads)
            check_s = 0.5 * check_s + 0.5 * (self.clock() - begin_s)
            self.timed.add(knobs)
            if check.passed:
                admitted.append(knobs)
            else:
                named = self.default.changes(knobs)
                self.rejected.append(f"{named}: error {check.worst:.3g}, allowed {check.tolerance:.3g}")
            self.on_time(self.clock() - begin_s, f"{self.group.keys[0]} checking")
        return admitted

    def _turns(self, case: Case, names: dict[str, Knobs], calls: int) -> dict[str, Turn]:
        return {name: timed(partial(case.run, knobs, self.threads), self.clock, calls=calls) for name, knobs in names.items()}

    def _heat(self, case: Case, names: dict[str, Knobs], calls: int, budget_s: float) -> Race:
        heat = race(
            self._turns(case, names, calls),
            default="default",
            max_rounds=_MAX_ROUNDS,
            budget_s=budget_s,
            observers=self._observers(len(names)),
            eliminate=_drop_now_and_then,
            seed=self.seed,
            clock=self.clock,
        )
        self.notes += heat.notes
        return heat

    def _final(self, case: Case, names: dict[str, Knobs], calls: int) -> Measurement:
        """Nobody is dropped and nothing ends it early, so that chance has no say in which samples count."""
        final = run_rounds(
            self._turns(case, names, calls),
            max_rounds=_MAX_ROUNDS,
            budget_s=self.left_s,
            observers=self._observers(len(names)),
            seed=self.seed + 1,
            clock=self.clock,
        )
        self.notes += final.notes
        return final

    def _observers(self, candidates: int) -> list[Observer]:
        detail = f"{self.group.keys[0]}: {candidates} candidates"
        report = EachRound(lambda finished: self.on_time(finished.length_s, detail))
        return [report, *([self.monitor] if self.monitor else [])]

    def _result(self, measured: Measurement, names: dict[str, Knobs]) -> RaceResult:
        if self.too_large:
            rule = "a race keeps packed weights of two widths at once, and of more while all are small"
            self.notes.append(f"{self.group.keys[0]}: {plural(len(self.too_large), 'candidate')} left out, since {rule}")
        samples, finalists = measured.samples, []
        for name, knobs in names.items():
            speedup = ratio(samples["default"], samples[name])
            if name != "default" and significant(speedup, _MARGIN):
                finalists.append(Finalist(knobs=knobs, time_s=samples[name].to_interval(), speedup=speedup))
        finalists.sort(key=lambda finalist: -finalist.speedup.median)
        return RaceResult(
            keys=self.group.keys,
            threads=self.threads,
            default=self.default,
            default_s=samples["default"].to_interval(),
            finalists=tuple(finalists),
            candidates=len(self.timed) - len(self.rejected),
            offered=len(self.offered),
            rejected=tuple(self.rejected),
            notes=tuple(self.notes),
            spent_s=self.clock() - self.begin_s,
        )


def _drop_now_and_then(times_s: Mapping[str, Sequence[float]], best: str) -> list[str]:
    """`drop_clearly_worse` after rounds 2, 3, 4, 6, 8, 12, ...: an interval takes a millisecond, as long as a small operator."""
    rounds = len(times_s[best])
    return drop_clearly_worse(times_s, best) if rounds in (2, 3, 4, 6, 8, 12, 18, 27) else []
