"""The same training iteration by our configurations and by every peer that is installed, side by side in one run.

Each contestant is a process of its own, since allocator, pages and threads are chosen when a process starts. Before anything is timed all
train on the same batches from the same weights, and their losses are compared. Then each round trains every contestant on the same batch,
in an order drawn anew; only one works at a time, and preparing a batch is outside the clock. Where memory does not hold all models at once,
peers take turns in groups beside ours, which is built once and stays.

The bound is the sum over the passes of ours of the least time that the ceilings allow them, as probed in the same run.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.rounds import EachRound, Measurement, Turn, run_rounds
from autotune.bench.samples import Samples, ratio
from autotune.comparing.peers import BASELINE, DEFAULT, OURS, PEERS, TUNED, Peer, environment_of
from autotune.comparing.process import Contestant, ContestantError
from autotune.comparing.room import groups, memory_bytes, room_bytes, trained
from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.profile import Profile, Topology
from autotune.config.tuned import Interval, TunedConfig
from autotune.errors import VerificationError
from autotune.machine.limits import thread_notes
from autotune.ranks.launch import launch_of
from autotune.units import format_time

LOSS_STEPS = 3
_WARM_UP_STEPS = 2
_LEAST_ROUNDS = 6
# For the estimate: a process that imports torch and a peer's libraries, drawing tables and copying them, compiling. On 2 cores (Zen 3).
_START_S = 6.0
_BUILD_BYTES_PER_S = 0.5e9
_COMPILE_S = 40.0


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
    dtype: str
    """Of every contestant but `peers.DEFAULT_IN_FP32`."""
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
    probed: str = ""
    """When the ceilings of the bound were measured."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """What a comparison needs before its rounds."""

    groups: tuple[tuple[Peer, ...], ...]
    """Peers that run beside each other, and beside ours."""
    building_s: float
    """Estimate: starting every process, building and checking its model."""

    @property
    def models(self) -> int:
        """Models that are built: ours, and each peer's."""
        return 1 + sum(map(len, self.groups))

    def share_s(self, left_s: float, number: int) -> float:
        """Rounds of group `number` by its peers, of the time left to it and later groups, whose building is set aside."""
        later = sum(map(len, self.groups[number + 1 :]))
        own = len(self.groups[number])
        rounds_s = max(0.0, left_s - self.building_s * later / self.models)
        return rounds_s * own / (own + later) if own else rounds_s

    def words(self, budget_s: float, probe_s: float) -> str:
        """What is expected to take how long, for the user to see before it begins; `probe_s` is 0 where stored ceilings are taken."""
        parts = [f"the probe {_about(probe_s)} (--cached-profile takes stored ceilings)"] if probe_s else []
        turns = f" (memory holds them in {len(self.groups)} groups)" if len(self.groups) > 1 else ""
        parts.append(f"building {self.models} models {_about(self.building_s)}{turns}")
        left_s = budget_s - probe_s - self.building_s
        rest = f"which leaves {_about(left_s)} for rounds" if left_s > 0 else f"so only the least, {_LEAST_ROUNDS} rounds, will run"
        return f"of the budget of {format_time(budget_s)}: {', '.join(parts)}; {rest}"


def _about(time_s: float) -> str:
    return f"about {time_s:.0f} s"


def loss_tolerances(dtype: str) -> tuple[float, ...]:
    """How far a contestant's loss may be from ours in each of the first `LOSS_STEPS` steps, relative.

    In fp32 the order of additions differs: 1e-4. In bf16 (8 significant bits, u = 2^-8) ours cuts a weight to them, a peer rounds it, and a
    peer also rounds activations and gradients where ours does not. Errors of single elements average out over a sum; left is a bias of a
    fraction of u a layer in a logit, hence in the first loss: relative to it, cross entropy moves at most as much as the logits where
    labels do not yet follow them, and less where these are small. So u for the first loss: 6e-5 to 1.8e-3 were seen on the models that
    ship. Every update adds a rounding of the gradient and of the sum, for u each: plain SGD in bf16 tables drops what is below half of a
    weight's last bit. Up to 1.6e-3 were seen there.

    Tables as they are drawn hardly move these losses: that a peer reads and updates them as ours does is tested with larger ones.
    """
    return tuple(1e-4 if dtype == "fp32" else 2.0**-8 * (1 + step) for step in range(LOSS_STEPS))


def prepare(model: Model, topology: Topology, peers: Sequence[Peer] = PEERS) -> Preparation:
    """What comparing with those of `peers` that are installed and take the model needs.

    Raises:
        MachineError: memory does not hold two models.
    """
    present = [peer for peer in peers if not peer.unusable(model)]
    needed = [memory_bytes(model, peer) for peer in present]
    compiled = sum(peer.kind == "compiled" for peer in present)
    each_s = _START_S + 2 * model.table_bytes / _BUILD_BYTES_PER_S  # drawn, and copied from ours
    building_s = (1 + len(present)) * each_s + compiled * _COMPILE_S
    return Preparation(groups(present, needed, room_bytes(model, topology, needed)), building_s)


def compare(
    model: Model,
    *,
    profile: Profile,
    topology: Topology,
    tuned: TunedConfig | None = None,
    peers: Sequence[Peer] = PEERS,
    needs: Preparation | None = None,
    budget_s: float = 120.0,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> Comparison:
    """Run the comparison.

    Args:
        profile: Probed in the same run; gives the bound.
        topology: This machine's.
        tuned: Our tuned configuration, beside the default.
        peers: The first is the baseline.
        needs: What `prepare` found for the same model, machine and peers; None asks it.
        budget_s: Seconds for everything here; at least six rounds of every group run.
        seed: Of the order within the rounds.

    Raises:
        MachineError: memory does not hold two models.
        VerificationError: our own losses with the tuned configuration differ from those with the default.
    """
    end_s = time.monotonic() + budget_s
    threads = topology.default_threads()
    launch = launch_of(RunConfig(threads=threads, huge_pages=topology.huge_pages != "never"), topology)
    absent = {peer.name: why for peer in peers if (why := peer.unusable(model))}
    needs = prepare(model, topology, peers) if needs is None else needs
    parted = needs.groups
    configs = {} if tuned is None else {TUNED: tuned.config}
    fields: list[tuple[dict[str, _Track], Measurement]] = []

    def start(peer: Peer) -> Contestant:
        environment = environment_of(peer, launch, threads, os.environ)
        return Contestant(peer.kind, trained(model, peer), configs if peer is DEFAULT else {}, environment, topology.allowed_cpus)

    with ExitStack() as whole:
        progress.phase("building our model", None)
        ours = whole.enter_context(start(DEFAULT))
        bounds = ours.bounds(profile)
        own = {name: _Track(ours, name) for name in (OURS, *configs)}
        expected = [own[OURS].step(batch)[1] for batch in range(LOSS_STEPS)]
        for number, group in enumerate(parted):
            turns = f" (group {number + 1} of {len(parted)})" if len(parted) > 1 else ""
            progress.phase(f"building the peers' models{turns}", float(len(group)))
            with ExitStack() as stack:
                tracks = dict(own)
                for peer in group:
                    progress.advance(0.0, peer.name)
                    try:
                        contestant = stack.enter_context(start(peer))
                        track = _Track(contestant, OURS)
                        track.check(expected, loss_tolerances(model.dtype))
                    except ContestantError as error:
                        absent[peer.name] = str(error)
                    else:
                        tracks[peer.name] = track
                    progress.advance(1.0, peer.name)
                if number == 0 and TUNED in own:
                    _check_tuned(tracks, loss_tolerances(model.dtype)[-1])
                share_s = needs.share_s(end_s - time.monotonic(), number)
                progress.phase(f"comparing{turns}", share_s)
                # Made here, so that it counts the contestants' processes as its own.
                monitor = NoiseMonitor(topology.allowed_cpus)
                while True:
                    try:
                        fields.append((tracks, _measure(tracks, share_s, seed + number, monitor, progress)))
                        break
                    except ContestantError as error:
                        # A peer that ends in its rounds is left out, and the others are measured anew.
                        gone = next((name for name, track in tracks.items() if track.contestant is not ours and track.contestant.ended), "")
                        if not gone:
                            raise
                        absent[gone] = str(error)
                        del tracks[gone]
    result = _result(model, profile, threads, bounds, fields, absent)
    return replace(result, notes=(*result.notes, *thread_notes(topology, threads)))


@dataclass
class _Track:
    """One line in the making."""

    contestant: Contestant
    config: str
    loss_error: float = 0.0

    def step(self, batch: int) -> tuple[float, float]:
        return self.contestant.step(batch, self.config)

    def check(self, expected: Sequence[float], tolerances: Sequence[float]) -> None:
        """All start from the same weights; who does not follow ours is not timed.

        Raises:
            ContestantError: its losses on the first batches differ from ours, `expected`, or it ended.
        """
        for batch, (wanted, tolerance) in enumerate(zip(expected, tolerances, strict=True)):
            error = abs(self.step(batch)[1] / wanted - 1)
            if not error <= tolerance:
                raise ContestantError(f"its loss {batch + 1} differs from ours by {error:.1e}, over {tolerance:.1e}")
            self.loss_error = max(self.loss_error, error)


def _check_tuned(tracks: Mapping[str, _Track], tolerance: float) -> None:
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
    if not error <= tolerance:
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
    # Ours runs in every group: its rounds are joined. A ratio of a peer is of the rounds of its group.
    own = [name for name in (OURS, TUNED) if name in fields[0][0]]
    joined = {name: Samples(sum((measured.samples[name].times_s for _, measured in fields), ())) for name in own}
    lines: dict[str, Line] = {}
    for number, (tracks, measured) in enumerate(fields):
        for name, track in tracks.items():
            if name in lines:
                continue
            beside = joined if name in joined else measured.samples
            interval = beside[name].to_interval()
            lines[name] = Line(
                name=name,
                iteration_s=interval,
                over_bound=interval.median / bound_s,
                default_gain=ratio(beside[name], beside[OURS]),
                tuned_gain=ratio(beside[name], beside[TUNED]) if TUNED in beside else None,
                loss_error=track.loss_error,
                group=number,
            )
    return Comparison(
        model=model.name,
        dtype=model.dtype,
        data=model.data.distribution,
        minibatch=model.minibatch,
        threads=threads,
        machine=profile.name,
        bound_s=bound_s,
        bounds_s=bounds,
        lines=tuple(sorted(lines.values(), key=lambda line: line.iteration_s.median)),
        absent=absent,
        probed=profile.created,
        notes=_notes(model, lines, [measured for _, measured in fields], profile),
    )


def _notes(model: Model, lines: Mapping[str, Line], measurements: Sequence[Measurement], profile: Profile) -> tuple[str, ...]:
    import torch

    notes = [*profile.warnings, *profile.notes, *(note for measured in measurements for note in measured.notes)]
    if len(measurements) > 1:
        notes.append(f"memory does not hold all models: {len(measurements)} groups, each beside ours; ratios are within a group")
    if model.dtype == "bf16" and "AVX512" not in (capability := torch.backends.cpu.get_cpu_capability()):
        # A layer of 1024 x 1024 at 2048 samples on 2 cores with AVX2, fp32 and bf16: 36 and 239 ms forward, 70 and 5493 ms backward.
        slow = f"torch has no fast layers in bf16 on this CPU ({capability})"
        notes.append(f"{slow}: peers take many times as long as in fp32; compare in fp32 too")
    if BASELINE not in lines:
        notes.append("without the baseline: ratios are against our default alone")
    return tuple(notes)
