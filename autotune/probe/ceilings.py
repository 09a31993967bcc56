"""What this machine reaches at best: arithmetic, sequential and random bandwidth, fork and join, by thread count.

A ceiling is the best of several loops of one pattern (blockings of the GEMM, prefetch distances of a row walk): the highest rate by the
median over rounds in which all loops of one thread count take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch

from autotune.bench.noise import Noise, NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.samples import WIDE_SPREAD
from autotune.bench.timer import Measurement, Round, Times, interleave
from autotune.config.profile import Ceilings, ComputePoint, RowPoint, StreamPoint, TimePoint, Topology
from autotune.errors import InputError
from autotune.machine.topology import available_memory_bytes
from autotune.probe.loops import Arrays, Loop, Point, Sizes, StreamKind, choose_sizes, loops_at

BUSY = "the machine was busy"
"""Part of the note on figures that are too low for that reason."""

_BUSY_SHARE = 0.25
"""Share of disturbed rounds above which ceilings come from the fastest round."""

_ROUNDS = 15
_ENOUGH_ROUNDS = 3


def measure_ceilings(
    topology: Topology,
    *,
    budget_s: float = 45.0,
    progress: Progress = NO_PROGRESS,
    threads: Sequence[int] | None = None,
    quick: bool = False,
) -> tuple[Ceilings, tuple[str, ...]]:
    """Measure every ceiling of the kernel target in use.

    Args:
        topology: This machine.
        budget_s: Wall time, seconds, allocation included; fewer rounds are run to keep it, at least one.
        progress: Told of every round.
        threads: Thread counts; default the powers of two up to all physical cores, and all.
        quick: Small arrays, few points, two rounds: the structure of a result, not a measurement.

    Returns:
        The ceilings, and what disturbed them or made them smaller than intended.

    Raises:
        InputError: a thread count below 1 or above the physical cores.
        MachineError: less than 512 MiB of memory is available.
    """
    deadline_s = time.perf_counter() + budget_s
    counts = thread_counts(topology, threads)
    sizes = choose_sizes(topology, available_memory_bytes(topology), quick)
    rounds = 2 if quick else _ROUNDS
    notes = _notes(topology, counts, sizes, quick)
    best: dict[int, dict[Point, tuple[float, str]]] = {}
    arrays = Arrays(counts[-1] if len(topology.numa_nodes) == 1 else counts[0])
    torch_threads = torch.get_num_threads()
    progress.phase("measuring ceilings", float(len(counts) * rounds))
    try:
        for position, count in enumerate(counts):
            if position and len(topology.numa_nodes) > 1:
                arrays = Arrays(count)  # where memory lies is decided by the team that touches it first
            torch.set_num_threads(count)
            loops = loops_at(count, sizes, arrays)
            now_s = time.perf_counter()
            share_s = (deadline_s - now_s) / (len(counts) - position)
            witness = None if quick else _Witness(topology.allowed_cpus)
            measured = _measure(loops, rounds, now_s + share_s, witness, progress, f"{count} threads")
            if witness is not None and witness.reasons:
                seen = f"{len(witness.reasons)} of {measured.rounds} rounds were disturbed"
                advice = f"; {BUSY}: probe again when it is quiet" if 2 * len(witness.reasons) > measured.rounds else ""
                notes.append(f"{count} threads: {seen} ({witness.reasons[-1]}){advice}")
            if measured.rounds < min(_ENOUGH_ROUNDS, rounds):
                notes.append(f"{count} threads: the budget of {budget_s:g} s ended after {measured.rounds} rounds; give a larger one")
            # The median of quiet rounds. Where other programs took part of many rounds it is theirs as much as the machine's: then the
            # fastest round says what the machine reaches.
            busy = witness is not None and _BUSY_SHARE * measured.rounds < len(witness.reasons)
            times_s = {name: samples.minimum_s if busy else samples.median_s for name, samples in measured.samples.items()}
            best[count] = _best(loops, times_s)
            wide = {loop.point for loop in loops if measured.samples[_name(loop)].spread > WIDE_SPREAD}
            if wide and not quick:
                share = f"{len(wide)} of {len(best[count])} ceilings"
                notes.append(f"{count} threads: in {share} a loop varied by more than {WIDE_SPREAD:.0%} between its quartiles")
            del loops
    finally:
        torch.set_num_threads(torch_threads)
    return ceilings_of(best), tuple(notes)


def _measure(
    loops: Sequence[Loop], rounds: int, deadline_s: float, monitor: _Witness | None, progress: Progress, place: str
) -> Measurement:
    """Rounds of all loops until the deadline, by the wall clock: the clock that times them leaves out the warming calls."""
    clock, last_s = _Clock(), time.perf_counter()

    def done(finished: Round) -> None:
        progress.advance(1.0, f"{place}, round {finished.index + 1} of {rounds}")

    def out_of_time(_: Times) -> bool:
        nonlocal last_s
        now_s = time.perf_counter()
        round_s, last_s = now_s - last_s, now_s
        return now_s + round_s > deadline_s

    measured = interleave(
        {_name(loop): clock.timed(loop) for loop in loops},
        rounds=rounds,
        budget_s=max(deadline_s - last_s, 1e-3),
        min_rounds=1,
        monitor=monitor,
        on_round=done,
        until=out_of_time,
        clock=clock,
    )
    progress.advance(float(rounds - measured.rounds), place)
    return measured


def thread_counts(topology: Topology, threads: Sequence[int] | None = None) -> tuple[int, ...]:
    """Thread counts to measure, ascending: those given, else the powers of two up to all physical cores, and all.

    Raises:
        InputError: none, or one below 1 or above the physical cores.
    """
    cores = topology.physical_cores
    if threads is None:
        return tuple(sorted({*(1 << i for i in range(cores.bit_length())), cores}))
    wrong = [count for count in threads if not 1 <= count <= cores]
    if wrong or not threads:
        got = wrong[0] if wrong else "none"
        raise InputError(f"threads must lie between 1 and the {cores} physical cores, got {got}; leave it out for all")
    return tuple(sorted(set(threads)))


class _Witness(NoiseMonitor):
    """Remembers disturbed rounds and lets them count: a median of many rounds stands a few, and under steady foreign load repeating
    them leaves too few."""

    def __init__(self, cpus: Iterable[int]) -> None:
        super().__init__(cpus)
        self.reasons: list[str] = []

    def stop(self) -> Noise:
        noise = super().stop()
        if noise.disturbed:
            self.reasons.append(noise.reason)
        return replace(noise, disturbed=False)


class _Clock:
    """Seconds, without those spent on untimed calls."""

    def __init__(self) -> None:
        self._untimed_s = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._untimed_s

    def timed(self, loop: Loop) -> Callable[[], object]:
        """What `interleave` times of a loop."""
        return partial(self._warm_call, loop.call) if loop.warm else loop.call

    def _warm_call(self, call: Callable[[], object]) -> None:
        begin_s = time.perf_counter()
        call()
        self._untimed_s += time.perf_counter() - begin_s
        call()


def _name(loop: Loop) -> str:
    return f"{loop.point} {loop.variant}"


def _best(loops: Sequence[Loop], medians_s: dict[str, float]) -> dict[Point, tuple[float, str]]:
    """The highest rate of every point, per second, and the variant that reached it."""
    best: dict[Point, tuple[float, str]] = {}
    for loop in loops:
        rate = loop.amount / medians_s[_name(loop)]
        best[loop.point] = max(best.get(loop.point, (0.0, "")), (rate, loop.variant))
    return best


def ceilings_of(best: Mapping[int, Mapping[Point, tuple[float, str]]]) -> Ceilings:
    """Ceilings from what loops reached: by thread count and point the rate per second, and the variant that reached it."""
    fma, gemm, stream, fork_join = [], [], [], []
    rows: dict[str, list[RowPoint]] = {"gather": [], "scatter": []}
    for threads, points in best.items():
        for (pattern, *at), (rate, variant) in points.items():
            if pattern == "fma":
                fma.append(ComputePoint(threads=threads, flops_per_s=rate))
            elif pattern == "gemm":
                gemm.append(ComputePoint(threads=threads, flops_per_s=rate, shape=variant))
            elif pattern == "stream":
                stream.append(StreamPoint(kind=cast(StreamKind, at[0]), threads=threads, bandwidth_bytes_per_s=rate))
            elif pattern == "fork_join":
                fork_join.append(TimePoint(threads=threads, time_s=1.0 / rate))
            else:
                rows[pattern].append(RowPoint(row_bytes=at[0], working_set_bytes=at[1], threads=threads, bandwidth_bytes_per_s=rate))
    for points_of in rows.values():
        points_of.sort(key=lambda point: (point.threads, point.row_bytes, point.working_set_bytes))
    return Ceilings(
        fma=tuple(fma),
        gemm=tuple(gemm),
        stream=tuple(stream),
        gather=tuple(rows["gather"]),
        scatter=tuple(rows["scatter"]),
        fork_join=tuple(fork_join),
    )


def _notes(topology: Topology, counts: Sequence[int], sizes: Sizes, quick: bool) -> list[str]:
    notes = []
    if quick:
        notes.append("quick: small arrays and two rounds; not a measurement")
    if topology.cpu_quota is not None and topology.cpu_quota < counts[-1]:
        notes.append(f"the cgroup grants {topology.cpu_quota:g} CPUs of time: figures of more threads are throttled")
    if topology.huge_pages == "never":
        notes.append("huge pages are switched off: random rows pay for page walks; set transparent_hugepage to madvise")
    if not quick and sizes.memory_bytes[-1] < 4 * sizes.cache_bytes:
        notes.append(f"memory available allowed a working set of {sizes.memory_bytes[-1]} bytes only: rows partly come from the caches")
    if not quick and sizes.stream_bytes < 2 * sizes.cache_bytes:
        notes.append(f"memory available allowed stream arrays of {sizes.stream_bytes} bytes only: streams partly come from the caches")
    return notes
