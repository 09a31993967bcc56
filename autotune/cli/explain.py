"""`autotune explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from autotune.cli.options import ConfigArgument, JsonOption, OutputOption
from autotune.cli.output import check_outputs, show
from autotune.config.files import load_tuned
from autotune.explain.diagnosis import explain
from autotune.report import predict as predictions
from autotune.report import text

WhatIf = Annotated[str | None, typer.Option("--what-if", metavar="CHANGES", help="Predict: bandwidth=2x,cores=56,dtype=bf16.")]


def command(config: ConfigArgument, what_if: WhatIf = None, as_json: JsonOption = False, output: OutputOption = None) -> None:
    """Tell what a tuned config chose, what each choice gained, what binds each operator, and what is left.

    Example: autotune explain small.tuned.yaml
    """
    check_outputs(output)
    if what_if is not None:
        from autotune.explain.whatif import what_if as predict

        show(predict(load_tuned(config), what_if), predictions.what_if, as_json, output)
        return
    show(explain(load_tuned(config)), text.explanation, as_json, output)
