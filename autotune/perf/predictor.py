"""Times of the passes of a schedule from a profile: features weighed by the models that were fitted to its calibration runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.config.calibration import CalibrationRun
from autotune.config.knobs import Knobs, RunConfig
from autotune.config.model import Dtype
from autotune.config.profile import Profile, Topology
from autotune.config.tuned import Prediction
from autotune.dlrm.defaults import default_config
from autotune.dlrm.schedule import schedule
from autotune.ops.base import Operator, Residence
from autotune.ops.embedding_bag import UPDATE
from autotune.ops.overhead import KEY as OTHER
from autotune.ops.overhead import Overhead
from autotune.ops.schedule import Pass, Schedule
from autotune.perf.cache_model import residences
from autotune.perf.ceilings import per_rank
from autotune.perf.features import CACHE_SHARE, Machine, features_of
from autotune.perf.regression import FittedModel, Reference, fit, weighted
from autotune.perf.roofline import BOUND_FRACTION, Hardware, limits


@dataclass(frozen=True)
class PassTime:
    """One pass, predicted."""

    each: Pass
    prediction: Prediction
    limits_s: dict[str, float]
    """Least time by resource, seconds."""
    binder: str
    """The resource whose least time is nearest to the prediction; none where none is near."""

    @property
    def key(self) -> str:
        return self.each.key


@dataclass
class Predictor:
    """Predicts passes on one kind of machine.

    Args:
        profile: of the machine.
        ranks_on_host: among which its memory and caches are shared.
        calibrated: holds the calibration runs and the ceilings they were measured under; None takes `profile`.
    """

    profile: Profile
    ranks_on_host: int = 1
    calibrated: Profile | None = None
    _machines: dict[tuple[int, Dtype, bool], Machine] = field(default_factory=dict, repr=False)
    _models: dict[tuple[str, int], FittedModel] = field(default_factory=dict, repr=False)
    _references: dict[tuple[str, int], list[Reference]] | None = field(default=None, repr=False)
    _share: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._shared = shared(self.profile, self.ranks_on_host)

    def machine(self, threads: int, dtype: Dtype = "fp32", huge_pages: bool = True) -> Machine:
        """The profile as a rank of so many threads meets it."""
        key = (threads, dtype, huge_pages)
        if key not in self._machines:
            self._machines[key] = Machine(self._shared, threads, dtype, self.cache_share, huge_pages)
        return self._machines[key]

    def passes(self, steps: Schedule, config: RunConfig) -> list[PassTime]:
        """Every compute pass of one rank's step, predicted; last what lies between the passes.

        Args:
            config: threads, pages and knobs, with those of every pass (`dlrm.defaults.complete`).

        Raises:
            InputError: the profile lacks a ceiling that they need.
        """
        machine = self.machine(config.threads, steps.model.dtype, config.huge_pages)
        compute = [each for each in steps.passes if each.lane == "compute"]
        places = residences(compute, machine.own_bytes, machine.shared_bytes)
        between = Pass(OTHER, Overhead(OTHER, len(compute)))
        pairs = [*zip(compute, places, strict=True), (between, Residence(0.0, 0.0, 0.0))]
        return [self._predicted(each, place, config.operators.get(each.key), machine) for each, place in pairs]

    def added_s(self, operator: Operator, threads: int, dtype: Dtype = "fp32") -> float:
        """Seconds that an operator, under its default knobs, adds to a pass that runs anyway: all but the call and the start of the team.

        What it streams comes from memory, and no cache holds its rows when it begins.
        """
        machine, work = self.machine(threads, dtype), operator.work()
        each = Pass(operator.key, operator)
        features = features_of(each, Residence(work.stream_bytes, 0.0, 0.0), operator.default(threads), machine)
        added = {name: value for name, value in features.items() if name not in ("call", "fork")}
        return max(weighted(added, self.model(operator.kind, threads).weights), *self._limits(each, machine).values())

    def _predicted(self, each: Pass, place: Residence, knobs: Knobs | None, machine: Machine) -> PassTime:
        features = features_of(each, place, knobs, machine)
        fitted = self.model(each.operator.kind, machine.threads)
        least_s = self._limits(each, machine)
        top = max(least_s, key=lambda name: least_s[name])
        prediction = _at_least(fitted.predict(features, each.operator.size(), machine.threads), least_s[top])
        bound = least_s[top] >= BOUND_FRACTION * prediction.time_s
        return PassTime(each, prediction, least_s, top if bound else "none")

    def _limits(self, each: Pass, machine: Machine) -> dict[str, float]:
        # The profile is one rank's share already.
        hardware = Hardware.of(self._shared, machine.threads, machine.dtype)
        return limits(each.operator.work(), self._shared.ceilings, machine.threads, warm=True, hardware=hardware).by_resource

    def on(self, profile: Profile) -> Predictor:
        """The same fitted models under other ceilings: what is learned of a machine stays, what its resources take changes."""
        self.model(OTHER, 1)
        return Predictor(profile, self.ranks_on_host, self.calibrated or self.profile, {}, self._models, self._references, self.cache_share)

    @property
    def cache_share(self) -> float:
        """Part of the last-level cache under which the calibration runs are predicted best, each by models that have not seen it."""
        if self._share is None:
            of = self.calibrated or self.profile
            if id(of) not in _SHARE_OF:
                while len(_SHARE_OF) >= _KEPT:
                    _SHARE_OF.pop(next(iter(_SHARE_OF)))
                _SHARE_OF[id(of)] = (of, _best_share(of))
            self._share = _SHARE_OF[id(of)][1]
        return self._share

    def model(self, kind: str, threads: int) -> FittedModel:
        """The fit of the number of threads nearest to the one asked for, in proportion."""
        if self._references is None:
            self._references = references(self.calibrated or self.profile, self.cache_share)
        known = sorted({count for each, count in self._references if each == kind}, key=lambda count: abs(math.log(count / threads)))
        nearest = known[0] if known else threads
        if (kind, nearest) not in self._models:
            self._models[kind, nearest] = fit(kind, nearest, self._references.get((kind, nearest), []))
        return self._models[kind, nearest]


def _at_least(prediction: Prediction, bound_s: float) -> Prediction:
    """A prediction that no fit takes below what the machine can do."""
    return prediction.model_copy(update={name: max(bound_s, getattr(prediction, name)) for name in ("low_s", "time_s", "high_s")})


def shared(profile: Profile, ranks: int) -> Profile:
    """A rank's share of a machine: of its bandwidths, and of its last-level cache where there is less than one for each."""
    if ranks == 1:
        return profile
    topology = profile.fingerprint.topology
    instances = max(1, topology.l3_instances)
    parted = topology.model_copy(
        update={
            "physical_cores": max(1, topology.physical_cores // ranks),
            "l3_bytes": topology.l3_bytes if instances >= ranks else topology.l3_bytes * instances // ranks,
            "l3_instances": max(1, instances // ranks),
        }
    )
    fingerprint = profile.fingerprint.model_copy(update={"topology": parted})
    return profile.model_copy(update={"ceilings": per_rank(profile.ceilings, ranks), "fingerprint": fingerprint})


_SHARES = (0.1, 0.2, 0.35, 0.5, CACHE_SHARE)
_KEPT = 4
_SHARE_OF: dict[int, tuple[Profile, float]] = {}
"""The share of each of the last profiles, which it holds on to, so that no other one gets its address."""


def _best_share(profile: Profile) -> float:
    if not profile.calibration:
        return CACHE_SHARE
    most = max(run.threads for run in profile.calibration)
    runs = profile.model_copy(update={"calibration": tuple(run for run in profile.calibration if run.threads == most)})

    def spread(share: float) -> float:
        return sum(fit(kind, most, of).spread for (kind, _), of in references(runs, share).items())

    return min(_SHARES, key=spread)


def references(profile: Profile, share: float = CACHE_SHARE) -> dict[tuple[str, int], list[Reference]]:
    """The passes of the calibration runs by kind and threads, with the same features as those of any model.

    Args:
        share: part of the last-level cache that a step can count on.
    """
    by_kind: dict[tuple[str, int], list[Reference]] = {}
    machines: dict[tuple[int, bool], Machine] = {}
    disturbed = sum(run.disturbed for run in profile.calibration)
    for run in profile.calibration:
        if run.disturbed and 2 * disturbed < len(profile.calibration):
            continue
        key = (run.threads, run.huge_pages)
        machine = machines.setdefault(key, Machine(profile, run.threads, share=share, huge_pages=run.huge_pages))
        operators = config_of(run, profile.fingerprint.topology).operators
        passes = schedule(run.model).passes
        pairs = [*zip(passes, residences(passes, machine.own_bytes, machine.shared_bytes), strict=True)]
        pairs.append((Pass(OTHER, Overhead(OTHER, len(passes))), Residence(0.0, 0.0, 0.0)))
        for each, place in pairs:
            if run.passes_s.get(each.key, 0.0) > 0:
                features = features_of(each, place, operators.get(each.key), machine)
                reference = Reference(features, each.operator.size(), run.passes_s[each.key], run.threads)
                by_kind.setdefault((each.operator.kind, run.threads), []).append(reference)
    return by_kind


def config_of(run: CalibrationRun, topology: Topology) -> RunConfig:
    """The configuration under which a reference model ran."""
    config = default_config(run.model, topology, run.threads)
    operators = {**_with_strategy(config.operators, run.strategy), **run.knobs}
    return config.model_copy(update={"huge_pages": run.huge_pages, "operators": operators})


def _with_strategy(operators: Mapping[str, Knobs], strategy: str) -> dict[str, Knobs]:
    return {**operators, UPDATE: operators[UPDATE].model_copy(update={"strategy": strategy})} if strategy else dict(operators)
