"""`autotune plan`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, cast

import typer

from autotune.cli.options import (
    DataOption,
    DtypeOption,
    JsonOption,
    MaxRowsOption,
    MinibatchOption,
    ModelArgument,
    OptimizerOption,
    OutputOption,
    TableStorageOption,
    data_of,
    inputs_of,
)
from autotune.cli.output import check_outputs, show
from autotune.config.words import KINDS, Changes, Kind
from autotune.errors import InputError
from autotune.units import parse_bytes

if TYPE_CHECKING:
    from autotune.planning.constraints import Constraints

Sockets = Annotated[int, typer.Option("--sockets", min=1, metavar="N", help="Sockets to place the tables on.")]
Memory = Annotated[str | None, typer.Option("--memory-per-socket", metavar="SIZE", help="For tables: 96GB, 64GiB.")]
ProfileName = Annotated[str | None, typer.Option("--profile", metavar="NAME", help="A shipped profile, or a file by probe -o.")]
Pin = Annotated[list[str] | None, typer.Option("--pin", metavar="T=R", help="Table T whole on rank R. Repeatable.")]
Forbid = Annotated[list[str] | None, typer.Option("--forbid", metavar="T=R[,R2]", help="No part of table T on these ranks. Repeatable.")]
Together = Annotated[list[str] | None, typer.Option("--together", metavar="T,T2", help="Tables whole on one rank. Repeatable.")]
Kinds = Annotated[str | None, typer.Option("--kinds", metavar="KIND[,KIND]", help=f"Only these: {', '.join(KINDS)}.")]
SplitAbove = Annotated[str | None, typer.Option("--split-above", metavar="SIZE", help="Tables up to SIZE are never split: 1GB.")]

# Nine digits are above any number of tables or ranks.
_PAIR = re.compile(r"\s*(\d{1,9})\s*=\s*(\d{1,9}(?:\s*,\s*\d{1,9})*)\s*", re.ASCII)
_LIST = re.compile(r"\s*\d{1,9}(?:\s*,\s*\d{1,9})*\s*", re.ASCII)


def command(
    model: ModelArgument,
    sockets: Sockets,
    profile: ProfileName = None,
    memory_per_socket: Memory = None,
    pin: Pin = None,
    forbid: Forbid = None,
    together: Together = None,
    kinds: Kinds = None,
    split_above: SplitAbove = None,
    data: DataOption = None,
    max_rows: MaxRowsOption = None,
    minibatch: MinibatchOption = None,
    dtype: DtypeOption = None,
    table_storage: TableStorageOption = None,
    optimizer: OptimizerOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Place embedding tables on sockets: per rank its tables, memory and predicted time. Runs nothing.

    Example: autotune plan mlperf --sockets 8 --memory-per-socket 64GB --pin 0=3 --kinds table_wise,row_wise
    """
    check_outputs(output, inputs=[profile, *inputs_of(model, data)])
    constraints = _constraints(pin or (), forbid or (), together or (), kinds, split_above)
    limit = None if memory_per_socket is None else parse_bytes(memory_per_socket)
    if limit == 0:
        raise InputError(f"memory per socket must be positive, got {memory_per_socket} (--memory-per-socket); write for example 64GB")
    from autotune import api
    from autotune.report.plan import plan as render

    result = api.plan(
        model,
        sockets,
        profile=profile,
        memory_per_socket_bytes=limit,
        constraints=constraints,
        data=data_of(data, model),
        changes=Changes(max_rows, minibatch, dtype, optimizer, table_storage),
    )
    show(result, render, as_json, output)


def _constraints(
    pin: Sequence[str], forbid: Sequence[str], together: Sequence[str], kinds: str | None, split_above: str | None
) -> Constraints:
    """What the options demand. Raises: InputError: one cannot be read, or a table is pinned to two ranks."""
    pins: dict[int, int] = {}
    for text in pin:
        t, ranks = _pair(text, "a pin is TABLE=RANK", "--pin 3=0")
        if len(ranks) > 1 or pins.get(t, ranks[0]) != ranks[0]:
            got = ", ".join(map(str, dict.fromkeys((*([pins[t]] if t in pins else ()), *ranks))))
            raise InputError(f"a table is pinned to one rank, got {got} for table {t} (--pin {text}); keep one of them")
        pins[t] = ranks[0]
    forbidden: dict[int, tuple[int, ...]] = {}
    for text in forbid:
        t, ranks = _pair(text, "forbidden ranks are TABLE=RANK[,RANK]", "--forbid 3=0,1")
        forbidden[t] = tuple(sorted({*forbidden.get(t, ()), *ranks}))
    for text in together:
        if not _LIST.fullmatch(text):
            raise InputError(f"tables that lie together are TABLE,TABLE, got {text!r} (--together); write for example --together 3,4")
    from autotune.planning.constraints import Constraints

    return Constraints(
        pin=pins,
        forbid=forbidden,
        together=tuple(_numbers(text) for text in together),
        kinds=KINDS if kinds is None else cast(tuple[Kind, ...], tuple(kind.strip() for kind in kinds.split(","))),
        split_above_bytes=0 if split_above is None else parse_bytes(split_above),
    )


def _pair(text: str, rule: str, example: str) -> tuple[int, tuple[int, ...]]:
    match = _PAIR.fullmatch(text)
    if match is None:
        raise InputError(f"{rule}, got {text!r} ({example.split()[0]}); write for example {example}")
    return int(match[1]), _numbers(match[2])


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
