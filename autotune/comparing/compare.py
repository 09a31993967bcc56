"""The same training iteration by our configurations and by every peer that is installed, side by side in one run.

Each contestant is a process of its own, since allocator, pages and threads are chosen when a process starts. Before anything is timed all
train on the same batches from the same weights, and their losses are compared. Then each round trains every contestant on the same batch,
in an order drawn anew; only one works at a time, and preparing a batch is outside the clock. Where memory does not hold all models at once,
peers take turns in groups, each beside ours and beside the baseline.

The bound is the sum over the passes of ours of the least time that the ceilings allow them, as probed in the same run.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.rounds import EachRound, Measurement, Turn, run_rounds
from autotune.bench.samples import ratio
from autotune.comparing.peers import BASELINE, OURS, PEERS, TUNED, Peer, environment_of
from autotune.comparing.process import Contestant, ContestantError
from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.profile import Profile, Topology
from autotune.config.tuned import Interval, TunedConfig
from autotune.errors import MachineError, VerificationError
from autotune.machine.topology import available_memory_bytes
from autotune.ranks.launch import launch_of
from autotune.units import format_bytes

LOSS_STEPS = 3
LOSS_TOLERANCE = 1e-4
"""Relative: the order of additions differs."""
_WARM_UP_STEPS = 2
_LEAST_ROUNDS = 6
# What torch and a model's activations take beside the tables, and the share of memory that may be filled.
_PROCESS_BYTES = 1 << 30
_MEMORY_SHARE = 0.85


@dataclass(frozen=True)
class Line:
    """One contestant."""

    name: str
    iteration_s: Interval
    over_bound: float
    """Median over the bound."""
    default_gain: Interval
    """Its time over that of our default, round by round: above 1, ours is faster."""
    tuned_gain: Interval | None
    """The same over our tuned configuration; None without one."""
    loss_error: float
    """Greatest relative difference of a loss to ours in the steps before timing."""
    group: int
    """Contestants of one group were interleaved."""


@dataclass(frozen=True)
class Comparison:
    """Everybody's iteration, fastest first."""

    model: str
    data: str
    minibatch: int
    threads: int
    machine: str
    bound_s: float
    bounds_s: dict[str, float]
    """By pass."""
    lines: tuple[Line, ...]
    absent: dict[str, str]
    """Peers that did not take part, and why."""
    notes: tuple[str, ...] = ()


def groups(peers: Sequence[Peer], at_once: int) -> list[list[Peer]]:
    """Peers that run beside each other: the baseline in every group, as many others as memory holds beside ours and it.

    Args:
        at_once: Models that memory holds, ours included; 3 or more, unless there is only the baseline.
    """
    base, others = peers[:1], list(peers[1:])
    room = max(1, at_once - 2)
    return [[*base, *others[i : i + room]] for i in range(0, len(others), room)] or [list(base)]


def compare(
    model: Model,
    *,
    profile: Profile,
    topology: Topology,
    tuned: TunedConfig | None = None,
    peers: Sequence[Peer] = PEERS,
    budget_s: float = 120.0,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> Comparison:
    """Run the comparison.

    Args:
        profile: Probed in the same run; gives the bound.
        topology: This machine's.
        tuned: Our tuned configuration, beside the default.
        peers: The first is what ratios are quoted against.
        budget_s: Seconds of timed rounds, all groups together; at least six rounds run. Building comes on top.
        seed: Of the order within the rounds.

    Raises:
        MachineError: memory does not hold two models.
        VerificationError: our own losses with the tuned configuration differ from those with the default.
    """
    threads = topology.physical_cores
    launch = launch_of(RunConfig(threads=threads, huge_pages=topology.huge_pages != "never"), topology)
    absent = {peer.name: why for peer in peers if (why := peer.missing or peer.unfit(model))}
    present = [peer for peer in peers if peer.name not in absent]
    configs = {} if tuned is None else {TUNED: tuned.config}
    fields: list[tuple[dict[str, _Track], Measurement]] = []
    bounds: dict[str, float] = {}
    parted = groups(present, _at_once(model, topology, len(present)))

    def start(peer: Peer | None) -> Contestant:
        kind = "ours" if peer is None else peer.kind
        environment = environment_of(peer, launch, threads, os.environ)
        return Contestant(kind, model, configs if peer is None else {}, environment, topology.allowed_cpus)

    for number, group in enumerate(parted):
        progress.phase(f"building {len(group) + 1} models" + (f" ({number + 1} of {len(parted)} groups)" if len(parted) > 1 else ""), None)
        with ExitStack() as stack:
            ours = stack.enter_context(start(None))
            tracks = {name: _Track(ours, name) for name in (OURS, *configs)}
            for peer in group:
                try:
                    contestant = stack.enter_context(start(peer))
                except ContestantError as error:
                    absent[peer.name] = str(error)
                    continue
                tracks[peer.name] = _Track(contestant, OURS)
            bounds = bounds or ours.bounds(profile)
            _check_losses(tracks, absent)
            progress.phase("comparing", budget_s / len(parted))
            # Made here, so that it counts the contestants' processes as its own.
            monitor = NoiseMonitor(topology.allowed_cpus)
            fields.append((tracks, _measure(tracks, budget_s / len(parted), seed + number, monitor, progress)))
    return _result(model, profile, threads, bounds, fields, absent)


@dataclass
class _Track:
    """One line in the making."""

    contestant: Contestant
    config: str
    loss_error: float = 0.0

    def step(self, batch: int) -> tuple[float, float]:
        return self.contestant.step(batch, self.config)


def _at_once(model: Model, topology: Topology, peers: int) -> int:
    """How many models memory holds; one more than run, since a peer's is copied from one of ours.

    Raises:
        MachineError: not even ours and one peer.
    """
    each = model.table_bytes + _PROCESS_BYTES
    available = available_memory_bytes(topology)
    count = int(_MEMORY_SHARE * available / each) - 1
    least = min(2, peers + 1)
    if count < least:
        raise MachineError(
            f"a comparison needs {least + 1} models of {format_bytes(each)} in memory, got {format_bytes(available)} available; "
            "compare fewer rows with --max-rows"
        )
    return count


def _check_losses(tracks: dict[str, _Track], absent: dict[str, str]) -> None:
    """All start from the same weights; who does not follow ours is not timed. Ours trains under one configuration at a time."""
    expected = [tracks[OURS].step(batch)[1] for batch in range(LOSS_STEPS)]
    for name, track in list(tracks.items()):
        if track.contestant is tracks[OURS].contestant:
            continue
        try:
            losses = [track.step(batch)[1] for batch in range(LOSS_STEPS)]
        except ContestantError as error:
            absent[name] = str(error)
            del tracks[name]
            continue
        track.loss_error = max(abs(loss / wanted - 1) for loss, wanted in zip(losses, expected, strict=True))
        if not track.loss_error <= LOSS_TOLERANCE:
            absent[name] = f"its losses differ from ours by {track.loss_error:.1e}, over {LOSS_TOLERANCE:g}"
            del tracks[name]
    if TUNED in tracks:
        _check_tuned(tracks)


def _check_tuned(tracks: Mapping[str, _Track]) -> None:
    """Ours goes on from where it is, on one batch: the loss before an update does not depend on the update's configuration.

    Raises:
        VerificationError: the forward passes of the two configurations differ.
    """
    other = next((track for track in tracks.values() if track.contestant is not tracks[OURS].contestant), None)
    batch = LOSS_STEPS
    loss = tracks[TUNED].step(batch)[1]
    if other is None:
        return
    error = abs(loss / other.step(batch)[1] - 1)
    if not error <= LOSS_TOLERANCE:
        raise VerificationError(f"the tuned configuration must give the losses of the default, got a difference of {error:.1e}; tune again")
    tracks[TUNED].loss_error = error


def _measure(tracks: Mapping[str, _Track], budget_s: float, seed: int, monitor: NoiseMonitor, progress: Progress) -> Measurement:
    batches = itertools.count(LOSS_STEPS + 1)
    batch = 0

    def next_batch() -> None:
        nonlocal batch
        batch = next(batches)

    def turn_of(track: _Track) -> Turn:
        return lambda: (track.step(batch)[0],)

    return run_rounds(
        {name: turn_of(track) for name, track in tracks.items()},
        budget_s=budget_s,
        min_rounds=_LEAST_ROUNDS,
        warmup=_WARM_UP_STEPS,
        observers=(EachRound(lambda finished: progress.advance(finished.length_s, f"round {finished.number}")), monitor),
        prepare=next_batch,
        seed=seed,
    )


def _result(
    model: Model,
    profile: Profile,
    threads: int,
    bounds: dict[str, float],
    fields: Sequence[tuple[Mapping[str, _Track], Measurement]],
    absent: dict[str, str],
) -> Comparison:
    bound_s = sum(bounds.values())
    lines: dict[str, Line] = {}
    for number, (tracks, measured) in enumerate(fields):
        samples = measured.samples
        for name, own in samples.items():
            if name in lines:
                continue  # ours and the baseline run in every group; the first counts, and each ratio is of one group
            interval = own.to_interval()
            lines[name] = Line(
                name=name,
                iteration_s=interval,
                over_bound=interval.median / bound_s,
                default_gain=ratio(own, samples[OURS]),
                tuned_gain=ratio(own, samples[TUNED]) if TUNED in samples else None,
                loss_error=tracks[name].loss_error,
                group=number,
            )
    return Comparison(
        model=model.name,
        data=model.data.distribution,
        minibatch=model.minibatch,
        threads=threads,
        machine=profile.name,
        bound_s=bound_s,
        bounds_s=bounds,
        lines=tuple(sorted(lines.values(), key=lambda line: line.iteration_s.median)),
        absent=absent,
        notes=_notes(lines, [measured for _, measured in fields], profile),
    )


def _notes(lines: Mapping[str, Line], measurements: Sequence[Measurement], profile: Profile) -> tuple[str, ...]:
    notes = [*profile.warnings, *profile.notes, *(note for measured in measurements for note in measured.notes)]
    if len(measurements) > 1:
        count = len(measurements)
        notes.append(f"memory does not hold all models: {count} groups, each beside ours and the baseline; ratios are within a group")
    if BASELINE not in lines:
        notes.append("without the baseline: ratios are against our default alone")
    return tuple(notes)
