"""What the operators of a config's model find remarkable about their own measured passes: a loop, whichever operators there are."""

from __future__ import annotations

from collections.abc import Iterator

from autotune.config.model import DataSpec
from autotune.config.tuned import TunedConfig
from autotune.dlrm.schedule import schedule
from autotune.explaining.terms import WORTH_NAMING, iteration_s, ranks_on_host
from autotune.ops.base import Measured, Observation
from autotune.perf.ceilings import peak_ceiling, per_rank, stream_ceiling


def operator_findings(config: TunedConfig) -> Iterator[tuple[str, Observation]]:
    """Observations about every pass that takes a noticeable part of the iteration, with the pass they are about."""
    if config.workload is None:
        return
    # Findings are about shapes: how look-ups spread is told by the tables that were measured, and must not be sampled from a file again.
    model = config.workload.model_copy(update={"data": DataSpec(pooling_kind=config.workload.data.pooling_kind)})
    operators = schedule(model, config.config.partition, 0, config.config.communication).operators
    least_s, balance = WORTH_NAMING * iteration_s(config), _balance(config)
    for verdict in config.verdicts:
        operator = operators.get(verdict.operator)
        if operator is None or verdict.time_s.median < least_s:
            continue
        measured = Measured(
            key=verdict.operator,
            time_s=verdict.time_s.median,
            fractions=verdict.fractions,
            bound_by=verdict.binder,
            knobs=config.config.operators.get(verdict.operator),
            threads=config.config.threads,
            lanes={"scalar": 1, "avx2": 8}.get(config.fingerprint.target, 16),
            balance=balance,
        )
        yield from ((verdict.operator, observation) for observation in operator.findings(measured))


def _balance(config: TunedConfig) -> float | None:
    """The machine's multiply-add peak over its read bandwidth, as a rank meets them; None without a profile."""
    if config.profile is None:
        return None
    ceilings, threads = per_rank(config.profile.ceilings, ranks_on_host(config)), config.config.threads
    return peak_ceiling(ceilings, threads) / stream_ceiling(ceilings, "read", threads)
