"""How far predictions are from measurements: on random models with random knobs drawn by a seed, and on models that are named.

None of them is a reference model, and nothing is fitted to them. Each is visited twice, in turns with others, and of every pass the faster
visit counts, as when the reference models were measured; how far the two lie apart is told beside the errors. Streams, random rows and
arithmetic are looked at before and after: a host may move a guest's cores, and then it is another machine than the one that was probed.
Some reference models are measured again beside them: what they take now over what they took when the machine was probed is the machine's
own drift, and is told apart from the error of the model.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.repetitions import TimedModel, fastest_passes, grouped, repetitions
from autotune.config.calibration import CalibrationRun
from autotune.config.model import Model
from autotune.config.profile import Profile, Topology
from autotune.config.required_memory import required_memory_bytes
from autotune.config.tuned import Prediction
from autotune.dlrm.defaults import default_config, random_config
from autotune.errors import InputError
from autotune.ops.base import operator_of
from autotune.perf.calibrated import config_of
from autotune.perf.estimate import estimate
from autotune.perf.predictor import Predictor
from autotune.perf.random_models import random_model
from autotune.probing.drift import Drift, as_probed

LEAST_SHARE = 0.01
"""Passes below this share of their iteration are left out: their time is that of a few calls, and matters to nobody."""
_BESIDE = 4
_TOGETHER = 5
_TRIES = 2
_TABLES_BYTES = 1.5e9
_MEMORY_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class PredictionError:
    """A prediction beside its measurement."""

    model: str
    threads: int
    measured_s: float
    predicted_s: float
    inside: bool
    """Whether the measurement lies in the predicted interval."""
    as_probed: bool = True
    """Whether streams, random rows and arithmetic were as the profile says before and after."""

    @property
    def error(self) -> float:
        """predicted / measured - 1."""
        return self.predicted_s / self.measured_s - 1.0


@dataclass(frozen=True, kw_only=True)
class PassError(PredictionError):
    """One pass of one model."""

    key: str
    kind: str
    extrapolated: bool
    apart: float = 0.0
    """The slowest visit over the fastest one, less 1: what the machine itself is unsure about."""


@dataclass(frozen=True, kw_only=True)
class IterationError(PredictionError):
    """One model's whole iteration."""

    random: bool
    """Drawn by the seed; else named."""
    drift: float
    """Reference models measured beside it, over what they took when the machine was probed."""
    disturbed: bool
    """Whether other programs ran beside it in spite of a repetition."""

    @property
    def error_without_drift(self) -> float:
        return self.predicted_s * self.drift / self.measured_s - 1.0


@dataclass(frozen=True)
class ErrorSummary:
    """Absolute relative errors of one kind of pass, or of iterations."""

    kind: str
    count: int
    median: float
    p90: float
    bias: float
    """Median of predicted / measured - 1."""
    inside: float
    """Share of the measurements inside their interval."""
    apart: float = 0.0
    """Median of how far two visits of one pass lie apart; 0 for iterations."""
    apart_p90: float = 0.0


@dataclass(frozen=True)
class Validation:
    """Predictions held against measurements."""

    profile: str
    created: str
    """When the machine was probed."""
    seed: int
    kinds: tuple[ErrorSummary, ...]
    """One for each kind of pass; last of all passes."""
    iterations: tuple[IterationError, ...]
    random: ErrorSummary | None
    """Iterations of the random models; None where the budget left none."""
    drift: float
    """Reference models over what they took when the machine was probed: the geometric mean beside all models."""
    left_out: int
    """Passes below 1 % of their iteration."""
    passes: tuple[PassError, ...]
    notes: tuple[str, ...] = ()


def validate(
    profile: Profile,
    topology: Topology,
    models: Sequence[Model] = (),
    *,
    seed: int = 0,
    budget_s: float = 120.0,
    available_bytes: int,
    progress: Progress = NO_PROGRESS,
) -> Validation:
    """Measure models and hold their predictions against them.

    Args:
        profile: With reference passes.
        models: Named ones; those that do not fit are left out, and said.
        seed: Of the random models; they go on until the budget ends.
        budget_s: Wall seconds. The named models are measured first, whatever it is.

    Raises:
        InputError: the profile holds no reference passes, or nothing could be measured.
    """
    if not profile.calibration:
        raise InputError(f"validating needs a profile with reference passes, got none ({profile.name}); run autotune probe --refresh")
    end_s = time.monotonic() + budget_s
    bench = _Bench(profile, topology)
    passes: list[PassError] = []
    iterations: list[IterationError] = []
    notes = list(profile.warnings)
    left_out = 0
    progress.phase("validating predictions", budget_s)
    fitting = [model for model in models if required_memory_bytes(model) <= 0.9 * available_bytes]
    notes += [f"{model.name} does not fit this machine's memory, and was left out" for model in models if model not in fitting]
    for group, random in _groups(fitting, seed, available_bytes):
        if random and time.monotonic() >= end_s:
            break
        for attempt in range(1 if random else _TRIES):  # a named model is wanted in the state of the profile
            begin_s, before = time.monotonic(), bench.drift
            measured = bench.visits(group, random)
            progress.advance(time.monotonic() - begin_s, group[-1].name)
            if bench.as_probed or attempt == _TRIES - 1 or time.monotonic() >= end_s:
                break
        for visits in measured:
            iteration, model_passes = bench.errors(visits, random, before)
            worth_s = LEAST_SHARE * iteration.measured_s
            passes += [each for each in model_passes if each.measured_s >= worth_s]
            left_out += sum(each.measured_s < worth_s for each in model_passes)
            iterations.append(iteration)
    if not passes:
        raise InputError(f"the budget must leave time for one model, got {budget_s:g} s and none measured; give more, for example 60s")
    counted = [each for each in passes if each.as_probed]
    if len(counted) < len(passes):
        other = _summary("", [each for each in passes if not each.as_probed])
        notes.append(
            f"{other.count} passes were measured while the machine was another than probed, and are left out of the table: median error "
            f"{other.median:.1%}, 90th percentile {other.p90:.1%}"
        )
    if not counted:
        notes.append("the machine never was as probed, so the table is of another state than the profile's: --refresh probes it first")
        counted = passes
    kinds = [_summary(kind, [each for each in counted if each.kind == kind]) for kind in dict.fromkeys(each.kind for each in counted)]
    drawn = [each for each in iterations if each.random and (each.as_probed or counted is passes)]
    return Validation(
        profile=profile.name,
        created=profile.created,
        seed=seed,
        kinds=(*kinds, _summary("all passes", counted)),
        iterations=tuple(iterations),
        random=_summary("iterations", drawn) if drawn else None,
        drift=statistics.geometric_mean([each.drift for each in iterations]),
        left_out=left_out,
        passes=tuple(passes),
        notes=tuple(notes),
    )


def _groups(models: Sequence[Model], seed: int, available_bytes: int) -> Iterator[tuple[list[Model], bool]]:
    """Models that are measured in turns: the named ones, then random ones for ever."""
    yield from ((group, False) for group in grouped(models, 0.8 * available_bytes))
    for first in itertools.count(step=_TOGETHER):
        limit_bytes = min(_TABLES_BYTES, _MEMORY_SHARE * available_bytes / _TOGETHER)
        yield [random_model(seed, number, limit_bytes) for number in range(first, first + _TOGETHER)], True


def _summary(kind: str, errors: Sequence[PredictionError]) -> ErrorSummary:
    values = np.array([each.error for each in errors])
    sizes, apart = np.abs(values), [each.apart for each in errors if isinstance(each, PassError)]
    return ErrorSummary(
        kind=kind,
        count=len(errors),
        median=float(np.median(sizes)),
        p90=float(np.quantile(sizes, 0.9)),
        bias=float(np.median(values)),
        inside=sum(each.inside for each in errors) / len(errors),
        apart=float(np.median(apart)) if apart else 0.0,
        apart_p90=float(np.quantile(apart, 0.9)) if apart else 0.0,
    )


class _Bench:
    """Measures one model after another, with reference models beside each."""

    def __init__(self, profile: Profile, topology: Topology) -> None:
        self.profile, self.topology = profile, topology
        self.predictor = Predictor(profile)
        self.monitor = NoiseMonitor(topology.allowed_cpus)
        most = max(run.threads for run in profile.calibration)
        usual: dict[str, CalibrationRun] = {}  # the first run of each model
        for run in profile.calibration:
            if run.threads == most and run.huge_pages:
                usual.setdefault(run.model.name, run)
        # Those with the least tables: quick to build, and they stay in memory.
        self._least = sorted(usual.values(), key=lambda run: run.model.table_bytes)[:_BESIDE]
        self._beside = [TimedModel(run.model, [config_of(run, topology)], topology) for run in self._least]
        self._machine_drift = Drift(profile, most)
        self.as_probed = True
        """Whether the machine was, before and after the last models, as when it was probed."""
        self.drift = self._drift_now()
        """Reference models after the last models, over what they took when the machine was probed."""

    def visits(self, models: Sequence[Model], random: bool) -> list[list[CalibrationRun]]:
        """Of every model with all cores, a run a visit.

        Args:
            random: The models are drawn at random: their knobs are too, and the first one runs with half of the cores besides.
        """
        cores, timed_models = self.topology.physical_cores, []
        for i, model in enumerate(models):
            counts = (cores, cores // 2) if random and i == 0 and cores > 1 else (cores,)
            configs = [
                random_config(model, self.topology, count, f"{model.name} on {count}")
                if random
                else default_config(model, self.topology, count)
                for count in counts
            ]
            timed_models.append(TimedModel(model, configs, self.topology))
        before = self._machine_drift.look()
        runs = list(repetitions(timed_models, self.monitor))
        self.as_probed = as_probed(before, self._machine_drift.look())
        del timed_models
        self.drift = self._drift_now()
        return runs

    def _drift_now(self) -> float:
        runs = [fastest_passes(visits) for visits in repetitions(self._beside, self.monitor)]
        ratios = [now.iteration_s / then.iteration_s for now, then in zip(runs, self._least, strict=True)]
        return statistics.geometric_mean(ratios) if ratios else 1.0

    def errors(self, visits: Sequence[CalibrationRun], random: bool, before: float) -> tuple[IterationError, list[PassError]]:
        """The iteration of one model, whose drift is the mean of that before and after it, and every pass."""
        run = fastest_passes(visits)
        predicted = estimate(run.model, self.profile, config_of(run, self.topology), predictor=self.predictor)

        def beside(measured_s: float, prediction: Prediction) -> dict[str, Any]:
            inside = prediction.low_s <= measured_s <= prediction.high_s
            place = {"model": run.model.name, "threads": run.threads, "as_probed": self.as_probed}
            return place | {"measured_s": measured_s, "predicted_s": prediction.time_s, "inside": inside}

        drift = math.sqrt(before * self.drift)
        iteration = IterationError(**beside(run.iteration_s, predicted.iteration), random=random, drift=drift, disturbed=run.disturbed)
        passes = []
        for each in predicted.operators:
            measured_s = run.passes_s.get(each.key, 0.0)
            if measured_s > 0:
                times_s, operator = [visit.passes_s[each.key] for visit in visits], operator_of(each.key)
                passes.append(
                    PassError(
                        **beside(measured_s, each.prediction),
                        key=each.key,
                        kind=operator.kind if operator else each.key,
                        extrapolated=bool(each.prediction.extrapolated),
                        apart=max(times_s) / min(times_s) - 1.0 if min(times_s) > 0 else 0.0,
                    )
                )
        return iteration, passes
