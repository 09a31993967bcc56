"""Every table's part of the embedding passes as they ran in the step."""

from __future__ import annotations

from autotune.config.measured import TableUse
from autotune.config.tuned import TunedConfig


def tables_in_step(config: TunedConfig) -> tuple[TableUse, ...]:
    """The tables, by number, with times that add up to the passes: each takes part of its rank's pass as it takes time alone.

    Timed alone, a table may meet emptier caches, or a machine that has become slower since the step was timed; only the proportions are
    taken from it. A rank whose passes are not known keeps its times.
    """
    single = {verdict.operator: verdict.time_s.median for verdict in config.verdicts} if config.sockets == 1 else {}
    passes = {row.rank: row.passes_s for row in config.ranks} | ({0: single} if single else {})
    scaled = []
    for use in config.tables:
        of_rank = [other for other in config.tables if other.rank == use.rank]
        known = passes.get(use.rank, {})
        scales = {
            "forward_s": _scale(known.get("embedding_bag.forward"), sum(other.forward_s for other in of_rank)),
            "update_s": _scale(known.get("embedding_bag.update"), sum(other.update_s for other in of_rank)),
        }
        scaled.append(use.model_copy(update={name: getattr(use, name) * scale for name, scale in scales.items()}))
    return tuple(sorted(scaled, key=lambda use: (use.table, use.rank)))


def _scale(pass_s: float | None, alone_s: float) -> float:
    return pass_s / alone_s if pass_s and alone_s else 1.0
