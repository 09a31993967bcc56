"""`autotune probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import JsonOption
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.cli.session import start_default
from autotune.probe.topology import detect
from autotune.report import text

Refresh = Annotated[bool, typer.Option("--refresh", help="Measure again although this machine's profile is in the cache.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Also write the profile as YAML to FILE.")]


def command(refresh: Refresh = False, as_json: JsonOption = False, output: Output = None) -> None:
    """Measure what this machine reaches: arithmetic, bandwidth, row gathers. Kept in the cache for the other commands.

    Example: autotune probe -o profiles/mine.yaml
    """
    check_outputs(output)
    start_default(detect())
    from autotune.config.files import write_yaml
    from autotune.probe.cache import load_or_probe

    with reporting() as progress:
        profile = load_or_probe(refresh=refresh, progress=progress)
    if output is not None:
        write_yaml(output, profile)
    show(profile, text.profile, as_json)
