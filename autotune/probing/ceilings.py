"""What this machine reaches at best: arithmetic, sequential and random bandwidth, fork and join, by thread count.

A ceiling is the best of several loops of one pattern (blockings of the GEMM, prefetch distances of a row walk): the highest rate by the
median over rounds in which all loops of one thread count take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.rounds import EachRound, Measurement, run_rounds, timed
from autotune.bench.samples import WIDE_SPREAD
from autotune.config.profile import DISTURBED_SHARE, Ceilings, ComputePoint, RowPoint, StreamPoint, TimePoint, Topology
from autotune.errors import InputError
from autotune.machine.memory import available_memory_bytes
from autotune.probing.loops import Arrays, Loop, Point, Sizes, StreamKind, choose_sizes, loops_at

_BUSY_SHARE = 0.25
"""Share of disturbed rounds above which ceilings come from the fastest round."""

_ROUNDS = 15
_ENOUGH_ROUNDS = 3


@dataclass(frozen=True)
class BestLoops:
    """The fastest loop of every point at one thread count."""

    rates: Mapping[Point, tuple[float, str]]
    """Rate per second, and the variant that reached it."""
    disturbed: frozenset[Point]
    """Points whose fastest loop varied, or all of them where most rounds were disturbed."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeasuredCeilings:
    """Ceilings, and how far they can be relied on."""

    ceilings: Ceilings
    disturbed: float
    """Share of the ceilings that were disturbed."""
    notes: tuple[str, ...]
    """What disturbed them or made them smaller than intended."""


def measure_ceilings(
    topology: Topology,
    *,
    budget_s: float = 45.0,
    progress: Progress = NO_PROGRESS,
    threads: Sequence[int] | None = None,
    quick: bool = False,
) -> MeasuredCeilings:
    """Measure every ceiling of the kernel target in use.

    Args:
        topology: This machine.
        budget_s: Wall time, seconds, allocation included; fewer rounds are run to keep it, at least one. A thread count that was disturbed
            is measured once more, for as long again.
        progress: Told of every round.
        threads: Thread counts; default the powers of two up to all physical cores, and all.
        quick: Small arrays, few points, two rounds, nothing repeated: the structure of a result, not a measurement.

    Raises:
        InputError: a thread count below 1 or above the physical cores.
        MachineError: less than 512 MiB of memory is available.
    """
    counts = thread_counts(topology, threads)
    sizes = choose_sizes(topology, available_memory_bytes(topology), quick)
    rounds = 2 if quick else _ROUNDS
    several_nodes = len(topology.numa_nodes) > 1
    shared = None if several_nodes else Arrays(counts[-1])
    observers = () if quick else (NoiseMonitor(topology.allowed_cpus),)
    torch_threads = torch.get_num_threads()
    progress.phase("measuring ceilings", float(len(counts) * rounds))

    def measure(count: int, share_s: float) -> BestLoops:
        begin_s = time.perf_counter()
        # On several nodes the team that touches memory first decides where it lies.
        loops = loops_at(count, sizes, shared or Arrays(count))
        torch.set_num_threads(count)
        report = EachRound(
            lambda finished: progress.advance(float(finished.counts), f"{count} threads, round {finished.number} of {rounds}")
        )
        measured = run_rounds(
            # The other loops drove the data of a warm one out of its cache, so an untimed call brings them back.
            {_name(loop): timed(loop.call, before=loop.call if loop.warm else None) for loop in loops},
            max_rounds=rounds,
            budget_s=share_s - (time.perf_counter() - begin_s),
            enough_rounds=min(_ENOUGH_ROUNDS, rounds),
            observers=(*observers, report),
        )
        progress.advance(float(rounds - measured.counted), f"{count} threads")
        best = best_loops(loops, measured)
        return replace(best, disturbed=frozenset(), notes=()) if quick else best

    try:
        measured = measured_again(counts, measure, budget_s, progress)
    finally:
        torch.set_num_threads(torch_threads)
    notes = [f"{count} threads: {note}" for count, loops in measured.items() for note in loops.notes]
    return MeasuredCeilings(
        ceilings=ceilings_of({count: loops.rates for count, loops in measured.items()}),
        disturbed=_share(measured.values()),
        notes=(*_notes(topology, counts, sizes, quick), *notes),
    )


def measured_again(
    counts: Sequence[int], measure: Callable[[int, float], BestLoops], budget_s: float, progress: Progress = NO_PROGRESS
) -> dict[int, BestLoops]:
    """The best loops at every thread count. Counts that were disturbed are measured once more, after all others: the less disturbed
    measurement of each is kept.

    Args:
        measure: Measures one thread count within seconds.
        budget_s: Wall time of one measurement of all counts.
    """
    end_s = time.perf_counter() + budget_s
    best = {count: measure(count, (end_s - time.perf_counter()) / (len(counts) - i)) for i, count in enumerate(counts)}
    disturbed = [count for count in counts if _share([best[count]]) > DISTURBED_SHARE]
    if disturbed:
        progress.phase("measuring disturbed ceilings again", None)
    for count in disturbed:
        again = measure(count, budget_s / len(counts))
        best[count] = min(best[count], again, key=lambda loops: _share([loops]))
        best[count] = replace(best[count], notes=("disturbed, so it was measured twice", *best[count].notes))
    return best


def best_loops(loops: Sequence[Loop], measured: Measurement) -> BestLoops:
    """The highest rate of every point, by the median of the rounds that count.

    Where other programs took part of many rounds the median is theirs as much as the machine's: then the fastest of all rounds, the
    repeated ones included, says what the machine reaches.
    """
    busy = measured.disturbed > _BUSY_SHARE * len(measured.rounds)
    times_s = {
        name: min(time_s for each in measured.rounds for time_s in each.times_s[name]) if busy else samples.median_s
        for name, samples in measured.samples.items()
    }
    best: dict[Point, tuple[float, str]] = {}
    for loop in loops:
        rate = loop.amount / times_s[_name(loop)]
        best[loop.point] = max(best.get(loop.point, (0.0, "")), (rate, loop.variant))
    varied = {point for point, (_, variant) in best.items() if measured.samples[f"{point} {variant}"].spread > WIDE_SPREAD}
    notes = measured.notes
    if varied:
        notes += (f"{len(varied)} of {len(best)} ceilings varied by more than {WIDE_SPREAD:.0%} between quartiles",)
    mostly = 2 * measured.disturbed > len(measured.rounds)
    return BestLoops(best, frozenset(best if mostly else varied), notes)


def _share(measured: Iterable[BestLoops]) -> float:
    """Share of the points that were disturbed."""
    loops = list(measured)
    return sum(len(each.disturbed) for each in loops) / sum(len(each.rates) for each in loops)


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


def _name(loop: Loop) -> str:
    return f"{loop.point} {loop.variant}"


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
