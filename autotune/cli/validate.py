"""`autotune validate`."""

from __future__ import annotations

from typing import Annotated

import typer

from autotune.cli.options import BudgetOption, JsonOption, OutputOption, inputs_of
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.config.words import MAX_SEARCH_SEED
from autotune.units import parse_duration

Models = Annotated[list[str] | None, typer.Argument(metavar="[MODEL...]", help="Shipped models or YAML files, measured first.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=MAX_SEARCH_SEED, metavar="N", help="Of the random models.")]
Refresh = Annotated[bool, typer.Option("--refresh", help="Probe the machine anew first, so that it has changed least.")]


def command(
    models: Models = None,
    seed: Seed = 0,
    budget: BudgetOption = "120s",
    refresh: Refresh = False,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Hold predictions against measurements: on random models until the budget ends, and before them on those named.

    Example: autotune validate small rm2 mlperf-1m --seed 7 --budget 120s
    """
    from autotune import api
    from autotune.report.predict import validation

    check_outputs(output, inputs=[file for model in models or () for file in inputs_of(model)])
    budget_s = parse_duration(budget)
    with reporting() as progress:
        result = api.validate(models or (), seed=seed, budget_s=budget_s, refresh=refresh, progress=progress)
    show(result, validation, as_json, output)
