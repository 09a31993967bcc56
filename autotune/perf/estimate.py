"""Predicted times of an iteration, from (model, profile, configuration): no table is built and nothing is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.config.knobs import LayerKnobs, RunConfig
from autotune.config.model import Model
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.config.profile import Profile
from autotune.config.tuned import Prediction
from autotune.dlrm.model import complete, default_config
from autotune.errors import InputError
from autotune.ops.base import Work
from autotune.perf.links import Links
from autotune.perf.predictor import PassTime, Predictor
from autotune.perf.rank_steps import Crowd, Layout, RankShape, layouts, rank_memory_bytes, rank_shape, samples_of
from autotune.perf.steps import step_passes, whole_tables
from autotune.perf.timeline import Lane, Simulation, Span, in_a_row

__all__ = ["Estimate", "Lane", "OperatorEstimate", "Prediction", "RankEstimate", "Span", "estimate"]


@dataclass(frozen=True)
class OperatorEstimate:
    """One operator pass on the slowest rank."""

    key: str
    """As in a `RunConfig` and in `OperatorRow`: ``top_mlp.0.forward``; the last one, `other`, is what lies outside every pass."""
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
        model: With the global minibatch.
        profile: Of one machine; with several sockets it needs the network, or assumes one and says so.
        config: Threads, knobs, partition, communication; None takes every default. Several sockets need a partition (`plan.planner`).
        sockets: Ranks, one a socket.
        ranks_on_host: Among which the profile's machine is shared; None takes its sockets, as far as there are ranks.
        predictor: To use again for the same profile and ranks on a host.

    Raises:
        InputError: the profile lacks what the model needs; several sockets without a partition for as many.
    """
    topology = profile.fingerprint.topology
    on_host = min(sockets, topology.sockets if ranks_on_host is None else ranks_on_host)
    predictor = predictor or Predictor(profile, on_host)
    if config is None:
        config = default_config(model, threads=max(1, topology.physical_cores // max(1, on_host)))
    if sockets == 1:
        return _one_socket(model, profile, config, predictor)
    partition = config.partition
    if partition is None or partition.ranks != sockets:
        got = "none" if partition is None else f"one for {partition.ranks}"
        raise InputError(f"{sockets} sockets need a partition for as many, got {got}; plan for this number of sockets")
    return _several(model, profile, config, partition, predictor)


def _one_socket(model: Model, profile: Profile, config: RunConfig, predictor: Predictor) -> Estimate:
    shapes = step_passes(model, whole_tables(model))
    full = complete(config, model)
    times = predictor.passes(shapes, full, model.dtype)
    times_s = {one.shape.key: one.prediction.time_s for one in times}
    whole = Layout(tuple((t, table.rows, table.dim, False) for t, table in enumerate(model.tables)), ())
    memory = rank_memory_bytes(model, whole, model.minibatch)
    total_s = sum(times_s.values())
    return Estimate(
        model=model.name,
        profile=profile.name,
        sockets=1,
        minibatch=model.minibatch,
        threads=config.threads,
        operators=tuple(_operator(one) for one in times),
        iteration=_together(times, total_s),
        timeline=tuple(in_a_row(0, times_s)),
        ranks=(RankEstimate(0, total_s, 0.0, memory, model.num_tables),),
        simulated=not profile.calibration,
        notes=_notes(model, profile, times, full),
    )


def _operator(one: PassTime, *, exposed_s: float | None = None) -> OperatorEstimate:
    time_s = one.prediction.time_s
    return OperatorEstimate(
        one.shape.key, "compute", one.prediction, one.binder, one.limits_s, time_s if exposed_s is None else exposed_s, 0.0, one.shape.work
    )


def _together(times: Sequence[PassTime], total_s: float, network_s: float = 0.0) -> Prediction:
    """The interval of a sum: independent errors add up as squares, what they have in common as it is."""
    squares = sum((one.prediction.time_s * _spread(one.prediction)) ** 2 for one in times) + (network_s * _NETWORK_SPREAD) ** 2
    half = math.sqrt(squares) / total_s + _SYSTEMATIC if total_s else _SYSTEMATIC
    # Passes that hardly matter may lie outside the calibration.
    outside = [one for one in times if one.prediction.extrapolated and one.prediction.time_s > _WORTH_NAMING * total_s]
    words = "; ".join(f"{one.shape.key}: {one.prediction.extrapolated}" for one in outside[:3])
    more = f"; and {len(outside) - 3} more passes" if len(outside) > 3 else ""
    return Prediction(low_s=total_s * math.exp(-half), time_s=total_s, high_s=total_s * math.exp(half), extrapolated=words + more)


def _spread(prediction: Prediction) -> float:
    return math.log(prediction.high_s / prediction.time_s) if prediction.time_s else 0.0


def _several(model: Model, profile: Profile, config: RunConfig, partition: Partition, predictor: Predictor) -> Estimate:
    if model.minibatch < partition.ranks:
        raise InputError(f"each of {partition.ranks} sockets needs a sample, got a minibatch of {model.minibatch}; raise it")
    everybody, samples = layouts(model, partition), samples_of(model, partition.ranks)
    knobs = config.communication or CommunicationKnobs()
    crowd = Crowd.of(everybody)
    shapes: dict[tuple[Layout, int], RankShape] = {}
    passes: dict[tuple[Layout, int], list[PassTime]] = {}
    for layout, count in zip(everybody, samples, strict=True):
        key = (layout, count)
        if key not in shapes:
            shapes[key] = rank_shape(model, layout, crowd, config, count)
            local = complete(config, model.model_copy(update={"minibatch": count}))
            passes[key] = predictor.passes(shapes[key].passes, local, model.dtype)
    keys = list(zip(everybody, samples, strict=True))
    links = Links(profile.network, partition.ranks, knobs)
    transfers = links.transfers([shapes[key] for key in shapes])
    times_s = {key: _pass_times(of) for key, of in passes.items()}
    simulation = Simulation([times_s[key] for key in keys], transfers)
    total_s = simulation.run()
    compute_s = [sum(times_s[key].values()) for key in keys]
    slowest = max(range(partition.ranks), key=lambda rank: compute_s[rank])
    exposed = simulation.exposed_s[slowest]
    mine = passes[keys[slowest]]
    talks = links.operators(shapes[keys[slowest]], transfers, exposed)
    operators = (*(_operator(one) for one in mine if one.prediction.time_s > 0), *talks)
    return Estimate(
        model=model.name,
        profile=profile.name,
        sockets=partition.ranks,
        minibatch=model.minibatch,
        threads=config.threads,
        operators=operators,
        iteration=_together(mine, total_s, sum(exposed.values())),
        timeline=tuple(sorted((one for one in simulation.spans if one.rank < _TIMELINE_RANKS), key=lambda one: (one.rank, one.begin_s))),
        ranks=tuple(
            RankEstimate(rank, compute_s[rank], max(0.0, total_s - compute_s[rank]), shapes[key].memory_bytes, shapes[key].tables)
            for rank, key in enumerate(keys)
        ),
        simulated=True,
        notes=(*_notes(model, profile, mine, config), *links.notes),
    )


def _pass_times(times: Sequence[PassTime]) -> dict[str, float]:
    """The weights' step is a pass of its own on several ranks, so backward-weights packs nothing."""
    return {one.shape.key: one.prediction.time_s for one in times}


def _notes(model: Model, profile: Profile, times: Sequence[PassTime], config: RunConfig) -> tuple[str, ...]:
    """What the prediction rests on."""
    told = {
        "the profile holds no reference passes (autotune probe measures them): weights of another machine are assumed, with wide intervals":
            not profile.calibration,
        "arithmetic in bf16 is taken to be as fast as in fp32: the profile tells nothing of it":
            model.dtype == "bf16" and profile.bf16_gain == 1.0 and "bf16_gain" not in profile.sources,
        "passes in bf16 are predicted by the laws of fp32, with bf16's bytes and arithmetic": model.dtype == "bf16",
        "look-ups are spread as in one sampled batch": model.data.distribution in ("histogram", "criteo"),
        "layers on torch's GEMM are predicted as the blocked one": any(
            isinstance(knobs, LayerKnobs) and knobs.implementation == "torch" for knobs in config.operators.values()
        ),
    }  # fmt: skip
    return profile.warnings + tuple(note for note, holds in told.items() if holds)
