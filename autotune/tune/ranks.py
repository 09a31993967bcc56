"""`tune` and `verify` on several ranks: rank 0 tunes as on one socket, with a model that is the ranks in lockstep.

Every rank races the same operators at the same time, so that each meets the memory traffic of the others. Partition, all-to-all form,
buckets, overlap, wire dtype and communication cores are dimensions of the whole iteration.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.files import write_tuned
from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.partition import ALL_TO_ALL_FORMS, CommunicationKnobs, Partition
from autotune.config.profile import Profile, Topology
from autotune.config.tuned import RaceResult, TunedConfig
from autotune.dlrm.lockstep import Lockstep
from autotune.dlrm.model import default_config
from autotune.errors import MachineError
from autotune.ops.all_to_all import sample_bounds
from autotune.ops.native import kernels
from autotune.perf.ranks import measure_ranks
from autotune.perf.share import per_rank
from autotune.perf.table import OperatorTable
from autotune.plan.constraints import Constraints
from autotune.plan.profiled import plan_for
from autotune.probe.topology import available_memory_bytes, fingerprint
from autotune.tune.budget import Deadline
from autotune.tune.journal import Journal, journal_path, trial_marker
from autotune.tune.races import OperatorGroup, Racer, group_operators
from autotune.tune.result import assemble
from autotune.tune.study import study_name
from autotune.tune.tuner import Tuner

_BUCKETS = (8 << 20, 1 << 20, 64 << 20)
# Two models in memory at once, and what everything else needs.
_MODELS_SHARE = 0.8


def default_for_ranks(
    model: Model, partition: Partition, topology: Topology, communication: CommunicationKnobs, threads: int | None = None
) -> RunConfig:
    """The default of every pass for a rank's share of the samples."""
    bounds = sample_bounds(model.minibatch, partition.ranks)
    local = model.model_copy(update={"minibatch": bounds[1]})
    return default_config(local, topology, threads).model_copy(update={"partition": partition, "communication": communication})


def candidate_partitions(model: Model, first: Partition, profile: Profile, ranks_on_host: int, threads: int) -> tuple[Partition, ...]:
    """The planned one, and table-wise alone where that is another and fits."""
    try:
        alone = Constraints(kinds=("table_wise",))
        other = plan_for(model, first.ranks, profile, ranks_on_host, threads, constraints=alone).partition
    except MachineError:
        return (first,)
    return (first,) if other == first else (first, other)


def models_in_memory(model: Model, ranks: int, ranks_on_host: int, topology: Topology) -> int:
    """How many partitions' models a host holds at once: one or two."""
    each = (model.table_bytes + model.state_bytes) * ranks_on_host / ranks
    return 2 if 2 * each <= _MODELS_SHARE * available_memory_bytes(topology) else 1


def race(lockstep: Lockstep, keys: tuple[str, ...], budget_s: float, topology: Topology, seed: int) -> RaceResult:
    """Task: race the passes `keys` on every rank at once; the result of the rank where they take longest counts."""
    default = lockstep.config
    groups = group_operators(lockstep.operators(lockstep), default, {})
    group = next((group for group in groups if set(keys) & set(group.keys)), None)
    monitor = NoiseMonitor(cpus=topology.allowed_cpus)
    mine = Racer(topology, default, monitor, seed=seed).run(group, budget_s) if group is not None else None
    results: list[RaceResult | None] = [None] * lockstep.ranks
    dist.all_gather_object(results, mine)
    return max((result for result in results if result is not None), key=lambda result: result.default_s.median)


def choices(communication: CommunicationKnobs, topology: Topology, wire: str) -> Mapping[str, tuple[Any, ...]]:
    """Values of the communication knobs to try, the default's first."""

    def first(value: Any, others: tuple[Any, ...]) -> tuple[Any, ...]:
        return (value, *(other for other in others if other != value))

    # Cores for the network alone leave at least half of a socket's cores to compute.
    cores = tuple(count for count in (0, 1, 2, 4) if 2 * count < topology.physical_cores) or (0,)
    return {
        "all_to_all": first(communication.all_to_all, ALL_TO_ALL_FORMS),
        "overlap": first(communication.overlap, (True, False)),
        "wire_dtype": first(communication.wire_dtype, ("fp32", "bf16")) if wire == "any" else (communication.wire_dtype,),
        "bucket_bytes": first(communication.bucket_bytes, _BUCKETS),
        "communication_cores": first(communication.communication_cores, cores),
    }


def tune_ranks(
    lockstep: Lockstep,
    *,
    profile: Profile,
    whole: Topology,
    topology: Topology,
    rank_cpus: tuple[tuple[int, ...], ...],
    partitions: tuple[Partition, ...],
    wire: str,
    budget_s: float,
    output: Path,
    seed: int,
    name: str,
    progress: Progress = NO_PROGRESS,
) -> TunedConfig:
    """Search and write the tuned config. Rank 0 calls it; the others follow. See `study.tune`.

    Args:
        lockstep: under the default configuration, with the tasks of `perf.ranks` and `race`.
        profile: with the network.
        whole: this host's cores; `topology`: this rank's.
        rank_cpus: of every rank here.
        partitions: to choose from, the default's first.
        wire: ``fp32``, or ``any`` to try bf16 between ranks too.
    """
    model, here, ranks = lockstep.model, fingerprint(whole, kernels.target()), lockstep.ranks
    default = lockstep.config
    communication = default.communication or CommunicationKnobs()
    monitor = NoiseMonitor(cpus=topology.allowed_cpus)
    marker = trial_marker(output)

    of_rank = per_rank(profile.ceilings, len(rank_cpus))

    def measure(_dlrm: object, _source: object, *, rounds: int, budget_s: float, progress: Progress) -> OperatorTable:
        return measure_ranks(
            lockstep, profile, ranks_on_host=len(rank_cpus), monitor=monitor, rounds=rounds, budget_s=budget_s, progress=progress
        )

    def default_for(threads: int | None) -> RunConfig:
        assert default.partition is not None
        return default_for_ranks(model, default.partition, topology, communication, threads)

    def race_group(group: OperatorGroup, seconds: float) -> RaceResult:
        found = lockstep.everywhere("race", group.keys, seconds, seed)
        assert isinstance(found, RaceResult)
        return found

    deadline = Deadline(budget_s)
    study = f"{study_name(model, here, lockstep, sockets=ranks, seed=seed)} wire={wire}"
    with Journal(journal_path(output), study, seed) as journal:
        failed = list(journal.get("failed") or ())
        if marker.exists():
            failed.append(marker.read_text(encoding="utf-8"))
            journal.put("failed", failed)
            marker.unlink()
        tuner = Tuner(
            model=model,
            fingerprint=here,
            dlrm=lockstep,
            source=lockstep,
            default_for=default_for,
            measure=measure,
            measure_tables=lambda seconds: lockstep.everywhere("tables_of_ranks", of_rank, seconds),
            deadline=deadline,
            journal=journal,
            progress=progress,
            monitor=monitor,
            seed=seed,
            topology=topology,
            race=race_group,
            communication=choices(communication, topology, wire),
            partitions=partitions,
            before_trial=lambda text: marker.write_text(text, encoding="utf-8"),
            after_trial=functools.partial(marker.unlink, missing_ok=True),
        )
        if failed:
            tuner.note(f"{len(failed)} trials ended their ranks, and count as failed")
        if wire != "any":
            tuner.note("bf16 between the ranks was not tried, since it rounds; --wire any does")
        outcome = tuner.run()
        options = f"--sockets {ranks} --budget {budget_s:g}s --seed {seed} --wire {wire} -o {shlex.quote(str(output))}"
        command = f"autotune tune {shlex.quote(name)} {options}"
        config = assemble(
            model, outcome, here, name=name, sockets=ranks, command=command, seed=seed, budget_s=budget_s, topology=topology,
            rank_cpus=rank_cpus, profile=profile,
        )  # fmt: skip
        write_tuned(output, config)
        journal.discard()
    return config
