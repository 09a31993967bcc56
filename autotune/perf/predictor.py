"""Times of the passes of a schedule from a profile: features weighed by the models that were fitted to its calibration runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from autotune.config.knobs import Knobs, RunConfig
from autotune.config.model import Dtype
from autotune.config.profile import Profile
from autotune.config.tuned import Prediction
from autotune.ops.base import Operator, Residence
from autotune.ops.overhead import KEY as OTHER
from autotune.ops.overhead import Overhead
from autotune.ops.schedule import Pass, Schedule
from autotune.perf.cache_model import residences
from autotune.perf.calibrated import Calibration
from autotune.perf.ceilings import per_rank
from autotune.perf.features import Machine, features_of
from autotune.perf.regression import weighted
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

    def __post_init__(self) -> None:
        self._shared = shared(self.profile, self.ranks_on_host)
        self._calibration = Calibration.of(self.calibrated or self.profile)

    def machine(self, threads: int, dtype: Dtype = "fp32", huge_pages: bool = True) -> Machine:
        """The profile as a rank of so many threads meets it."""
        key = (threads, dtype, huge_pages)
        if key not in self._machines:
            self._machines[key] = Machine(self._shared, threads, dtype, self._calibration.cache_share, huge_pages)
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
        features = features_of(each, Residence(work.stream_bytes, 0.0, 0.0), operator.default(threads, machine.lanes), machine)
        added = {name: value for name, value in features.items() if name not in ("call", "fork")}
        return max(weighted(added, self._calibration.model(operator.kind, threads).weights), *self._limits(each, machine).values())

    def _predicted(self, each: Pass, place: Residence, knobs: Knobs | None, machine: Machine) -> PassTime:
        features = features_of(each, place, knobs, machine)
        fitted = self._calibration.model(each.operator.kind, machine.threads)
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
        return Predictor(profile, self.ranks_on_host, self.calibrated or self.profile)


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
