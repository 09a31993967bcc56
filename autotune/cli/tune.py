"""`autotune tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune import catalog
from autotune.cli.options import (
    BudgetOption,
    DtypeOption,
    JsonOption,
    MaxRowsOption,
    MinibatchOption,
    ModelArgument,
    OptimizerOption,
    RanksOption,
    SearchSeedOption,
)
from autotune.cli.output import check_outputs, say, show
from autotune.cli.progress import reporting
from autotune.cli.ranks import open_rank, rank_cpus, start_ranks, wanted_ranks
from autotune.cli.session import select_model, spoken_name, start_default
from autotune.config.model import Changes
from autotune.dlrm.ranks import from_environment
from autotune.errors import InputError, MachineError
from autotune.export.targets import default_output
from autotune.probe.topology import available_memory_bytes, detect
from autotune.report import text
from autotune.tune.budget import Deadline
from autotune.units import parse_duration

Wire = Annotated[str, typer.Option("--wire", metavar="fp32|any", help="Between sockets: fp32 alone, or bf16 too where that is faster.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="The tuned config; default MODEL.tuned.yaml here.")]


_MAX_RESTARTS = 5


def command(
    model: ModelArgument,
    sockets: RanksOption = None,
    wire: Wire = "fp32",
    budget: BudgetOption = "120s",
    output: Output = None,
    max_rows: MaxRowsOption = None,
    minibatch: MinibatchOption = None,
    dtype: DtypeOption = None,
    optimizer: OptimizerOption = None,
    seed: SearchSeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Search the fastest configuration and write it to a file. Interrupted, the same command goes on where it was.

    Example: autotune tune small --sockets 1 --budget 120s -o small.tuned.yaml
    """
    count = wanted_ranks(sockets, None)
    if wire not in ("fp32", "any"):
        raise InputError(f"the wire dtype must be fp32 or any, got {wire!r} (--wire); any also tries bf16")
    budget_s = parse_duration(budget)
    changes = Changes(max_rows, minibatch, dtype, optimizer)
    workload = select_model(model, changes)
    file = output or default_output(workload.name)
    check_outputs(file)
    if count > 1:
        Deadline(budget_s)
        _start_ranks(count, file)
        _tune_rank(model, wire, budget_s, file, changes, seed, as_json)
        return
    topology = detect()
    catalog.check_fits(workload, available_memory_bytes(topology))
    start_default(topology)
    from autotune.probe.store import load_or_probe
    from autotune.tune.study import tune

    with reporting() as progress:
        profile = load_or_probe(progress=progress)
        result = tune(
            workload,
            sockets=count,
            budget_s=budget_s,
            output=file,
            seed=seed,
            profile=profile,
            progress=progress,
            name=spoken_name(model, workload),
        )
    show(result, lambda config, width: text.tuned_config(config, width, str(file)), as_json)


def _start_ranks(count: int, output: Path) -> None:
    """As `start_ranks`; ranks that a trial ended are started again, and go on with the next trial."""
    from autotune.tune.journal import trial_marker

    marker = trial_marker(output)
    if from_environment() is None:
        marker.unlink(missing_ok=True)  # of a run that was itself interrupted: the trial was not to blame
    for left in reversed(range(_MAX_RESTARTS + 1)):
        try:
            start_ranks(count)
            return
        except MachineError as error:
            if not left or not marker.exists():
                marker.unlink(missing_ok=True)
                raise
            say(f"note: a trial failed, and tuning goes on: {error}")


def _tune_rank(name: str, wire: str, budget_s: float, output: Path, changes: Changes, seed: int, as_json: bool) -> None:
    """The same on one of several ranks; rank 0 tunes, and tells."""
    session = open_rank(name, changes=changes)
    from autotune.cli.lockstep import in_lockstep
    from autotune.config.partition import CommunicationKnobs
    from autotune.probe.ranks import load_or_probe_ranks
    from autotune.tune.ranks import candidate_partitions, default_for_ranks, models_in_memory, race, tune_ranks

    topology, ranks = session.topology, session.ranks
    with reporting(show=session.first) as progress, session.joined() as network:
        profile = load_or_probe_ranks(session.whole, progress=progress)
        partition = session.planned(profile).partition
        assert partition is not None
        default = default_for_ranks(session.model, partition, topology, session.config.communication or CommunicationKnobs())
        keep = models_in_memory(session.model, ranks.world, ranks.local_world, session.whole)
        tasks = {"race": lambda lockstep, keys, seconds, search_seed: race(lockstep, keys, seconds, topology, search_seed)}
        progress.phase("building the model", None)
        with in_lockstep(session, default, network, tasks=tasks, keep_models=keep) as lockstep:
            if lockstep is not None:
                others = candidate_partitions(session.model, partition, profile, ranks.local_world, default.threads)
                planned = others if keep > 1 else others[:1]
                result = tune_ranks(
                    lockstep,
                    profile=profile,
                    whole=session.whole,
                    topology=topology,
                    rank_cpus=rank_cpus(session),
                    partitions=planned,
                    wire=wire,
                    budget_s=budget_s,
                    output=output,
                    seed=seed,
                    name=session.name,
                    progress=progress,
                )
    if session.first:
        show(result, lambda config, width: text.tuned_config(config, width, str(output)), as_json)
