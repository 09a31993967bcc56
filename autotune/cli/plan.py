"""`autotune plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import JsonOption, MaxRowsOption, MinibatchOption, ModelArgument, OutputOption
from autotune.cli.output import check_outputs, show
from autotune.cli.session import select_model
from autotune.config.files import load_profile
from autotune.errors import InputError
from autotune.plan.planner import plan
from autotune.report.plan import plan as render
from autotune.units import parse_bytes

Sockets = Annotated[int, typer.Option("--sockets", min=1, metavar="N", help="Sockets to place the tables on.")]
Memory = Annotated[str | None, typer.Option("--memory-per-socket", metavar="SIZE", help="For tables: 96GB, 64GiB.")]
ProfileFile = Annotated[Path | None, typer.Option("--profile", metavar="FILE", help="A socket's profile, as written by probe -o.")]


def command(
    model: ModelArgument,
    sockets: Sockets,
    profile: ProfileFile = None,
    memory_per_socket: Memory = None,
    max_rows: MaxRowsOption = None,
    minibatch: MinibatchOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Place embedding tables on sockets: per rank its tables, memory and predicted time. Runs nothing.

    Example: autotune plan mlperf --sockets 8 --memory-per-socket 64GB
    """
    check_outputs(output)
    workload = select_model(model, max_rows, minibatch)
    limit = None if memory_per_socket is None else parse_bytes(memory_per_socket)
    if limit == 0:
        raise InputError(f"memory per socket must be positive, got {memory_per_socket} (--memory-per-socket); write for example 64GB")
    machine = None if profile is None else load_profile(profile)
    result = plan(
        workload,
        sockets,
        ceilings=machine.ceilings if machine else None,
        threads=max(1, machine.fingerprint.topology.physical_cores // machine.fingerprint.topology.sockets) if machine else 1,
        memory_per_rank_bytes=limit,
    )
    show(result, render, as_json, output)
