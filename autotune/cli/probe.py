"""`autotune probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import JsonOption, RanksOption
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.cli.ranks import open_cores, start_rank, start_ranks, wanted_ranks
from autotune.cli.session import start_default
from autotune.probe.topology import detect
from autotune.report import text

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
    check_outputs(output)
    count = wanted_ranks(sockets, None)
    if count > 1:
        start_ranks(count)
        _probe_rank(refresh, refresh_network, backend, as_json, output)
        return
    start_default(detect())
    from autotune.config.files import write_yaml
    from autotune.probe.store import load_or_probe

    with reporting() as progress:
        profile = load_or_probe(refresh=refresh, progress=progress)
    if output is not None:
        write_yaml(output, profile)
    show(profile, text.profile, as_json)


def _probe_rank(refresh: bool, refresh_network: bool, backend: str, as_json: bool, output: Path | None) -> None:
    """The same on one of several ranks; rank 0 tells."""
    ranks, whole, topology = open_cores()
    start_rank(topology)
    from autotune.config.files import write_yaml
    from autotune.dlrm.ranks import joined
    from autotune.probe.ranks import load_or_probe_ranks

    first = ranks.rank == 0
    with reporting(show=first) as progress, joined(ranks, backend):
        profile = load_or_probe_ranks(whole, backend=backend, refresh=refresh, refresh_network=refresh_network, progress=progress)
    if first:
        if output is not None:
            write_yaml(output, profile)
        show(profile, text.profile, as_json)
