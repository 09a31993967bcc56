"""Commands that measure: each is one function, called in one rank or in all."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.api.arguments import load_torch, say_config
from autotune.api.training import train_and_save
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.files import check_readable, check_writable
from autotune.config.model import UNCHANGED, Changes, DataSpec
from autotune.config.partition import Partition
from autotune.config.profile import Profile, Topology
from autotune.config.tuned import TunedConfig
from autotune.config.words import MAX_SEARCH_SEED
from autotune.errors import InputError, MachineError, NoSpaceError
from autotune.machine.limits import limits, remarks
from autotune.ranks.driver import on_every_rank, wanted_ranks
from autotune.ranks.environment import from_environment
from autotune.ranks.session import Config, ModelName, open_session, own_cores

if TYPE_CHECKING:
    from autotune.perf.table import OperatorTable
    from autotune.ranks.lockstep import Lockstep
    from autotune.report.record import RunResult

_MAX_RESTARTS = 5


@on_every_rank
def probe(
    *,
    sockets: int | None = None,
    refresh: bool = False,
    refresh_network: bool = False,
    backend: str = "gloo",
    progress: Progress = NO_PROGRESS,
) -> Profile:
    """This machine's profile: the stored one, or a new one, in under two minutes; of several sockets with the network between them.

    Args:
        refresh_network: Measure the network again; the machine's ceilings stay.
        backend: Of torch.distributed, for several sockets.
    """
    cores = own_cores()
    cores.start()
    load_torch(progress)
    from autotune.probing.shared import shared_profile
    from autotune.ranks.group import joined

    with joined(cores.ranks, backend):
        result = shared_profile(cores.whole, backend=backend, refresh=refresh, refresh_network=refresh_network, progress=progress)
    return result.model_copy(update={"notes": (limits(cores.whole), *remarks(cores.whole), *result.notes)})


@on_every_rank
def run(
    model: ModelName,
    *,
    steps: int | None = None,
    evaluate: bool = False,
    sockets: int | None = None,
    threads: int | None = None,
    config: Config = None,
    data: DataSpec | None = None,
    changes: Changes = UNCHANGED,
    seed: int | None = None,
    checkpoint_in: Path | None = None,
    checkpoint_out: Path | None = None,
    force: bool = False,
    progress: Progress = NO_PROGRESS,
) -> RunResult:
    """Train for `steps` iterations and tell what they took, or evaluate the weights as they are.

    Args:
        steps: None trains for 50; to evaluate it takes every row of a file once, or 50 drawn batches.
        evaluate: Forward passes alone: loss, AUC and accuracy.
        sockets: Ranks; default those of the config, else 1.
        threads: Of a rank, without a config; default one for each core.
        data: Instead of the model's.
        seed: Of weights and data, instead of the model's.
        checkpoint_in: Start from these weights, under the public DLRM's names.
        checkpoint_out: Write the trained weights to this file.

    Raises:
        InputError: a name, a file or a value is wrong.
        FingerprintError: the config belongs to another model, or to other hardware without `force`.
        MachineError: the model does not fit in memory.
    """
    if evaluate and checkpoint_out is not None:
        raise InputError(f"an evaluation changes no weights, got --checkpoint-out {checkpoint_out}; leave it out, or --evaluate")
    if checkpoint_in is not None:
        check_readable(checkpoint_in)
    session = open_session(
        model, changes=changes, threads=threads, data=data, config=config, force=force, written=checkpoint_out is not None,
        started=partial(load_torch, progress),
    )  # fmt: skip
    from autotune.dlrm.checkpoint import CATEGORY_MAPPING, INTERACTION, load_into, read_checkpoint_of, save_checkpoint
    from autotune.dlrm.train import DEFAULT_STEPS, evaluation_size, train
    from autotune.dlrm.train import evaluate as evaluated
    from autotune.planning.planned import planned_config
    from autotune.ranks.group import broadcast
    from autotune.report.record import run_result

    start = None if checkpoint_in is None else read_checkpoint_of(session.model, checkpoint_in)
    say_config(session, config, progress)
    with session.joined() as (session, network):
        progress.phase("building the model", None)
        planned = planned_config(session)
        lockstep = session.build(planned, network, seed)
        dlrm, source = lockstep.dlrm, lockstep.source
        begun = () if start is None else load_into(dlrm, start, source.mapping)

        def advance(_: int, loss: float) -> None:
            progress.advance(1, f"loss {loss:.4f}")

        def save(steps: int) -> None:
            if checkpoint_out is None:
                return
            weights, sums = dlrm.state_dict(), dlrm.optimizer_state()
            if session.ranks.first:
                behind, mapping = (0, None) if start is None else (start.iterations, start.mapping)
                meta = {"learning_rate": session.model.learning_rate, "iter": behind + steps, INTERACTION: session.model.interaction}
                save_checkpoint(checkpoint_out, weights, meta | {CATEGORY_MAPPING: source.mapping or mapping}, sums)

        if evaluate:
            progress.phase("evaluating", evaluation_size(source, dlrm.minibatch, steps)[0])
            training = evaluated(dlrm, source, steps, advance)
        else:
            steps = DEFAULT_STEPS if steps is None else steps
            progress.phase("training", steps)
            if checkpoint_out is not None and session.ranks.world == 1:
                training = train_and_save(partial(train, dlrm, source, steps), advance, save, checkpoint_out)
            else:
                training = train(dlrm, source, steps, advance)
                save(steps)
        return broadcast(run_result(training, (*session.describe(planned), *begun)))


@on_every_rank
def profile(
    model: ModelName,
    *,
    sockets: int | None = None,
    threads: int | None = None,
    config: Config = None,
    data: DataSpec | None = None,
    changes: Changes = UNCHANGED,
    seed: int | None = None,
    rounds: int = 20,
    prove: bool = False,
    force: bool = False,
    progress: Progress = NO_PROGRESS,
) -> OperatorTable:
    """For every operator pass its time, its work and what bounds it. Arguments and errors are those of `run`.

    Args:
        rounds: Iterations measured.
        prove: Test every verdict: data resident in cache, and half the threads.
    """
    session = open_session(
        model, changes=changes, threads=threads, data=data, config=config, force=force, all_cores=True, raced=prove,
        started=partial(load_torch, progress),
    )  # fmt: skip
    from autotune.perf.measure import profile_passes
    from autotune.perf.perturb import prove_passes
    from autotune.planning.planned import planned_config
    from autotune.probing.shared import shared_profile

    say_config(session, config, progress)
    with session.joined() as (session, network):
        machine = shared_profile(session.cores.whole, backend=session.communication.backend, progress=progress)
        planned = planned_config(session, machine)
        progress.phase("building the model", None)

        def passes(lockstep: Lockstep) -> OperatorTable:
            table = profile_passes(lockstep, machine, ranks_on_host=session.ranks.local_world, rounds=rounds, progress=progress)
            return prove_passes(lockstep, table, _cache_bytes(session.topology, planned.threads), progress) if prove else table

        table = session.build(planned, network, seed).drive(passes)
    return replace(table, notes=(limits(session.cores.whole), *table.notes, *session.describe(planned)))


def tune(
    model: ModelName,
    *,
    sockets: int | None = None,
    budget_s: float = 120.0,
    output: str | Path,
    changes: Changes = UNCHANGED,
    wire: str = "fp32",
    seed: int = 0,
    profile: Profile | None = None,
    progress: Progress = NO_PROGRESS,
) -> TunedConfig:
    """Search, confirm, and write the tuned config to `output`; called again after an interruption it goes on. See `tuning.study.tune`.

    Args:
        budget_s: Seconds for everything but the probe.
        wire: Between sockets: ``fp32`` alone, or ``any`` to try bf16 too.
        seed: Of the search: orders and sampling.
        profile: Ceilings of this machine; None takes the stored ones, or probes.

    Raises:
        InputError: sockets, budget or seed out of range, an output that cannot be written, a journal in use.
        FingerprintError: the profile is of other hardware.
        MachineError: the model does not fit in memory.
        VerificationError: a default does not match its reference.
    """
    from autotune.tuning.budget import Deadline

    if wire not in ("fp32", "any"):
        raise InputError(f"the wire dtype must be fp32 or any, got {wire!r} (--wire); any also tries bf16")
    if not 0 <= seed <= MAX_SEARCH_SEED:
        raise InputError(f"the search's seed must be 0 to {MAX_SEARCH_SEED}, got {seed}; give for example 0")
    Deadline(budget_s)
    output = Path(output)
    check_writable(output)
    arguments: dict[str, Any] = {"budget_s": budget_s, "output": output, "changes": changes, "wire": wire, "seed": seed, "profile": profile}
    if wanted_ranks(sockets) == 1 or from_environment() is not None:
        return _tune(model, sockets=sockets, **arguments, progress=progress)
    from autotune.tuning.journal import trial_marker

    marker = trial_marker(output)
    marker.unlink(missing_ok=True)  # of a run that was itself interrupted: the trial was not to blame
    for left in reversed(range(_MAX_RESTARTS + 1)):
        try:
            return _tune(model, sockets=sockets, **arguments, progress=progress)
        except MachineError as error:
            # Ranks that a trial ended are started again, and go on with the next trial. A full disk ends any.
            if not left or not marker.exists() or isinstance(error, NoSpaceError):
                marker.unlink(missing_ok=True)
                raise
            progress.note(f"a trial failed, and tuning goes on: {error}")
    raise AssertionError("the last try returns or raises")


@on_every_rank
def _tune(
    model: ModelName,
    *,
    sockets: int | None,
    budget_s: float,
    output: Path,
    changes: Changes,
    wire: str,
    seed: int,
    profile: Profile | None,
    progress: Progress = NO_PROGRESS,
) -> TunedConfig:
    session = open_session(model, changes=changes, raced=True, started=partial(load_torch, progress))
    from autotune.planning.planned import planned_partition
    from autotune.probing.shared import shared_profile
    from autotune.tuning.budget import Deadline
    from autotune.tuning.study import candidate_partitions, check_profile, default_for_ranks, models_in_memory
    from autotune.tuning.study import tune as tune_in_lockstep

    with session.joined() as (session, network):
        cores = session.cores
        machine = shared_profile(cores.whole, progress=progress) if profile is None else profile
        check_profile(machine, cores.whole)
        partition = planned_partition(session, machine)
        default = default_for_ranks(session.model, partition, cores.topology, session.communication)
        keep = models_in_memory(session.model, cores.ranks, cores.whole)
        deadline = Deadline(budget_s)
        progress.phase("building the model", None)

        def search(lockstep: Lockstep) -> TunedConfig:
            partitions: tuple[Partition, ...] = ()
            if partition is not None:
                planned = candidate_partitions(session.model, partition, machine, cores.ranks.local_world, default.threads)
                partitions = planned if keep > 1 else planned[:1]
            return tune_in_lockstep(
                lockstep,
                cores=cores,
                profile=machine,
                partitions=partitions,
                wire=wire,
                deadline=deadline,
                output=output,
                seed=seed,
                name=session.name,
                notes=session.notes,
                progress=progress,
            )

        return session.build(default, network, keep_models=keep).drive(search)


def _cache_bytes(machine: Topology, threads: int) -> int:
    """All that a team can fill."""
    return machine.l2_bytes * threads + machine.l3_bytes * machine.l3_instances
