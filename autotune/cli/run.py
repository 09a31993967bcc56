"""`autotune run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli import options
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.config.words import Changes

Steps = Annotated[
    int | None,
    typer.Option("--steps", min=1, metavar="N", help="Iterations; default 50, or to evaluate every row of a file once."),
]
Evaluate = Annotated[
    bool, typer.Option("--evaluate", help="Forward passes alone: loss, AUC and accuracy of the weights, which stay as they are.")
]
Categories = Annotated[
    str | None,
    typer.Option(
        "--categories",
        metavar="hashed|modulo|rows|dictionary:FILE",
        help="How a Criteo category becomes a row: as the checkpoint was trained. FILE is one of the public DLRM's ..._fea_dict_0.npz.",
    ),
]
CheckpointIn = Annotated[
    Path | None, typer.Option("--checkpoint-in", metavar="FILE", help="Start from these weights, under the public DLRM's names.")
]
CheckpointOut = Annotated[Path | None, typer.Option("--checkpoint-out", metavar="FILE", help="Write the trained weights to FILE.")]


def command(
    model: options.ModelArgument,
    steps: Steps = None,
    evaluate: Evaluate = False,
    config: options.TunedOption = None,
    force: options.ForceOption = False,
    data: options.DataOption = None,
    categories: Categories = None,
    max_rows: options.MaxRowsOption = None,
    minibatch: options.MinibatchOption = None,
    dtype: options.DtypeOption = None,
    table_storage: options.TableStorageOption = None,
    optimizer: options.OptimizerOption = None,
    threads: options.ThreadsOption = None,
    sockets: options.RanksOption = None,
    seed: options.SeedOption = None,
    checkpoint_in: CheckpointIn = None,
    checkpoint_out: CheckpointOut = None,
    as_json: options.JsonOption = False,
    output: options.OutputOption = None,
) -> None:
    """Train a model, or evaluate a checkpoint: time per iteration, samples per second, loss, and AUC where labels are real.

    Example: autotune run small --steps 100 --config small.tuned.yaml
    """
    from autotune import api
    from autotune.report import text

    check_outputs(checkpoint_out, output, inputs=[config, *options.inputs_of(model, data, categories)])
    check_outputs(output, inputs=[checkpoint_in])  # new weights may take the place of those that training went on from
    with reporting() as progress:
        result = api.run(
            model,
            steps=steps,
            evaluate=evaluate,
            sockets=sockets,
            threads=threads,
            config=config,
            data=options.data_of(data, model, categories),
            changes=Changes(max_rows, minibatch, dtype, optimizer, table_storage),
            seed=seed,
            checkpoint_in=checkpoint_in,
            checkpoint_out=checkpoint_out,
            force=force,
            progress=progress,
        )
    show(result, text.run_result, as_json, output)
