"""`autotune tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli import options
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.config.words import Changes
from autotune.units import parse_duration

Wire = Annotated[str, typer.Option("--wire", metavar="fp32|any", help="Between sockets: fp32 alone, or bf16 too where that is faster.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="The tuned config; default MODEL.tuned.yaml here.")]


def command(
    model: options.ModelArgument,
    sockets: options.RanksOption = None,
    wire: Wire = "fp32",
    budget: options.BudgetOption = "120s",
    output: Output = None,
    max_rows: options.MaxRowsOption = None,
    minibatch: options.MinibatchOption = None,
    dtype: options.DtypeOption = None,
    table_storage: options.TableStorageOption = None,
    optimizer: options.OptimizerOption = None,
    seed: options.SearchSeedOption = 0,
    as_json: options.JsonOption = False,
) -> None:
    """Search the fastest configuration and write it to a file. Interrupted, the same command goes on where it was.

    Example: autotune tune small --sockets 1 --budget 120s -o small.tuned.yaml
    """
    from autotune import api
    from autotune.exporting.targets import default_output
    from autotune.report import text

    changes = Changes(max_rows, minibatch, dtype, optimizer, table_storage)
    file = output or default_output(api.load_model(model).changed(changes).name)
    check_outputs(file, inputs=options.inputs_of(model))
    with reporting() as progress:
        result = api.tune(
            model,
            sockets=sockets,
            budget_s=parse_duration(budget),
            output=file,
            changes=changes,
            wire=wire,
            seed=seed,
            progress=progress,
        )
    show(result, lambda config, width: text.tuned_config(config, width, str(file)), as_json)
