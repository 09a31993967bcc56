"""`autotune run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import (
    DataOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    MaxRowsOption,
    MinibatchOption,
    ModelArgument,
    OptimizerOption,
    OutputOption,
    RanksOption,
    SeedOption,
    ThreadsOption,
    TunedOption,
)
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.cli.ranks import describe, open_rank, start_ranks, wanted_ranks
from autotune.cli.session import open_session
from autotune.config.model import Changes
from autotune.report import text

Steps = Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Training iterations.")]
CheckpointIn = Annotated[
    Path | None, typer.Option("--checkpoint-in", metavar="FILE", help="Start from these weights, under the public DLRM's names.")
]
CheckpointOut = Annotated[Path | None, typer.Option("--checkpoint-out", metavar="FILE", help="Write the trained weights to FILE.")]


def command(
    model: ModelArgument,
    steps: Steps = 50,
    config: TunedOption = None,
    force: ForceOption = False,
    data: DataOption = None,
    max_rows: MaxRowsOption = None,
    minibatch: MinibatchOption = None,
    dtype: DtypeOption = None,
    optimizer: OptimizerOption = None,
    threads: ThreadsOption = None,
    sockets: RanksOption = None,
    seed: SeedOption = None,
    checkpoint_in: CheckpointIn = None,
    checkpoint_out: CheckpointOut = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Train a model: time per iteration, samples per second, loss, and AUC where labels are real.

    Example: autotune run small --steps 100 --config small.tuned.yaml
    """
    check_outputs(checkpoint_out, output)
    count = wanted_ranks(sockets, config)
    changes = Changes(max_rows, minibatch, dtype, optimizer)
    if count > 1:
        start_ranks(count)
        _run_rank(model, steps, config, force, data, changes, threads, seed, checkpoint_in, checkpoint_out, as_json, output)
        return
    session = open_session(model, changes=changes, threads=threads, data=data, config_file=config, force=force)
    from autotune.dlrm.checkpoint import check_state, load_checkpoint, save_checkpoint
    from autotune.dlrm.train import train
    from autotune.report.record import run_result

    state = None
    if checkpoint_in is not None:
        state = load_checkpoint(checkpoint_in)
        check_state(session.model, state, str(checkpoint_in))
    with reporting() as progress:
        progress.phase("building the model", None)
        dlrm, source = session.build(seed)
        if state is not None:
            dlrm.load_state_dict(state)
        progress.phase("training", steps)
        training = train(dlrm, source, steps, lambda _, loss: progress.advance(1, f"loss {loss:.4f}"))
    if checkpoint_out is not None:
        save_checkpoint(checkpoint_out, dlrm.state_dict(), {"learning_rate": dlrm.model.learning_rate, "iter": steps})
    show(run_result(training, session.notes), text.run_result, as_json, output)


def _run_rank(
    name: str,
    steps: int,
    config: Path | None,
    force: bool,
    data: str | None,
    changes: Changes,
    threads: int | None,
    seed: int | None,
    checkpoint_in: Path | None,
    checkpoint_out: Path | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """The same on one of several ranks; rank 0 tells."""
    session = open_rank(name, changes=changes, threads=threads, data=data, config_file=config, force=force)
    from autotune.dlrm.checkpoint import check_state, load_checkpoint, save_checkpoint
    from autotune.dlrm.data import make_source
    from autotune.dlrm.parallel import ParallelDLRM
    from autotune.dlrm.ranks import interface
    from autotune.dlrm.train import train
    from autotune.report.record import run_result

    first = session.first
    with reporting(show=first) as progress, session.joined() as network:
        progress.phase("building the model", None)
        source = make_source(session.model, session.data, seed=seed)
        planned = session.planned()
        dlrm = ParallelDLRM(session.model, planned, seed, machine=session.topology, place_network=network.place)
        if checkpoint_in is not None:
            state = load_checkpoint(checkpoint_in)
            check_state(session.model, state, str(checkpoint_in))
            dlrm.load_state_dict(state)
        progress.phase("training", steps)
        training = train(dlrm, source, steps, lambda _, loss: progress.advance(1, f"loss {loss:.4f}"))
        notes = describe(session, planned, interface())
        if checkpoint_out is not None:
            weights = dlrm.state_dict()
            if first:
                save_checkpoint(checkpoint_out, weights, {"learning_rate": session.model.learning_rate, "iter": steps})
    if first:
        show(run_result(training, notes), text.run_result, as_json, output)
