"""Every embedding table by itself: how its look-ups spread, and both passes timed alone against what the machine allows."""

from __future__ import annotations

from functools import partial

import torch

from autotune.bench.rounds import Turn, run_rounds, timed
from autotune.config.measured import HOT_ROWS, TableUse
from autotune.config.profile import Ceilings
from autotune.ops.embedding_bag import FORWARD, UPDATE
from autotune.ops.embedding_tables import Strategy
from autotune.ops.table_alone import TableAlone
from autotune.perf.roofline import limits
from autotune.ranks import group
from autotune.ranks.lockstep import Lockstep

_ROUNDS = 9
_LEAST_ROUNDS = 3


def tables_of_ranks(lockstep: Lockstep, ceilings: Ceilings, budget_s: float) -> list[TableUse]:
    """Task: every rank measures its own at the same time, so that each meets the memory traffic of the others. Every rank's."""
    return [use for uses in group.gather(measure_tables(lockstep, ceilings, budget_s)) for use in uses]


def measure_tables(lockstep: Lockstep, ceilings: Ceilings, budget_s: float) -> tuple[TableUse, ...]:
    """Time the passes of every table of this rank in interleaved rounds under the knobs in force; those without look-ups are left out.

    Each finds the caches full of the others, as in a step. Not a bit of a table changes.

    Args:
        ceilings: What this rank meets.
        budget_s: Wall seconds; ends the rounds earlier, but not before three.
    """
    config = lockstep.config
    tables = [table for table in lockstep.dlrm.tables_alone(lockstep.source) if table.indices.numel()]
    if not tables:
        return ()
    # A step calls all tables at once, so what a call without look-ups takes is taken off every table's time.
    knobs = (config.operators[FORWARD], config.operators[UPDATE])
    turns: dict[str, Turn] = {}
    for name, cases in (("idle", tables[0].idle()), *((str(i), table.cases()) for i, table in enumerate(tables))):
        for key, case, chosen in zip((FORWARD, UPDATE), cases, knobs, strict=True):
            turns[f"{name} {key}"] = timed(partial(case.run, chosen, config.threads))
    # The first round touches fresh memory.
    samples = run_rounds(turns, max_rounds=_ROUNDS, budget_s=budget_s, min_rounds=_LEAST_ROUNDS).samples
    median_s = {name: sample.median_s for name, sample in samples.items()}

    def alone_s(name: str, key: str) -> float:
        return max(0.0, median_s[f"{name} {key}"] - median_s[f"idle {key}"])

    return tuple(
        table_use(table, alone_s(str(i), FORWARD), alone_s(str(i), UPDATE), ceilings, config.threads, lockstep.rank)
        for i, table in enumerate(tables)
    )


def table_use(table: TableAlone, forward_s: float, update_s: float, ceilings: Ceilings, threads: int, rank: int) -> TableUse:
    """The record of one table: its look-ups counted, its times beside their ceilings."""
    unique, counts = torch.unique(table.indices.long(), return_counts=True)
    hot = min(HOT_ROWS, len(counts))
    lookups = int(table.indices.numel())

    def load(strategy: Strategy) -> float:
        """Busiest thread over the mean."""
        return max(table.owner_sizes(strategy, threads)) * threads / lookups

    return TableUse(
        table=table.table,
        rank=rank,
        rows=table.rows,
        dim=table.dim,
        lookups=lookups,
        unique=len(unique),
        hot_rows=hot,
        hot_share=int(counts.topk(hot).values.sum()) / lookups,
        range_load=load("race_free_range"),
        modulo_load=load("race_free_modulo"),
        bucketed_load=load("bucketed"),
        forward_s=forward_s,
        forward_ceiling_s=limits(table.forward.work(), ceilings, threads, warm=True).bound_s,
        update_s=update_s,
        update_ceiling_s=limits(table.update.work(), ceilings, threads, warm=True).bound_s,
    )
