"""`autotune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import (
    DtypeOption,
    ForceOption,
    JsonOption,
    MaxRowsOption,
    MinibatchOption,
    ModelArgument,
    OutputOption,
    SearchSeedOption,
    TableStorageOption,
    inputs_of,
)
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.comparing.peers import DEFAULT_IN_FP32, PEERS, Peer
from autotune.config.words import Changes
from autotune.errors import InputError
from autotune.units import parse_duration

_KNOWN = {peer.name: peer for peer in (*PEERS, DEFAULT_IN_FP32)}

Budget = Annotated[str, typer.Option("--budget", metavar="TIME", help="For everything: probing, building, comparing.")]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="A tuned config, to take part beside the default.")]
Only = Annotated[str | None, typer.Option("--peers", metavar="A,B", help=f"Only these of: {', '.join(_KNOWN)}.")]
Cached = Annotated[bool, typer.Option("--cached-profile", help="Take the stored ceilings for the bound instead of probing anew.")]


def command(
    model: ModelArgument,
    config: Config = None,
    peers: Only = None,
    budget: Budget = "300s",
    cached_profile: Cached = False,
    max_rows: MaxRowsOption = None,
    minibatch: MinibatchOption = None,
    dtype: DtypeOption = None,
    table_storage: TableStorageOption = None,
    seed: SearchSeedOption = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Time one training iteration of ours and of every other way that is installed, side by side, and how far each is from the bound.

    Stock PyTorch in its best environment is the baseline. fbgemm and torchrec take part where they are installed: pip install '.[peers]'
    brings them, for torch 2.13. With --dtype bf16 peers have bf16 tables and autocast; ours in fp32 takes fbgemm's and torchrec's place.

    Example: autotune compare small --config small.tuned.yaml --budget 300s
    """
    from autotune import api
    from autotune.report.compare import comparison

    check_outputs(output, inputs=[config, *inputs_of(model)])
    with reporting() as progress:
        result = api.compare(
            model,
            config=config,
            peers=_chosen(peers),
            budget_s=parse_duration(budget),
            cached_profile=cached_profile,
            changes=Changes(max_rows, minibatch, dtype, table_storage=table_storage),
            seed=seed,
            force=force,
            progress=progress,
        )
    show(result, comparison, as_json, output)


def _chosen(names: str | None) -> tuple[Peer, ...] | None:
    """Raises: InputError: an unknown name, or none."""
    if names is None:
        return None
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in _KNOWN]
    if unknown or not wanted:
        raise InputError(f"peers must be among {', '.join(_KNOWN)}, got {', '.join(unknown) or 'none'} (--peers); leave it out for all")
    return tuple(peer for name, peer in _KNOWN.items() if name in wanted)
