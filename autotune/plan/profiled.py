"""A plan from what is known of a machine: its profile, shared among the ranks on it, and its network."""

from __future__ import annotations

from autotune.config.model import Model
from autotune.config.profile import Profile
from autotune.perf.network import best_fit
from autotune.perf.share import per_rank
from autotune.plan.constraints import Constraints
from autotune.plan.planner import Plan, plan
from autotune.plan.reuse import observed


def plan_for(
    model: Model,
    ranks: int,
    profile: Profile | None,
    ranks_on_host: int,
    threads: int,
    *,
    memory_per_rank_bytes: float | None = None,
    constraints: Constraints | None = None,
) -> Plan:
    """Place the tables with the rates that each rank meets.

    Args:
        profile: Of one host; None assumes rates.
        ranks_on_host: That share its memory.
        threads: Of a rank.
        memory_per_rank_bytes: For tables; None sets no limit.
        constraints: What the plan must keep.

    Raises:
        MachineError: the tables do not fit.
    """
    network = profile.network if profile else None
    return plan(
        model,
        ranks,
        ceilings=per_rank(profile.ceilings, ranks_on_host) if profile else None,
        threads=threads,
        memory_per_rank_bytes=memory_per_rank_bytes,
        constraints=constraints,
        reuse=observed(model),
        network_bytes_per_s=best_fit(network, "all_to_all", "native").bandwidth_bytes_per_s if network else None,
    )
