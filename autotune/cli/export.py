"""`autotune export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import ConfigArgument
from autotune.cli.output import check_outputs
from autotune.exporting.targets import TARGETS

To = Annotated[str, typer.Option("--to", metavar="|".join(TARGETS), help="Shell lines, JSON, or a script for one or several hosts.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE instead of standard output.")]


def command(config: ConfigArgument, to: To, output: Output = None) -> None:
    """Write a tuned config in the form another launcher reads.

    A script starts one host until the lines marked `edit` at its top name more.

    Example: eval "$(autotune export small.tuned.yaml --to env)"
    """
    from autotune import api
    from autotune.config.files import record_path, write_text_atomic

    check_outputs(output, inputs=[config, record_path(config)])
    text = api.export(config, to)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text_atomic(output, text)
