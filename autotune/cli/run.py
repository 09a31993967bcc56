"""`autotune run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.catalog import check_fits
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
from autotune.config.model import Changes, Model
from autotune.probe.topology import available_memory_bytes
from autotune.report import text

if TYPE_CHECKING:
    from autotune.dlrm.checkpoint import Checkpoint
    from autotune.dlrm.model import DLRM

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
    from autotune.dlrm.checkpoint import save_checkpoint
    from autotune.dlrm.train import train
    from autotune.report.record import run_result

    if checkpoint_out is not None:
        check_fits(session.model, available_memory_bytes(session.topology), written=True)
    start = None if checkpoint_in is None else _checked(checkpoint_in, session.model)
    with reporting() as progress:
        progress.phase("building the model", None)
        dlrm, source = session.build(seed)
        notes = session.notes if start is None else (*session.notes, *_begin(dlrm, start))
        progress.phase("training", steps)
        training = train(dlrm, source, steps, lambda _, loss: progress.advance(1, f"loss {loss:.4f}"))
    if checkpoint_out is not None:
        meta = {"learning_rate": dlrm.model.learning_rate, "iter": steps}
        save_checkpoint(checkpoint_out, dlrm.state_dict(), meta, dlrm.optimizer_state())
    show(run_result(training, notes), text.run_result, as_json, output)


def _checked(file: Path, model: Model) -> Checkpoint:
    """Raises: InputError: it cannot be read, or is of another model."""
    from autotune.dlrm.checkpoint import check_optimizer_state, check_state, read_checkpoint

    found = read_checkpoint(file)
    check_state(model, found.state, str(file))
    if model.optimizer == "adagrad" and found.optimizer_state:
        check_optimizer_state(model, found.optimizer_state, str(file))
    return found


def _begin(dlrm: DLRM, start: Checkpoint) -> tuple[str, ...]:
    """Put a checkpoint into a model; what is worth a note."""
    dlrm.load_state_dict(start.state)
    if dlrm.model.optimizer == "sgd":
        return ()
    if not start.optimizer_state:
        return ("the checkpoint holds no state of Adagrad: its sums begin at zero",)
    dlrm.load_optimizer_state(start.optimizer_state)
    return ()


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
    from autotune.data.batches import make_source
    from autotune.dlrm.checkpoint import save_checkpoint
    from autotune.dlrm.lockstep import waiting
    from autotune.dlrm.model import DLRM
    from autotune.dlrm.ranks import interface
    from autotune.dlrm.train import train
    from autotune.ops.memory import World
    from autotune.report.record import run_result

    first = session.first
    with reporting(show=first) as progress, session.joined() as network:
        progress.phase("building the model", None)
        source = make_source(session.model, session.data, seed=seed)
        planned = session.planned()
        world = World(session.ranks.rank, session.ranks.world, place_network=network.place, waiting=waiting)
        dlrm = DLRM(session.model, planned, seed, machine=session.topology, world=world)
        begun = () if checkpoint_in is None else _begin(dlrm, _checked(checkpoint_in, session.model))
        progress.phase("training", steps)
        training = train(dlrm, source, steps, lambda _, loss: progress.advance(1, f"loss {loss:.4f}"))
        notes = (*describe(session, planned, interface()), *begun)
        if checkpoint_out is not None:
            weights, sums = dlrm.state_dict(), dlrm.optimizer_state()
            if first:
                save_checkpoint(checkpoint_out, weights, {"learning_rate": session.model.learning_rate, "iter": steps}, sums)
    if first:
        show(run_result(training, notes), text.run_result, as_json, output)
