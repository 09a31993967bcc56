"""Times of the passes of a step from a profile: terms weighed by the laws of its reference models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autotune.config.calibration import CalibrationRun
from autotune.config.knobs import EmbeddingUpdateKnobs, Knobs, RunConfig
from autotune.config.profile import Profile, Topology
from autotune.config.tuned import Prediction
from autotune.dlrm.model import default_config
from autotune.ops import embedding_bag
from autotune.perf.features import CACHE_SHARE, Machine, terms_of
from autotune.perf.regression import Law, Reference, learn
from autotune.perf.roofline import BOUND_FRACTION, Hardware, limits
from autotune.perf.share import per_rank
from autotune.perf.steps import Kind, PassShape, Residence, residences, step_passes, whole_tables


@dataclass(frozen=True)
class PassTime:
    """One pass, predicted."""

    shape: PassShape
    prediction: Prediction
    limits_s: dict[str, float]
    binder: str


@dataclass
class Predictor:
    """Predicts passes on one kind of machine.

    Args:
        profile: of the machine.
        ranks_on_host: among which its memory and caches are shared.
        calibrated: holds the reference passes and the ceilings they were measured under; None takes `profile`.
    """

    profile: Profile
    ranks_on_host: int = 1
    calibrated: Profile | None = None
    _machines: dict[tuple[int, str], Machine] = field(default_factory=dict, repr=False)
    _laws: dict[tuple[Kind, int], Law] = field(default_factory=dict, repr=False)
    _references: dict[tuple[Kind, int], list[Reference]] | None = field(default=None, repr=False)
    _share: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._shared = shared(self.profile, self.ranks_on_host)

    def machine(self, threads: int, dtype: str = "fp32") -> Machine:
        """The profile as a rank of so many threads meets it."""
        key = (threads, dtype)
        if key not in self._machines:
            self._machines[key] = Machine(self._shared, threads, "bf16" if dtype == "bf16" else "fp32", self.cache_share)
        return self._machines[key]

    def passes(self, shapes: Sequence[PassShape], config: RunConfig, dtype: str = "fp32") -> list[PassTime]:
        """The passes of one rank's step, predicted.

        Args:
            config: Threads, pages and knobs; a pass that it does not name takes its default.

        Raises:
            InputError: the profile lacks a ceiling that they need.
        """
        machine = self.machine(config.threads, dtype)
        places = residences(shapes, machine.own_bytes, machine.shared_bytes)
        return [self._one(shape, place, config, machine) for shape, place in zip(shapes, places, strict=True)]

    def _one(self, shape: PassShape, place: Residence, config: RunConfig, machine: Machine) -> PassTime:
        terms = terms_of(shape, place, config.operators.get(shape.key), machine, config.huge_pages)
        least_s = self._limits(shape, machine)
        top = max(least_s, key=lambda name: least_s[name])
        prediction = _at_least(self.law(shape.kind, config.threads).predict(terms, shape.size, config.threads), least_s[top])
        bound = least_s[top] >= BOUND_FRACTION * prediction.time_s
        return PassTime(shape, prediction, least_s, top if bound else "none")

    def _limits(self, shape: PassShape, machine: Machine) -> dict[str, float]:
        # The profile's share of one rank already.
        hardware = Hardware.of(self._shared, machine.threads, machine.dtype)
        return limits(shape.work, self._shared.ceilings, machine.threads, warm=True, hardware=hardware).by_resource

    def on(self, profile: Profile) -> Predictor:
        """The same laws under other ceilings: what is learned of a machine stays, what its resources take changes."""
        self.law("other", 1)
        return Predictor(profile, self.ranks_on_host, self.calibrated or self.profile, {}, self._laws, self._references, self.cache_share)

    @property
    def cache_share(self) -> float:
        """Of the last-level cache: under which the reference passes are predicted best, each by laws that have not seen it."""
        if self._share is None:
            of = self.calibrated or self.profile
            if id(of) not in _LEARNED:
                while len(_LEARNED) >= _KEPT:
                    _LEARNED.pop(next(iter(_LEARNED)))
                _LEARNED[id(of)] = (of, _best_share(of))
            self._share = _LEARNED[id(of)][1]
        return self._share

    def law(self, kind: Kind, threads: int) -> Law:
        """Of the number of threads nearest to the one asked for, in proportion."""
        if self._references is None:
            self._references = references(self.calibrated or self.profile, self.cache_share)
        known = sorted({count for one, count in self._references if one == kind}, key=lambda count: abs(math.log(count / threads)))
        nearest = known[0] if known else threads
        if (kind, nearest) not in self._laws:
            self._laws[kind, nearest] = learn(kind, nearest, self._references.get((kind, nearest), []))
        return self._laws[kind, nearest]


def _at_least(prediction: Prediction, bound_s: float) -> Prediction:
    """A prediction that no law takes below what the machine can do."""
    times_s = {name: max(bound_s, getattr(prediction, name)) for name in ("low_s", "time_s", "high_s")}
    return prediction.model_copy(update=times_s)


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
_LEARNED: dict[int, tuple[Profile, float]] = {}
"""The share of each of the last profiles, which it holds on to, so that no other one gets its address."""


def _best_share(profile: Profile) -> float:
    if not profile.calibration:
        return CACHE_SHARE
    most = max(run.threads for run in profile.calibration)
    runs = profile.model_copy(update={"calibration": tuple(run for run in profile.calibration if run.threads == most)})

    def spread(share: float) -> float:
        return sum(learn(kind, most, of).spread for (kind, _), of in references(runs, share).items())

    return min(_SHARES, key=spread)


def references(profile: Profile, share: float = CACHE_SHARE) -> dict[tuple[Kind, int], list[Reference]]:
    """The passes of the reference models by kind and threads: the same terms as of any model.

    Args:
        share: Of the last-level cache that a step can count on.
    """
    found: dict[tuple[Kind, int], list[Reference]] = {}
    machines: dict[int, Machine] = {}
    disturbed = sum(run.disturbed for run in profile.calibration)
    for run in profile.calibration:
        machine = machines.setdefault(run.threads, Machine(profile, run.threads, share=share))
        operators = config_of(run, profile.fingerprint.topology).operators
        shapes = [one for one in step_passes(run.model, whole_tables(run.model))]
        for shape, place in zip(shapes, residences(shapes, machine.own_bytes, machine.shared_bytes), strict=True):
            if run.passes_s.get(shape.key, 0.0) <= 0 or (run.disturbed and 2 * disturbed < len(profile.calibration)):
                continue
            terms = terms_of(shape, place, operators.get(shape.key), machine, run.huge_pages)
            found.setdefault((shape.kind, run.threads), []).append(Reference(terms, shape.size, run.passes_s[shape.key], run.threads))
    return found


def config_of(run: CalibrationRun, topology: Topology) -> RunConfig:
    """The configuration under which a reference model ran."""
    config = default_config(run.model, topology, run.threads)
    operators = {**_with_strategy(config.operators, run.strategy), **run.knobs}
    return config.model_copy(update={"huge_pages": run.huge_pages, "operators": operators})


def _with_strategy(operators: Mapping[str, Knobs], strategy: str) -> dict[str, Knobs]:
    update = operators[embedding_bag.UPDATE]
    if not strategy or not isinstance(update, EmbeddingUpdateKnobs):
        return dict(operators)
    return {**operators, embedding_bag.UPDATE: update.model_copy(update={"strategy": strategy})}
