"""Tests a verdict by perturbation: the same operator pass with its data cache-resident, and with fewer threads.

An operator bound by memory runs faster when its data are resident in cache, and loses less than its share of threads when half of them go
(bandwidth saturates before the cores do). One bound by compute gains nothing from residence and slows in proportion to its threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.rounds import run_rounds, timed
from autotune.bench.samples import ratio
from autotune.config.knobs import FixedKnobs, Knobs
from autotune.config.tuned import Interval
from autotune.ops.base import Case
from autotune.perf.counters_check import Witness
from autotune.perf.measure import time_collectives
from autotune.perf.table import OperatorTable, Perturbation
from autotune.ranks import group
from autotune.ranks.lockstep import Lockstep

WARM_GAIN = 1.25
"""A gain from residence above which memory mattered. A compute-bound GEMM at its ceiling gains up to about 1.1 by streaming nothing."""

_UNSHORTENED, _SHORTENED = 0.3, 0.7
"""Of what ideal threads would save: a third and two thirds, nearly, so that noise of 10 % does not cross from one end to the other."""
_FEWER_BYTES_GAIN = 1.5
"""Half-way between a transfer that is all latency and one that is all bytes, when half of them go."""
_COLLECTIVE_ROUNDS = 15


def prove_passes(lockstep: Lockstep, table: OperatorTable, cache_bytes: int, progress: Progress = NO_PROGRESS) -> OperatorTable:
    """The table with its verdicts tested: passes of the slowest rank, transfers with half their bytes. Rank 0 calls it.

    Args:
        table: As `profile_passes` measured it.
        cache_bytes: Bytes that the threads of one rank can fill.
    """
    if lockstep.ranks == 1:
        tested, absent = perturb(lockstep, table, cache_bytes=cache_bytes, progress=progress), Witness().absent
        unwitnessed = (f"no hardware counters here ({absent}): verdicts are tested by perturbation alone",) if absent else ()
        return replace(table, perturbations=tuple(tested), notes=table.notes + unwitnessed)
    progress.phase("perturbing operators", None)
    slowest = max(table.ranks, key=lambda rank: rank.compute_s).rank
    tested = lockstep.everywhere(perturb_ranks, table, cache_bytes)[slowest]
    sent = {row.operator: row.binder for row in table.rows if row.bytes_sent}
    keys = lockstep.dlrm.schedule.collectives
    whole, half = (lockstep.everywhere(time_collectives, keys, _COLLECTIVE_ROUNDS, share) for share in (1.0, 0.5))
    tested += [judge_transfer(key, sent[key], ratio(whole[key], half[key])) for key in keys if key in sent]
    return replace(table, perturbations=tuple(tested))


def perturb_ranks(lockstep: Lockstep, table: OperatorTable, cache_bytes: int) -> list[list[Perturbation]]:
    """Task: every rank perturbs its own passes at the same time, so that each meets the memory traffic of the others."""
    return group.gather(perturb(lockstep, table, cache_bytes=cache_bytes))


def perturb(
    lockstep: Lockstep, table: OperatorTable, *, cache_bytes: int, rounds: int = 7, progress: Progress = NO_PROGRESS
) -> list[Perturbation]:
    """Perturb every operator pass of `table` that runs alone on this rank. The weights keep their values.

    Args:
        table: Holds the verdicts.
        cache_bytes: Size of all caches that the threads can fill: a warm case larger than this is not resident.
        rounds: Interleaved rounds for each pass.
    """
    verdicts = {row.operator: row.binder for row in table.rows}
    operators = [operator for operator in lockstep.operators() if operator.key in verdicts and operator.runs_alone]
    config, witness, perturbations = lockstep.config, Witness(), []
    threads = config.threads
    progress.phase("perturbing operators", len(operators))
    for operator in operators:
        knobs = config.operators.get(operator.key, FixedKnobs())
        cold, warm = operator.case(seed=1), operator.case(seed=1, warm=True)
        half = max(1, threads // 2)
        candidates = {"cold": _call(cold, knobs, threads), "warm": _call(warm, knobs, threads)}
        if half < threads:
            candidates["fewer"] = _call(cold, knobs.with_threads(half), half)
        try:
            samples = run_rounds({name: timed(call) for name, call in candidates.items()}, max_rounds=rounds, warmup=2).samples
        finally:
            torch.set_num_threads(threads)
        gain = ratio(samples["cold"], samples["warm"])
        loss = ratio(samples["fewer"], samples["cold"]) if half < threads else None
        size_bytes, binder = operator.work().bytes, verdicts[operator.key]
        judged = _judge(operator.key, binder, gain, loss, threads / half, size_bytes <= cache_bytes)
        testimony = witness.of(candidates["cold"], binder, size_bytes)
        if testimony is not None:
            judged = replace(judged, counters=testimony[1], counters_agree=testimony[0])
        perturbations.append(judged)
        progress.advance(1, operator.key)
    return perturbations


def _call(case: Case, knobs: Knobs, threads: int) -> Callable[[], None]:
    def call() -> None:
        torch.set_num_threads(threads)  # torch's own GEMM, and the loss, take its number rather than ours
        case.run(knobs, threads)

    return call


def _judge(key: str, binder: str, gain: Interval, loss: Interval | None, proportion: float, resident: bool) -> Perturbation:
    """Memory is shown by a gain from residence, or by threads that cost less than half their share; compute by the opposite of both."""
    saturates = loss is not None and loss.median < 1 + 0.5 * (proportion - 1)
    faster_warm = resident and gain.median > WARM_GAIN
    seen = f"resident data: {gain.median:.2f}x faster" if resident else "its data exceed the caches, so residence cannot be tested"
    if loss is not None:
        seen += f"; {1 / proportion:.0%} of the threads: {loss.median:.2f}x slower"
    if binder == "none" and loss is not None:
        seen += f"; {_none(loss.median, proportion)}"
    agrees: bool | None = None
    if binder == "memory" and (resident or loss is not None):
        agrees = faster_warm or saturates
        # On a machine whose cores together cannot saturate memory, threads scale and only residence can tell.
        if not agrees and not resident:
            agrees = None
    elif binder == "compute":
        agrees = not faster_warm and not saturates
    return Perturbation(key, binder, resident, gain, loss, agrees=agrees, detail=seen)


def _none(loss: float, proportion: float) -> str:
    """What rules a pass below every ceiling: what more threads do not shorten is overhead or imbalance, what they do is latency."""
    shortened = (loss - 1) / (proportion - 1)
    if shortened < _UNSHORTENED:
        return "threads hardly shorten it: launch overhead or imbalance rules"
    if shortened > _SHORTENED:
        return "threads shorten it in proportion: latency inside each thread's work rules"
    return "threads shorten a part of it: overhead or imbalance, and latency"


def judge_transfer(key: str, binder: str, gain: Interval) -> Perturbation:
    """A verdict on a transfer, held against its time over that with half the bytes: 2 where bytes bind it, 1 where latency does."""
    agrees = gain.median > _FEWER_BYTES_GAIN if binder == "network" else None
    detail = f"half the bytes: {gain.median:.2f}x faster"
    return Perturbation(key, binder, False, None, None, agrees=agrees, detail=detail, fewer_bytes_gain=gain)
