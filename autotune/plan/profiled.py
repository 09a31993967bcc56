"""A plan from what is known of a machine: its profile, shared among the ranks on it, and its network."""

from __future__ import annotations

from dataclasses import replace

from autotune.config.knobs import RunConfig
from autotune.config.model import FLOAT_BYTES, Model
from autotune.config.partition import Partition
from autotune.config.profile import Profile
from autotune.errors import InputError
from autotune.perf.collectives import nearest_fit
from autotune.perf.share import per_rank
from autotune.plan.constraints import Constraints
from autotune.plan.planner import Plan, plan
from autotune.plan.reuse import observed
from autotune.ranks import group
from autotune.ranks.session import Session


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
        InputError: the constraints allow nothing that the optimizer can do.
    """
    network = profile.network if profile else None
    constraints = constraints or Constraints()
    if model.optimizer == "adagrad":  # row-wise: a number for every row, from the whole of it
        kinds = tuple(kind for kind in constraints.kinds if kind != "column_wise")
        if not kinds:
            raise InputError("row-wise Adagrad needs whole rows, got column_wise as the only kind (--kinds); allow another")
        constraints = replace(constraints, kinds=kinds)
    return plan(
        model,
        ranks,
        ceilings=per_rank(profile.ceilings, ranks_on_host) if profile else None,
        threads=threads,
        memory_per_rank_bytes=memory_per_rank_bytes,
        constraints=constraints,
        optimizer_state_bytes_per_row=FLOAT_BYTES if model.optimizer == "adagrad" else 0,
        reuse=observed(model),
        network_bytes_per_s=nearest_fit(network, "all_to_all", "native").bandwidth_bytes_per_s if network else None,
    )


def planned_config(session: Session, profile: Profile | None = None) -> RunConfig:
    """The session's config, on several ranks with a partition: its own, or one that rank 0 plans. Every rank calls it."""
    if session.config.partition is not None or session.ranks.world == 1:
        return session.config
    return session.config.model_copy(
        update={"partition": planned_partition(session, profile), "communication": session.communication}
    )


def planned_partition(session: Session, profile: Profile | None = None) -> Partition | None:
    """The partition that rank 0 plans for its machine, from the profile or what is known of it; None for one rank. Every rank calls it."""
    from autotune.probe.shared import cached_profile  # brings torch, which planning alone does without

    ranks, partition = session.ranks, None
    if ranks.first and ranks.world > 1:
        known = profile or cached_profile(session.cores.whole, ranks.world, session.communication.backend)
        partition = plan_for(session.model, ranks.world, known, ranks.local_world, session.config.threads).partition
    return group.broadcast(partition)
