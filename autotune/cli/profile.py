"""`autotune profile`."""

from __future__ import annotations

from typing import Annotated

import typer

from autotune.cli import options
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.config.words import Changes

Prove = Annotated[bool, typer.Option("--prove", help="Test every verdict: data resident in cache, and half the threads.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, metavar="N", help="Iterations measured.")]


def command(
    model: options.ModelArgument,
    config: options.TunedOption = None,
    force: options.ForceOption = False,
    data: options.DataOption = None,
    max_rows: options.MaxRowsOption = None,
    minibatch: options.MinibatchOption = None,
    dtype: options.DtypeOption = None,
    table_storage: options.TableStorageOption = None,
    optimizer: options.OptimizerOption = None,
    threads: options.ThreadsOption = None,
    sockets: options.RanksOption = None,
    seed: options.SeedOption = None,
    rounds: Rounds = 20,
    prove: Prove = False,
    as_json: options.JsonOption = False,
    output: options.OutputOption = None,
) -> None:
    """Tell for every operator pass its time, its work, and what bounds it.

    Example: autotune profile mlperf-1m --threads 2 --prove
    """
    from autotune import api
    from autotune.report import text

    check_outputs(output, inputs=[config, *options.inputs_of(model, data)])
    with reporting() as progress:
        result = api.profile(
            model,
            sockets=sockets,
            threads=threads,
            config=config,
            data=options.data_of(data, model),
            changes=Changes(max_rows, minibatch, dtype, optimizer, table_storage),
            seed=seed,
            rounds=rounds,
            prove=prove,
            force=force,
            progress=progress,
        )
    show(result, text.operator_table, as_json, output)
