"""Predicted times of an iteration, from (model, profile, configuration): no table is built and nothing is run."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.profile import Profile
from autotune.config.tuned import Prediction
from autotune.dlrm.defaults import complete
from autotune.dlrm.schedule import schedule
from autotune.dlrm.sharding import load_signatures, parts_of_ranks, rank_memory_bytes, replicated, samples_of, whole_tables
from autotune.errors import InputError
from autotune.ops.base import Work
from autotune.ops.schedule import ROWS, Lane, Schedule
from autotune.ops.shards import Part
from autotune.perf.collectives import Collectives
from autotune.perf.predictor import PassTime, Predictor
from autotune.perf.simulator import Simulation, Span

__all__ = ["STOCHASTIC_NOTE", "Estimate", "Lane", "OperatorEstimate", "Prediction", "RankEstimate", "Span", "estimate"]

STOCHASTIC_NOTE = "updates of stochastic tables are predicted by their bytes: rounding is left out, and may make them slower than fp32's"


@dataclass(frozen=True)
class OperatorEstimate:
    """One operator pass on the slowest rank."""

    key: str
    """As in a `RunConfig` and in `MeasuredPass`: ``top_mlp.0.forward``; the last one, `other`, is what lies outside every pass."""
    lane: Lane
    prediction: Prediction
    """Of the pass by itself, whether or not it hides behind others."""
    binder: str
    """memory, compute, network, or none: what takes most of it."""
    limits_s: dict[str, float]
    """Least time by resource (memory, compute, network), as `perf.roofline.Limits` counts it."""
    exposed_s: float
    """Part of the iteration: all of a compute pass; of a transfer what is waited for."""
    hidden_s: float
    """Of a transfer: what runs behind other passes; 0 on the compute lane."""
    work: Work


@dataclass(frozen=True)
class RankEstimate:
    """One rank's iteration."""

    rank: int
    compute_s: float
    """In passes that do not wait for others."""
    tables_s: float
    """Part of it: passes over rows of tables."""
    waiting_s: float
    """For the network and for slower ranks."""
    memory_bytes: int
    """Of tables, copies included, dense parameters and activations."""
    tables: int
    """Whole tables and parts, copies left out."""


@dataclass(frozen=True)
class Estimate:
    """An iteration predicted."""

    model: str
    profile: str
    """Name of the profile."""
    sockets: int
    minibatch: int
    """Global."""
    threads: int
    """Of a rank."""
    operators: tuple[OperatorEstimate, ...]
    """In the order they run on the slowest rank."""
    iteration: Prediction
    timeline: tuple[Span, ...]
    """Of every rank, up to the first 64; by rank, then by time."""
    ranks: tuple[RankEstimate, ...]
    simulated: bool
    """Whether the machine differs from what can be run here: more sockets than the profile's, or a profile that was not measured."""
    notes: tuple[str, ...] = ()


_TIMELINE_RANKS = 64
_NETWORK_SPREAD = 0.3
"""Half-width, in log time, of a transfer's interval where its fit's own residual is smaller."""
_SYSTEMATIC = 0.05
"""What the errors of all passes of an iteration have in common, in log time: the state of the machine on another day."""


_WORTH_NAMING = 0.01
"""Share of the iteration below which a pass's extrapolation goes unsaid."""


def estimate(
    model: Model,
    profile: Profile,
    config: RunConfig | None = None,
    *,
    sockets: int = 1,
    ranks_on_host: int | None = None,
    predictor: Predictor | None = None,
) -> Estimate:
    """Predict one iteration.

    Args:
        model: with the global minibatch.
        profile: of one machine; with several sockets it needs the network, or assumes one and says so.
        config: threads, knobs, partition, communication; None takes every default. Several sockets need a partition (`planning.planner`).
        sockets: ranks, one a socket.
        ranks_on_host: among which the profile's machine is shared; None takes its sockets, as far as there are ranks.
        predictor: to use again for the same profile and ranks on a host.

    Raises:
        InputError: the profile lacks what the model needs; several sockets without a partition for as many.
    """
    topology = profile.fingerprint.topology
    on_host = min(sockets, topology.sockets if ranks_on_host is None else ranks_on_host)
    predictor = predictor or Predictor(profile, on_host)
    if config is None:
        config = RunConfig(threads=topology.default_threads(on_host), huge_pages=topology.huge_pages != "never")
    partition = config.partition if sockets > 1 else None
    if sockets > 1 and (partition is None or partition.ranks != sockets):
        got = "none" if partition is None else f"one for {partition.ranks}"
        raise InputError(f"{sockets} sockets need a partition for as many, got {got}; plan for this number of sockets")
    ranks = _ranks(model, config, sockets, predictor)
    collectives = Collectives(profile.network, sockets)
    works = zip(*(rank.transfers for rank in ranks), strict=True)
    transfers_s = [collectives.time_s(of_ranks) for of_ranks in works]
    simulation = Simulation(
        [rank.steps for rank in ranks], [rank.times_s for rank in ranks], transfers_s, collectives.compute_slowdown,
        [rank.between_s for rank in ranks],
    )  # fmt: skip
    total_s = simulation.run()
    slowest = max(range(sockets), key=lambda number: ranks[number].compute_s)
    exposed, shown = simulation.exposed_s[slowest], ranks[slowest]
    notes = (*_notes(model, profile, shown.times, config), *(collectives.notes if sockets > 1 else ()))
    return Estimate(
        model=model.name,
        profile=profile.name,
        sockets=sockets,
        minibatch=model.minibatch,
        threads=config.threads,
        operators=(*_computed(shown.times), *_transferred(shown.steps, transfers_s, exposed, collectives)),
        iteration=_whole(shown.times, total_s, sum(exposed.values())),
        timeline=tuple(sorted((span for span in simulation.spans if span.rank < _TIMELINE_RANKS), key=lambda s: (s.rank, s.begin_s))),
        ranks=tuple(
            RankEstimate(number, rank.compute_s, rank.tables_s, max(0.0, total_s - rank.compute_s), rank.memory_bytes, rank.tables)
            for number, rank in enumerate(ranks)
        ),
        simulated=sockets > 1 or not profile.calibration,
        notes=notes,
    )


@dataclass(frozen=True)
class _Rank:
    """One rank's schedule and the times of its passes."""

    steps: Schedule
    times: tuple[PassTime, ...]
    """Of the compute passes in order; last what lies between the passes."""
    memory_bytes: int
    tables: int

    @property
    def times_s(self) -> dict[int, float]:
        """Seconds by the number of the pass in the schedule."""
        numbers = [number for number, each in enumerate(self.steps.passes) if each.lane == "compute"]
        return {number: time.prediction.time_s for number, time in zip(numbers, self.times, strict=False)}

    @functools.cached_property
    def transfers(self) -> list[Work]:
        return [each.operator.work() for each in self.steps.passes if each.lane == "network"]

    @functools.cached_property
    def compute_s(self) -> float:
        return sum(time.prediction.time_s for time in self.times)

    @property
    def tables_s(self) -> float:
        return sum(time.prediction.time_s for time in self.times if any(buffer.name == ROWS for buffer in time.each.touches))

    @property
    def between_s(self) -> float:
        return self.times[-1].prediction.time_s


def _ranks(model: Model, config: RunConfig, sockets: int, predictor: Predictor) -> list[_Rank]:
    """Every rank; those of equal load are predicted once."""
    partition = config.partition if sockets > 1 else None
    if partition is None:
        return [_rank(model, config, 0, whole_tables(model), predictor)]
    whole = whole_tables(model)
    copies = [whole[t] for t in replicated(partition)]
    known: dict[object, _Rank] = {}
    ranks = []
    signatures = zip(load_signatures(model, partition), samples_of(model, sockets), strict=True)
    for rank, (key, parts) in enumerate(zip(signatures, parts_of_ranks(model, partition), strict=True)):
        if key not in known:
            known[key] = _rank(model, config, rank, [*parts, *copies], predictor, len(parts))
        ranks.append(known[key])
    return ranks


def _rank(model: Model, config: RunConfig, rank: int, parts: Sequence[Part], predictor: Predictor, tables: int | None = None) -> _Rank:
    steps = schedule(model, config.partition, rank, config.communication)
    times = tuple(predictor.passes(steps, complete(config, steps, predictor.profile.fingerprint.topology)))
    samples = steps.samples[1] - steps.samples[0]
    return _Rank(steps, times, rank_memory_bytes(model, parts, samples), len(parts) if tables is None else tables)


def _computed(times: Sequence[PassTime]) -> list[OperatorEstimate]:
    """One row a key: passes that share one add up."""
    groups: dict[str, list[PassTime]] = {}
    for time in times:
        groups.setdefault(time.key, []).append(time)
    rows = []
    for key, group in groups.items():
        prediction = functools.reduce(_added, (time.prediction for time in group))
        limits_s = {name: sum(time.limits_s[name] for time in group) for name in group[0].limits_s}
        longest = max(group, key=lambda time: time.prediction.time_s)
        work = functools.reduce(Work.__add__, (time.each.operator.work() for time in group))
        if prediction.time_s > 0:
            rows.append(OperatorEstimate(key, "compute", prediction, longest.binder, limits_s, prediction.time_s, 0.0, work))
    return rows


def _added(first: Prediction, second: Prediction) -> Prediction:
    return Prediction(
        low_s=first.low_s + second.low_s,
        time_s=first.time_s + second.time_s,
        high_s=first.high_s + second.high_s,
        extrapolated=first.extrapolated or second.extrapolated,
    )


def _transferred(
    steps: Schedule, transfers_s: Sequence[float], exposed: dict[str, float], collectives: Collectives
) -> list[OperatorEstimate]:
    """The transfers as one rank meets them."""
    numbered = [each for each in steps.passes if each.lane == "network"]
    rows = []
    for key in steps.collectives:
        time_s = sum(taken for each, taken in zip(numbered, transfers_s, strict=True) if each.key == key)
        work, waited_s = steps.works[key], exposed.get(key, 0.0)
        prediction = collectives.prediction(work, time_s)
        hidden_s = max(0.0, time_s - waited_s)
        rows.append(OperatorEstimate(key, "network", prediction, "network", {"network": time_s}, waited_s, hidden_s, work))
    return rows


def _whole(times: Sequence[PassTime], total_s: float, network_s: float) -> Prediction:
    """The interval of a sum: independent errors add up as squares, what they have in common as it is."""
    squares = sum((time.prediction.time_s * _spread(time.prediction)) ** 2 for time in times) + (network_s * _NETWORK_SPREAD) ** 2
    half = math.sqrt(squares) / total_s + _SYSTEMATIC if total_s else _SYSTEMATIC
    # Passes that hardly matter may lie outside the calibration.
    outside = {time.key: time.prediction.extrapolated for time in times if time.prediction.time_s > _WORTH_NAMING * total_s}
    words = [f"{key}: {reason}" for key, reason in outside.items() if reason]
    more = [f"and {len(words) - 3} more passes"] if len(words) > 3 else []
    return Prediction(
        low_s=total_s * math.exp(-half), time_s=total_s, high_s=total_s * math.exp(half), extrapolated="; ".join(words[:3] + more)
    )


def _spread(prediction: Prediction) -> float:
    return math.log(prediction.high_s / prediction.time_s) if prediction.time_s else 0.0


def _notes(model: Model, profile: Profile, times: Sequence[PassTime], config: RunConfig) -> tuple[str, ...]:
    """What the prediction rests on."""
    notes = {
        "the profile holds no reference passes (autotune probe measures them): weights of another machine are assumed, with wide intervals":
            not profile.calibration,
        "arithmetic in bf16 is taken to be as fast as in fp32: the profile tells nothing of it":
            model.dtype == "bf16" and profile.bf16_gain == 1.0 and "bf16_gain" not in profile.sources,
        "passes in bf16 are predicted by the weights fitted to fp32, with bf16's bytes and arithmetic": model.dtype == "bf16",
        STOCHASTIC_NOTE: model.table_storage == "stochastic",
        "look-ups are spread as in one sampled batch": model.data.distribution in ("histogram", "criteo"),
        "layers on torch's GEMM are predicted as the blocked one": any(
            getattr(knobs, "implementation", "") == "torch" for knobs in config.operators.values()
        ),
    }  # fmt: skip
    return profile.warnings + tuple(note for note, holds in notes.items() if holds)
