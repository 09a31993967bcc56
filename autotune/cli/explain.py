"""`autotune explain`."""

from __future__ import annotations

from autotune.cli.options import ConfigArgument, JsonOption, OutputOption
from autotune.cli.output import check_outputs, show
from autotune.config.files import load_tuned
from autotune.explain.diagnosis import explain
from autotune.report import text


def command(config: ConfigArgument, as_json: JsonOption = False, output: OutputOption = None) -> None:
    """Tell what a tuned config chose, what each choice gained, what binds each operator, and what is left.

    Example: autotune explain small.tuned.yaml
    """
    check_outputs(output)
    show(explain(load_tuned(config)), text.explanation, as_json, output)
