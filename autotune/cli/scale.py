"""`autotune scale`."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer

from autotune.cli.options import JsonOption, MaxRowsOption, ModelArgument, OutputOption, inputs_of
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.config.words import ALL_TO_ALL_FORMS, DTYPES, MAX_RANKS, AllToAllForm, Changes
from autotune.errors import InputError
from autotune.units import parse_bytes, parse_duration

Sockets = Annotated[str, typer.Option("--sockets", metavar="N,N2", help="Counts to simulate: 1,2,4,8.")]
ProfileName = Annotated[str, typer.Option("--profile", metavar="P", help="A shipped profile, or a file by probe -o.")]
PerSocket = Annotated[int | None, typer.Option("--minibatch-per-socket", min=1, metavar="N", help="Weak scaling.")]
Global = Annotated[int | None, typer.Option("--global-minibatch", min=1, metavar="N", help="Strong scaling; default the model's.")]
Placing = Annotated[str, typer.Option("--placing", metavar="planned|columns", help="columns: small tables copied, others column-split.")]
Dtype = Annotated[str | None, typer.Option("--dtype", metavar="fp32|bf16", help="Instead of the model's.")]
Wire = Annotated[str, typer.Option("--wire", metavar="fp32|bf16", help="Of pooled rows between sockets.")]
Form = Annotated[str, typer.Option("--all-to-all", metavar="FORM", help=f"One of {', '.join(ALL_TO_ALL_FORMS)}.")]
Overhead = Annotated[str | None, typer.Option("--overhead", metavar="TIME", help="Added to every step: another system's framework.")]
Input = Annotated[str | None, typer.Option("--input", metavar="TIME", help="Added for every 1000 samples: input read before the step.")]
Memory = Annotated[str | None, typer.Option("--memory-per-socket", metavar="SIZE", help="Instead of the profile's: 96GB, 64GiB.")]
CommunicationCores = Annotated[int, typer.Option("--communication-cores", min=0, metavar="N", help="Of a socket, left to the network.")]


def command(
    model: ModelArgument,
    profile: ProfileName,
    sockets: Sockets = "1,2,4,8,16,32,64",
    minibatch_per_socket: PerSocket = None,
    global_minibatch: Global = None,
    placing: Placing = "planned",
    dtype: Dtype = None,
    wire: Wire = "fp32",
    all_to_all: Form = "native",
    communication_cores: CommunicationCores = 0,
    overhead: Overhead = None,
    input_time: Input = None,
    memory_per_socket: Memory = None,
    max_rows: MaxRowsOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Simulate a model on N sockets of a machine, from its profile alone: time, efficiency, what transfers expose, memory. Runs nothing.

    Example: autotune scale mlperf --profile xeon-8380h-4s --sockets 4,8,16,32 --global-minibatch 32768
    """
    from autotune import api
    from autotune.config.partition import CommunicationKnobs
    from autotune.report.predict import scaling

    check_outputs(output, inputs=[profile, *inputs_of(model)])
    counts = _counts(sockets)
    chosen = (("--placing", placing, ("planned", "columns")), ("--wire", wire, DTYPES), ("--all-to-all", all_to_all, ALL_TO_ALL_FORMS))
    for name, value, known in chosen:
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}; correct it")
    with reporting() as progress:
        result = api.scale(
            model,
            profile,
            counts,
            minibatch_per_socket=minibatch_per_socket,
            global_minibatch=global_minibatch,
            placing=cast(Literal["planned", "columns"], placing),
            communication=CommunicationKnobs(
                wire_dtype="bf16" if wire == "bf16" else "fp32",
                all_to_all=cast(AllToAllForm, all_to_all),
                communication_cores=communication_cores,
            ),
            overhead_s=0.0 if overhead is None else parse_duration(overhead),
            input_s=0.0 if input_time is None else parse_duration(input_time) / 1000,
            memory_per_socket_bytes=None if memory_per_socket is None else parse_bytes(memory_per_socket) or None,
            changes=Changes(max_rows, dtype=dtype),
            progress=progress,
        )
    show(result, scaling, as_json, output)


def _counts(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and len(word) < 9 and 1 <= int(word) <= MAX_RANKS for word in words):
        raise InputError(f"sockets must be counts from 1 to {MAX_RANKS}, got {text!r} (--sockets); write for example --sockets 1,2,4,8")
    return [int(word) for word in words]
