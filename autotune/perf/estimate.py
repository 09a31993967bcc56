"""Predicted times of an iteration, from (model, profile, configuration): no table is built and nothing is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.profile import Profile
from autotune.config.tuned import Prediction
from autotune.ops.base import Work

__all__ = ["Estimate", "Lane", "OperatorEstimate", "Prediction", "RankEstimate", "Span", "estimate"]

Lane = Literal["compute", "network"]


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
class Span:
    """A pass in time, on one rank."""

    rank: int
    lane: Lane
    key: str
    begin_s: float
    """From the iteration's start."""
    end_s: float


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


def estimate(
    model: Model, profile: Profile, config: RunConfig | None = None, *, sockets: int = 1, ranks_on_host: int | None = None
) -> Estimate:
    """Predict one iteration.

    Args:
        model: With the global minibatch.
        profile: Of one machine; with several sockets it needs the network, or assumes one and says so.
        config: Threads, knobs, partition, communication; None takes every default, and plans the partition.
        sockets: Ranks, one a socket.
        ranks_on_host: Among which the profile's machine is shared; None takes its sockets.

    Raises:
        InputError: the profile lacks what the model needs.
    """
    raise NotImplementedError  # the substance follows
