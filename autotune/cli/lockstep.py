"""The ranks of a command as one model that rank 0 drives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from autotune.cli.ranks import RankSession
from autotune.config.knobs import RunConfig
from autotune.data.batches import make_source
from autotune.dlrm.lockstep import Lockstep, Task, take_recorded
from autotune.perf.ranks import describe_rank, prove_rank, spans_of_ranks, time_talks
from autotune.perf.tables import tables_of_ranks
from autotune.probe.core_sets import NetworkThreads

_ALL: tuple[Task, ...] = (take_recorded, time_talks, describe_rank, prove_rank, spans_of_ranks, tables_of_ranks)
TASKS: Mapping[str, Task] = {task.__name__: task for task in _ALL}


@contextmanager
def in_lockstep(
    session: RankSession,
    config: RunConfig,
    network: NetworkThreads,
    seed: int | None = None,
    tasks: Mapping[str, Task] | None = None,
    keep_models: int = 1,
) -> Iterator[Lockstep | None]:
    """Inside, rank 0 has the model to drive; every other rank has followed to the end, and has None."""
    lockstep = Lockstep(
        session.model,
        config,
        make_source(session.model, session.data, seed=seed),
        seed,
        machine=session.topology,
        place_network=network.place,
        tasks={**TASKS, **(tasks or {})},
        keep_models=keep_models,
    )
    if session.first:
        yield lockstep
        lockstep.end()
    else:
        lockstep.follow()
        yield None
