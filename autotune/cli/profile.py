"""`autotune profile`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from autotune.cli.options import (
    DataOption,
    ForceOption,
    JsonOption,
    MaxRowsOption,
    MinibatchOption,
    ModelArgument,
    OutputOption,
    SeedOption,
    ThreadsOption,
    TunedOption,
)
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.cli.session import open_session
from autotune.report import text

Prove = Annotated[bool, typer.Option("--prove", help="Test every verdict: data resident in cache, and half the threads.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, metavar="N", help="Iterations measured.")]


def command(
    model: ModelArgument,
    config: TunedOption = None,
    force: ForceOption = False,
    data: DataOption = None,
    max_rows: MaxRowsOption = None,
    minibatch: MinibatchOption = None,
    threads: ThreadsOption = None,
    seed: SeedOption = None,
    rounds: Rounds = 20,
    prove: Prove = False,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Tell for every operator pass its time, its work, and what bounds it.

    Example: autotune profile mlperf-1m --threads 2 --prove
    """
    check_outputs(output)
    session = open_session(
        model, max_rows=max_rows, minibatch=minibatch, threads=threads, data=data, config_file=config, force=force, all_cores=True
    )
    from autotune.perf.measure import measure
    from autotune.perf.perturb import perturb
    from autotune.probe.cache import load_or_probe

    with reporting() as progress:
        ceilings = load_or_probe(progress=progress)
        progress.phase("building the model", None)
        dlrm, source = session.build(seed)
        table = measure(dlrm, source, ceilings, rounds=rounds, progress=progress)
        if prove:
            machine = session.topology
            cache_bytes = machine.l2_bytes * dlrm.config.threads + machine.l3_bytes * machine.l3_instances
            found = perturb(dlrm, source, table, cache_bytes=cache_bytes, progress=progress)
            table = replace(table, perturbations=tuple(found))
    show(replace(table, notes=table.notes + session.notes), text.operator_table, as_json, output)
