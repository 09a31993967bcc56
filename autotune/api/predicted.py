"""Commands that run nothing: plans, simulations, explanations and exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.api.arguments import model_of, profile_of, recorded_of, tuned_of
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.model import UNCHANGED, Changes, DataSpec
from autotune.config.partition import CommunicationKnobs
from autotune.config.profile import Profile
from autotune.config.tuned import TunedConfig
from autotune.ranks.session import ModelName

if TYPE_CHECKING:
    import pandas as pd

    from autotune.explaining.diagnosis import Explanation
    from autotune.explaining.whatif import WhatIf
    from autotune.perf.table import OperatorTable
    from autotune.planning.constraints import Constraints
    from autotune.planning.planner import Plan
    from autotune.planning.scaling import Placing, Scaling


def plan(
    model: ModelName,
    sockets: int,
    *,
    profile: Profile | str | Path | None = None,
    memory_per_socket_bytes: float | None = None,
    constraints: Constraints | None = None,
    data: DataSpec | None = None,
    changes: Changes = UNCHANGED,
) -> Plan:
    """Embedding tables placed on sockets: per rank its tables, memory and predicted time. Runs nothing. See `planning.planner.Planner`."""
    from autotune.planning.constraints import Constraints
    from autotune.planning.planner import Planner

    workload = model_of(model).changed(changes)
    workload = workload if data is None else workload.model_copy(update={"data": data})
    machine = None if profile is None else profile_of(profile)
    demands = constraints or Constraints()
    return Planner(workload, sockets, machine, memory_per_rank_bytes=memory_per_socket_bytes, constraints=demands).plan()


def scale(
    model: ModelName,
    profile: Profile | str | Path,
    sockets: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    *,
    minibatch_per_socket: int | None = None,
    global_minibatch: int | None = None,
    placing: Placing = "planned",
    communication: CommunicationKnobs | None = None,
    overhead_s: float = 0.0,
    input_s: float = 0.0,
    memory_per_socket_bytes: int | None = None,
    changes: Changes = UNCHANGED,
    progress: Progress = NO_PROGRESS,
) -> Scaling:
    """A model on N sockets of a machine, simulated from its profile alone. Runs nothing. See `planning.scaling.scale`."""
    from autotune.planning import scaling

    return scaling.scale(
        model_of(model).changed(changes),
        profile_of(profile),
        sockets,
        minibatch_per_socket=minibatch_per_socket,
        global_minibatch=global_minibatch,
        placing=placing,
        communication=communication or CommunicationKnobs(),
        overhead_s=overhead_s,
        input_s=input_s,
        memory_per_socket_bytes=memory_per_socket_bytes,
        progress=progress,
    )


def explain(
    config: TunedConfig | str | Path, *, changes: Sequence[str] = (), common: bool = False, timeline: bool = False
) -> Explanation:
    """What was chosen, what each choice gained, what bounds every operator pass, and what is left.

    Args:
        changes: What-ifs to predict beside it, as `what_if` takes them.
        common: Predict the usual what-ifs too.
        timeline: Predict the timelines.
    """
    from autotune.explaining.forecast import forecast

    return forecast(recorded_of(config), changes, common=common, timeline=timeline)


def what_if(config: TunedConfig | str | Path, changes: str) -> WhatIf:
    """What ``bandwidth=2x,cores=56,dtype=bf16`` would change, predicted. See `explaining.whatif.what_if`."""
    from autotune.explaining import whatif

    return whatif.what_if(recorded_of(config), changes)


def export(config: TunedConfig | str | Path, to: str) -> str:
    """The config as text for another launcher: env, torchrun, slurm, mpirun or json."""
    from autotune.exporting.targets import check_target
    from autotune.exporting.targets import export as export_text

    check_target(to)
    return export_text(tuned_of(config), to, None if isinstance(config, TunedConfig) else config)


def frame(result: OperatorTable | Profile | TunedConfig | Explanation) -> pd.DataFrame:
    """The main table of a result as a pandas frame: operator passes, ceilings, gains, or findings.

    Intervals and mappings become columns of their own (see `bench.frames.frame_of`); a ceiling's line names it in `ceiling`.
    """
    import pandas as pd

    from autotune.bench.frames import frame_of
    from autotune.perf.table import OperatorTable

    if isinstance(result, OperatorTable):
        return result.frame()
    if isinstance(result, TunedConfig):
        return frame_of(result.gains)
    if not isinstance(result, Profile):
        return frame_of(result.findings)
    parts = {name: frame_of(getattr(result.ceilings, name)) for name in type(result.ceilings).model_fields}
    return pd.concat([part.assign(ceiling=name) for name, part in parts.items() if len(part)], ignore_index=True)
