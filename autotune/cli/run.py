"""`autotune run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune import api
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
    data_of,
)
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
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
    with reporting() as progress:
        result = api.run(
            model,
            steps=steps,
            sockets=sockets,
            threads=threads,
            config=config,
            data=data_of(data, model),
            changes=Changes(max_rows, minibatch, dtype, optimizer),
            seed=seed,
            checkpoint_in=checkpoint_in,
            checkpoint_out=checkpoint_out,
            force=force,
            progress=progress,
        )
    show(result, text.run_result, as_json, output)
