"""`autotune tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune import catalog
from autotune.cli.options import (
    BudgetOption,
    JsonOption,
    MaxRowsOption,
    MinibatchOption,
    ModelArgument,
    SearchSeedOption,
    SocketsOption,
    check_sockets,
)
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.cli.session import select_model, spoken_name, start_default
from autotune.export.targets import default_output
from autotune.probe.topology import available_memory_bytes, detect
from autotune.report import text
from autotune.units import parse_duration

Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="The tuned config; default MODEL.tuned.yaml here.")]


def command(
    model: ModelArgument,
    sockets: SocketsOption = 1,
    budget: BudgetOption = "120s",
    output: Output = None,
    max_rows: MaxRowsOption = None,
    minibatch: MinibatchOption = None,
    seed: SearchSeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Search the fastest configuration and write it to a file. Interrupted, the same command goes on where it was.

    Example: autotune tune small --sockets 1 --budget 120s -o small.tuned.yaml
    """
    check_sockets(sockets)
    budget_s = parse_duration(budget)
    workload = select_model(model, max_rows, minibatch)
    file = output or default_output(workload.name)
    check_outputs(file)
    topology = detect()
    catalog.check_fits(workload, available_memory_bytes(topology))
    start_default(topology)
    from autotune.probe.cache import load_or_probe
    from autotune.tune.study import tune

    with reporting() as progress:
        profile = load_or_probe(progress=progress)
        result = tune(
            workload,
            sockets=sockets,
            budget_s=budget_s,
            output=file,
            seed=seed,
            profile=profile,
            progress=progress,
            name=spoken_name(model, workload),
        )
    show(result, lambda config, width: text.tuned_config(config, width, str(file)), as_json)
