"""`autotune profile`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import (
    DataOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    MaxRowsOption,
    MinibatchOption,
    ModelArgument,
    OptimizerOption,
    OutputOption,
    RanksOption,
    SeedOption,
    ThreadsOption,
    TunedOption,
)
from autotune.cli.output import check_outputs, show
from autotune.cli.progress import reporting
from autotune.cli.ranks import describe, open_rank, start_ranks, wanted_ranks
from autotune.cli.session import open_session
from autotune.config.model import Changes
from autotune.config.profile import Topology
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
    dtype: DtypeOption = None,
    optimizer: OptimizerOption = None,
    threads: ThreadsOption = None,
    sockets: RanksOption = None,
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
    count = wanted_ranks(sockets, config)
    changes = Changes(max_rows, minibatch, dtype, optimizer)
    if count > 1:
        start_ranks(count)
        _profile_rank(model, config, force, data, changes, threads, seed, rounds, prove, as_json, output)
        return
    session = open_session(
        model, changes=changes, threads=threads, data=data, config_file=config, force=force, all_cores=True
    )
    from autotune.perf.measure import measure
    from autotune.perf.perturb import perturb, unwitnessed
    from autotune.probe.store import load_or_probe

    with reporting() as progress:
        ceilings = load_or_probe(progress=progress)
        progress.phase("building the model", None)
        dlrm, source = session.build(seed)
        table = measure(dlrm, source, ceilings, rounds=rounds, progress=progress, data=session.data)
        if prove:
            found = perturb(dlrm, source, table, cache_bytes=_cache_bytes(session.topology, dlrm.config.threads), progress=progress)
            table = replace(table, perturbations=tuple(found), notes=table.notes + unwitnessed())
    show(replace(table, notes=table.notes + session.notes), text.operator_table, as_json, output)


def _cache_bytes(machine: Topology, threads: int) -> int:
    """All that a team can fill."""
    return machine.l2_bytes * threads + machine.l3_bytes * machine.l3_instances


def _profile_rank(
    name: str,
    config: Path | None,
    force: bool,
    data: str | None,
    changes: Changes,
    threads: int | None,
    seed: int | None,
    rounds: int,
    prove: bool,
    as_json: bool,
    output: Path | None,
) -> None:
    """The same on one of several ranks; rank 0 measures, and tells."""
    session = open_rank(name, changes=changes, threads=threads, data=data, config_file=config, force=force)
    from autotune.bench.noise import NoiseMonitor
    from autotune.cli.lockstep import in_lockstep
    from autotune.dlrm.ranks import interface
    from autotune.perf.ranks import measure_ranks, prove_ranks
    from autotune.probe.ranks import load_or_probe_ranks

    with reporting(show=session.first) as progress, session.joined() as network:
        communication = session.config.communication
        backend = communication.backend if communication else "gloo"
        machine = load_or_probe_ranks(session.whole, backend=backend, progress=progress)
        planned = session.planned(machine)
        progress.phase("building the model", None)
        with in_lockstep(session, planned, network, seed) as lockstep:
            if lockstep is not None:
                monitor = NoiseMonitor(cpus=session.topology.allowed_cpus)
                table = measure_ranks(
                    lockstep, machine, ranks_on_host=session.ranks.local_world, monitor=monitor, rounds=rounds, progress=progress
                )
                if prove:
                    cache_bytes = _cache_bytes(session.topology, planned.threads)
                    table = prove_ranks(lockstep, table, cache_bytes, progress)
        notes = describe(session, planned, interface())
    if session.first:
        show(replace(table, notes=table.notes + notes), text.operator_table, as_json, output)
