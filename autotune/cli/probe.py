"""`autotune probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import JsonOption, RanksOption
from autotune.cli.output import check_outputs, show, speaks
from autotune.cli.progress import reporting

Refresh = Annotated[bool, typer.Option("--refresh", help="Measure again although this machine's profile is in the cache.")]
RefreshNetwork = Annotated[bool, typer.Option("--refresh-network", help="Measure the network again; the machine's ceilings stay.")]
Backend = Annotated[str, typer.Option("--backend", metavar="NAME", help="Of torch.distributed, with --sockets.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Also write the profile as YAML to FILE.")]


def command(
    refresh: Refresh = False,
    refresh_network: RefreshNetwork = False,
    sockets: RanksOption = None,
    backend: Backend = "gloo",
    as_json: JsonOption = False,
    output: Output = None,
) -> None:
    """Measure what this machine reaches: arithmetic, bandwidth, row gathers. Kept in the cache for the other commands.

    With --sockets N also the network between N ranks: transfers by size, interfaces, talking while computing.

    Example: autotune probe -o profiles/mine.yaml
    """
    from autotune import api
    from autotune.config.files import write_yaml
    from autotune.report import text

    check_outputs(output)
    with reporting() as progress:
        profile = api.probe(sockets=sockets, refresh=refresh, refresh_network=refresh_network, backend=backend, progress=progress)
    if output is not None and speaks():
        write_yaml(output, profile)
    show(profile, text.profile, as_json)
