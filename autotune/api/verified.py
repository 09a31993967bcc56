"""What was said, held against measurements: a config against the default, predictions against passes, ours against every peer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.api.arguments import load_torch, model_of, say_config, tuned_of
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.model import UNCHANGED, Changes
from autotune.config.partition import CommunicationKnobs
from autotune.config.tuned import TunedConfig
from autotune.errors import InputError
from autotune.machine.memory import available_memory_bytes
from autotune.ranks.driver import on_every_rank
from autotune.ranks.session import ModelName, check_tuned, open_session, own_cores

if TYPE_CHECKING:
    from autotune.comparing.compare import Comparison
    from autotune.comparing.peers import Peer
    from autotune.perf.validate import Validation
    from autotune.ranks.lockstep import Lockstep
    from autotune.tuning.verify import Verification


@on_every_rank
def verify(
    config: TunedConfig | str | Path,
    *,
    sockets: int | None = None,
    budget_s: float = 30.0,
    force: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Verification:
    """Measure the default against the config again, side by side; `holds` tells whether the gain is still there."""
    from autotune.tuning.budget import Deadline

    deadline, tuned = Deadline(budget_s), tuned_of(config)
    # The default may want more threads than the config: the process is started for both.
    session = open_session(tuned.model, config=tuned, force=force, all_cores=True, started=partial(load_torch, progress))
    from autotune.bench.noise import NoiseMonitor
    from autotune.planning.planned import planned_partition
    from autotune.tuning.study import default_for_ranks, models_in_memory
    from autotune.tuning.verify import verify as verify_in_lockstep

    say_config(session, config, progress)
    with session.joined() as (session, network):
        default = default_for_ranks(session.model, planned_partition(session), session.topology, CommunicationKnobs())
        progress.phase("building the model", None)

        def hold(lockstep: Lockstep) -> Verification:
            left_s = max(deadline.left_s, 0.1 * budget_s)
            monitor = NoiseMonitor(session.topology.allowed_cpus)
            assert session.tuned is not None
            return verify_in_lockstep(
                session.tuned, lockstep, default, budget_s=left_s, progress=progress, monitor=monitor, notes=session.notes
            )

        keep = models_in_memory(session.model, session.ranks, session.cores.whole)
        return session.build(default, network, keep_models=keep).drive(hold)


def validate(
    models: Sequence[ModelName] = (),
    *,
    seed: int = 0,
    budget_s: float = 120.0,
    refresh: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Validation:
    """Predictions held against measurements: on `models`, then on random ones until the budget ends. See `perf.validate.validate`."""
    named = [model_of(model) for model in models]
    cores = own_cores()
    cores.start()
    load_torch(progress)
    from autotune.perf import validate as validation
    from autotune.probing.store import load_or_probe

    topology = cores.topology
    machine = load_or_probe(refresh=refresh, progress=progress)
    available = available_memory_bytes(topology)
    return validation.validate(machine, topology, named, seed=seed, budget_s=budget_s, available_bytes=available, progress=progress)


def compare(
    model: ModelName,
    *,
    config: TunedConfig | str | Path | None = None,
    peers: tuple[Peer, ...] | None = None,
    budget_s: float = 300.0,
    cached_profile: bool = False,
    changes: Changes = UNCHANGED,
    seed: int = 0,
    force: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Comparison:
    """One training iteration of ours and of every peer, side by side. See `comparing.compare.compare`.

    Args:
        peers: None takes all.
        budget_s: Seconds for everything: probing, building, comparing. What the first two are expected to take is told at the start.
        cached_profile: Take the stored ceilings for the bound instead of probing anew.
    """
    workload = model_of(model).changed(changes)
    if workload.optimizer != "sgd":
        rule = "peers train with SGD, and so must the model"
        raise InputError(f"{rule}, got {workload.optimizer} ({model}); compare the model without that change")
    from autotune.tuning.budget import Deadline

    deadline, cores = Deadline(budget_s), own_cores()
    tuned = None if config is None else tuned_of(config)
    if tuned is not None:
        check_tuned(tuned, workload, cores, force)
    cores.start()
    from autotune.comparing import compare as comparison
    from autotune.comparing.peers import peers_of
    from autotune.dlrm.defaults import in_full

    chosen = peers_of(workload) if peers is None else peers
    needs = comparison.prepare(workload, cores.topology, chosen)
    load_torch(progress)
    from autotune.probing.probe import EXPECTED_S
    from autotune.probing.store import is_stored, load_or_probe

    progress.note(needs.words(budget_s, 0.0 if cached_profile and is_stored() else EXPECTED_S))
    tuned = None if tuned is None else in_full(tuned, workload)[0]
    machine = load_or_probe(refresh=not cached_profile, progress=progress)
    return comparison.compare(
        workload,
        profile=machine,
        topology=cores.topology,
        tuned=tuned,
        peers=chosen,
        needs=needs,
        budget_s=deadline.left_s,
        seed=seed,
        progress=progress,
    )
