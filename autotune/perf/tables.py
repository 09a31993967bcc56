"""Every embedding table by itself: how its look-ups spread, and both passes timed alone against what the machine allows."""

from __future__ import annotations

import statistics
import time
from typing import Protocol

import torch

from autotune.config.knobs import RunConfig
from autotune.config.measured import HOT_ROWS, TableUse
from autotune.config.profile import Ceilings
from autotune.data.batches import BatchSource
from autotune.dlrm.alone import TableAlone
from autotune.ops.embedding_bag import FORWARD, UPDATE
from autotune.perf.roofline import limits
from autotune.ranks import group
from autotune.ranks.lockstep import Lockstep

_ROUNDS = 9
_LEAST_ROUNDS = 3


class HasTables(Protocol):
    """One rank's model."""

    @property
    def config(self) -> RunConfig: ...

    def tables_alone(self, source: BatchSource) -> list[TableAlone]: ...


def measure_tables(
    dlrm: HasTables, source: BatchSource, ceilings: Ceilings, *, budget_s: float | None = None, rank: int = 0
) -> tuple[TableUse, ...]:
    """Time every table's passes in interleaved rounds under the knobs in force. A table without look-ups is left out.

    The tables follow each other within a round, so that each finds the caches full of the others, as in a step. Not a bit of a table
    changes.

    Args:
        ceilings: what this rank meets.
        budget_s: wall seconds; ends the rounds earlier, but not before three.
    """
    begin, config = time.monotonic(), dlrm.config
    tables = [one for one in dlrm.tables_alone(source) if one.indices.numel()]
    if not tables:
        return ()
    # The last pair is idle: a step calls all tables at once, so what a call takes by itself is taken off every table's time.
    passes = [(one.forward, one.update) for one in tables] + [(tables[0].forward.idle(), tables[0].update.idle())]
    cases = [(forward.case(0), update.case(0)) for forward, update in passes]
    knobs = (config.operators[FORWARD], config.operators[UPDATE])
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in cases]
    for number in range(1 + _ROUNDS):
        if number > _LEAST_ROUNDS and budget_s is not None and time.monotonic() - begin > budget_s:
            break
        for pair, taken in zip(cases, times, strict=True):
            for case, chosen, samples in zip(pair, knobs, taken, strict=True):
                started = time.perf_counter()
                case.run(chosen, config.threads)
                samples.append(time.perf_counter() - started)
    # The first round touches fresh memory.
    *medians, (idle_forward_s, idle_update_s) = [[statistics.median(samples[1:]) for samples in taken] for taken in times]
    return tuple(
        table_use(one, max(0.0, forward_s - idle_forward_s), max(0.0, update_s - idle_update_s), ceilings, config.threads, rank)
        for one, (forward_s, update_s) in zip(tables, medians, strict=True)
    )


def table_use(one: TableAlone, forward_s: float, update_s: float, ceilings: Ceilings, threads: int, rank: int) -> TableUse:
    """The record of one table: its look-ups counted, its times beside their ceilings."""
    forward, update = one.forward.work(), one.update.work()
    unique, counts = torch.unique(one.indices.long(), return_counts=True)
    hot = min(HOT_ROWS, len(counts))
    lookups = one.indices.numel()
    return TableUse(
        table=one.table,
        rank=rank,
        rows=one.rows,
        dim=one.forward.dim,
        lookups=lookups,
        unique=len(unique),
        hot_rows=hot,
        hot_share=int(counts.topk(hot).values.sum()) / lookups,
        range_load=_load(owners_by_range(unique, one.rows, threads), counts, threads),
        modulo_load=_load(unique % threads, counts, threads),
        bucketed_load=_load(owners_by_bucket(unique, one.slot, threads), counts, threads),
        forward_s=forward_s,
        forward_ceiling_s=limits(forward, ceilings, threads, warm=True).bound_s,
        update_s=update_s,
        update_ceiling_s=limits(update, ceilings, threads, warm=True).bound_s,
    )


def owners_by_range(rows: torch.Tensor, count: int, threads: int) -> torch.Tensor:
    """Thread i owns the rows from floor(count * i / threads) on, as in `kernels/embedding_update-inl.h`; int64 [R] -> int64 [R]."""
    return (rows * threads + threads - 1) // count


def owners_by_bucket(rows: torch.Tensor, slot: int, threads: int) -> torch.Tensor:
    """A multiplicative hash of the row and of the table's place among those updated together, as in the kernel; int64 [R] -> int64 [R]."""
    low = 0xFFFFFFFF
    seed = (slot * 0x9E3779B1) & low
    # Two products, so that no step passes 63 bits.
    key, factor = (rows + seed) & low, 0x85EBCA77
    mixed = ((key * (factor & 0xFFFF)) + (((key * (factor >> 16)) & 0xFFFF) << 16)) & low
    return ((mixed ^ (mixed >> 15)) * threads) >> 32


def _load(owners: torch.Tensor, counts: torch.Tensor, threads: int) -> float:
    """Busiest owner over the mean."""
    per_owner = torch.zeros(threads, dtype=torch.int64).scatter_add_(0, owners, counts)
    return float(per_owner.max()) * threads / float(counts.sum())


def tables_of_ranks(lockstep: Lockstep, ceilings: Ceilings, budget_s: float) -> list[TableUse]:
    """Task: every rank measures its own at the same time, so that each meets the memory traffic of the others. Every rank's."""
    mine = measure_tables(lockstep, lockstep, ceilings, budget_s=budget_s, rank=lockstep.rank)
    return [use for uses in group.gather(mine) for use in uses]
