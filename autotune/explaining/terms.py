"""Terms that every part of the explainer shares."""

from __future__ import annotations

from autotune.config.tuned import MeasuredPass, TunedConfig
from autotune.ops.base import family_of, operator_of
from autotune.perf.roofline import Reason, reason

OTHER = "other"
"""The verdict that stands for the time outside every operator."""
ITERATION = "iteration"
"""The operator of a gain that concerns the whole step."""

# Shares below this are lost in the noise of an iteration (10 % between quartiles), whatever binds them.
WORTH_NAMING = 0.01


def is_transfer_key(operator: str) -> bool:
    """Whether a pass waits for other ranks."""
    kind = operator_of(operator)
    return kind is not None and kind.waits_for_others


def is_transfer(verdict: MeasuredPass) -> bool:
    return is_transfer_key(verdict.operator)


def iteration_s(config: TunedConfig) -> float:
    """Sum of the passes' medians."""
    return sum(verdict.time_s.median for verdict in config.verdicts)


def above_ceiling_s(verdict: MeasuredPass) -> float:
    """Time above the nearest ceiling; 0 where no ceiling describes the pass."""
    return verdict.above_ceiling_s or 0.0


def below(verdict: MeasuredPass) -> Reason | None:
    """What rules a pass below every ceiling; None where that was not measured."""
    if verdict.binder != "none" or verdict.parts is None:
        return None
    return reason(verdict.parts, max(verdict.fractions.values(), default=0.0))


def ranks_on_host(config: TunedConfig) -> int:
    """Ranks that shared the machine that tuned."""
    return max(1, len(config.launch.rank_cpus))


def family(operator: str) -> str:
    """Name of the family of an operator pass."""
    return family_of(operator).name


def reads_tables(operator: str) -> bool:
    """Whether a pass is bound by random rows of embedding tables."""
    kind = operator_of(operator)
    return kind is not None and kind.interleaved
