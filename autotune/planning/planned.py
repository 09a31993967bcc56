"""The partition that the ranks of a session agree on: rank 0 plans it for its machine."""

from __future__ import annotations

from autotune.config.knobs import RunConfig
from autotune.config.partition import Partition
from autotune.config.profile import Profile
from autotune.planning.planner import Planner
from autotune.ranks import group
from autotune.ranks.session import Session


def planned_config(session: Session, profile: Profile | None = None) -> RunConfig:
    """The session's config, on several ranks with a partition: its own, or one that rank 0 plans. Every rank calls it."""
    if session.config.partition is not None or session.ranks.world == 1:
        return session.config
    return session.config.model_copy(update={"partition": planned_partition(session, profile), "communication": session.communication})


def planned_partition(session: Session, profile: Profile | None = None) -> Partition | None:
    """The partition that rank 0 plans for its machine, from the profile or what is known of it; None for one rank. Every rank calls it."""
    from autotune.probing.shared import cached_profile  # brings torch, which planning alone does without

    ranks, partition = session.ranks, None
    if ranks.first and ranks.world > 1:
        known = profile or cached_profile(session.cores.whole, ranks.world, session.communication.backend)
        planner = Planner(session.model, ranks.world, known, ranks_on_host=ranks.local_world, threads=session.config.threads)
        partition = planner.partition()
    return group.broadcast(partition)
