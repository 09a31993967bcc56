"""`tune`: from a model to its tuned config file, going on where an interrupted run of the same command ended.

Rank 0 tunes a model that is its ranks in lockstep. With several, every rank races the same operators at the same time, so that each meets
the memory traffic of the others, and partition, all-to-all form, buckets, overlap, wire dtype and communication cores are dimensions of the
whole iteration.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.files import write_tuned
from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.partition import ALL_TO_ALL_FORMS, CommunicationKnobs, Partition
from autotune.config.profile import Fingerprint, Profile, Topology
from autotune.config.required_memory import required_memory_bytes
from autotune.config.tuned import RaceResult, TunedConfig
from autotune.data.batches import BatchSource
from autotune.dlrm.defaults import default_config
from autotune.errors import FingerprintError, MachineError
from autotune.machine.memory import available_memory_bytes
from autotune.machine.topology import fingerprint, fingerprint_differences, hardware_id
from autotune.ops.all_to_all import sample_bounds
from autotune.ops.native import kernels
from autotune.perf.ceilings import per_rank
from autotune.perf.measure import profile_passes
from autotune.perf.tables import tables_of_ranks
from autotune.planning.constraints import Constraints
from autotune.planning.planner import Planner
from autotune.ranks import group
from autotune.ranks.environment import Ranks
from autotune.ranks.launch import launch_of, missing
from autotune.ranks.lockstep import Lockstep
from autotune.ranks.session import Cores
from autotune.tuning.budget import Deadline
from autotune.tuning.journal import Journal, journal_path, trial_marker
from autotune.tuning.races import OperatorGroup, OperatorRace, group_operators
from autotune.tuning.result import assemble
from autotune.tuning.tuner import Tuner

_BUCKETS = (8 << 20, 1 << 20, 64 << 20)
# Two models in memory at once, and what everything else needs.
_MODELS_SHARE = 0.8

# What is stored in the journal; another number is another study. 1: first version.
_JOURNAL_FORMAT = 1


def study_name(model: Model, fingerprint: Fingerprint, source: BatchSource, *, sockets: int, seed: int) -> str:
    """All that makes earlier results valid for this run; the budget does not count."""
    versions = " ".join(f"{name}={version}" for name, version in sorted(fingerprint.versions.items()))
    data = hashlib.sha256(source.description.encode()).hexdigest()[:8]
    return (
        f"{model.name} model={model.hash()[:12]} sockets={sockets} hardware={hardware_id(fingerprint)} data={data} seed={seed} "
        f"{versions} format={_JOURNAL_FORMAT}"
    )


def default_for_ranks(
    model: Model, partition: Partition | None, topology: Topology, communication: CommunicationKnobs, threads: int | None = None
) -> RunConfig:
    """The default of every pass for a rank's share of the samples; without a partition, for one rank."""
    if partition is None:
        return default_config(model, topology, threads)
    bounds = sample_bounds(model.minibatch, partition.ranks)
    local = model.model_copy(update={"minibatch": bounds[1]})
    return default_config(local, topology, threads).model_copy(update={"partition": partition, "communication": communication})


def candidate_partitions(model: Model, first: Partition, profile: Profile, ranks_on_host: int, threads: int) -> tuple[Partition, ...]:
    """The planned one, and table-wise alone where that is another and fits."""
    try:
        alone = Constraints(kinds=("table_wise",))
        other = Planner(model, first.ranks, profile, ranks_on_host=ranks_on_host, threads=threads, constraints=alone).partition()
    except MachineError:
        return (first,)
    return (first,) if other == first else (first, other)


def models_in_memory(model: Model, ranks: Ranks, topology: Topology) -> int:
    """How many partitions' models a host holds at once: one or two."""
    each = required_memory_bytes(model, ranks.world, ranks.local_world)
    return 2 if ranks.world > 1 and 2 * each <= _MODELS_SHARE * available_memory_bytes(topology) else 1


def race(lockstep: Lockstep, keys: tuple[str, ...], budget_s: float, seed: int) -> RaceResult:
    """Task: race the passes `keys` on every rank at once; the result of the rank where they take longest counts."""
    default, topology = lockstep.config, lockstep.machine
    assert topology is not None
    groups = group_operators(lockstep.operators(), default, {})
    monitor = NoiseMonitor(cpus=topology.allowed_cpus)
    races = [OperatorRace(each, budget_s, topology, default, monitor, seed=seed) for each in groups if set(keys) & set(each.keys)]
    results = group.gather([each.run() for each in races[:1]])
    return max(itertools.chain(*results), key=lambda result: result.default_s.median)


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


def check_profile(profile: Profile, topology: Topology) -> None:
    """Raises: FingerprintError: the profile is of other hardware than `topology`."""
    differences = fingerprint_differences(profile.fingerprint, fingerprint(topology, kernels.target()))
    if differences:
        raise FingerprintError(
            f"tuning needs the profile of the machine it runs on, and {profile.name} differs: {'; '.join(differences)}; run autotune probe"
        )


def tune(
    lockstep: Lockstep,
    *,
    cores: Cores,
    profile: Profile,
    partitions: tuple[Partition, ...],
    wire: str,
    deadline: Deadline,
    output: Path,
    seed: int,
    name: str,
    notes: Sequence[str] = (),
    progress: Progress = NO_PROGRESS,
) -> TunedConfig:
    """Search threads, pages, the knobs of every operator pass and of the whole, and write the tuned config. Rank 0 calls it.

    Every result is in ``<output>.journal`` as soon as it exists; interrupted at any moment, the same call goes on from there. The
    journal is removed once the config is written.

    Args:
        lockstep: under the default configuration.
        cores: of rank 0.
        profile: Ceilings of this machine, with the network of several ranks.
        partitions: to choose from, the default's first; empty for one rank.
        wire: ``fp32``, or ``any`` to try bf16 between ranks too.
        deadline: of everything here, kept within 15 %.
        output: File to write.
        seed: Of orders and sampling.
        name: Of the model in the config.
        notes: What is known before the search.

    Raises:
        InputError: a journal in use.
        VerificationError: a default does not match its reference.
    """
    model, here, ranks, topology = lockstep.model, fingerprint(cores.whole, kernels.target()), lockstep.ranks, cores.topology
    default, several = lockstep.config, lockstep.ranks > 1
    communication = default.communication or CommunicationKnobs()
    monitor = NoiseMonitor(cpus=topology.allowed_cpus)
    marker = trial_marker(output)
    ceilings = per_rank(profile.ceilings, cores.ranks.local_world)

    def race_group(operators: OperatorGroup, seconds: float) -> RaceResult:
        return lockstep.everywhere(race, operators.keys, seconds, seed)

    study = study_name(model, here, lockstep.source, sockets=ranks, seed=seed) + (f" wire={wire}" if several else "")
    with Journal(journal_path(output), study, seed) as journal:
        failed = list(journal.get("failed") or ())
        if marker.exists():
            failed.append(marker.read_text(encoding="utf-8"))
            journal.put("failed", failed)
            marker.unlink()
        for_ranks: dict[str, Any] = {
            "race": race_group,
            "communication": choices(communication, topology, wire),
            "partitions": partitions,
            "before_trial": lambda text: marker.write_text(text, encoding="utf-8"),
            "after_trial": functools.partial(marker.unlink, missing_ok=True),
        }
        tuner = Tuner(
            model=model,
            host=cores.whole,
            cores=topology,
            lockstep=lockstep,
            default_for=functools.partial(default_for_ranks, model, default.partition, topology, communication),
            measure=functools.partial(profile_passes, lockstep, profile, ranks_on_host=cores.ranks.local_world),
            measure_tables=lambda seconds: lockstep.everywhere(tables_of_ranks, ceilings, seconds),
            deadline=deadline,
            journal=journal,
            progress=progress,
            monitor=monitor,
            seed=seed,
            notes=[*profile.warnings, *notes],
            **(for_ranks if several else {}),
        )
        if failed:
            tuner.note(f"{len(failed)} trials ended their ranks, and count as failed")
        if several and wire != "any":
            tuner.note("bf16 between the ranks was not tried, since it rounds; --wire any does")
        absent = [] if several else [*missing(launch_of(tuner.default, topology))]
        if absent:
            tuner.note(f"measured in a process started without {', '.join(absent)}; the config's launch sets them")
        outcome = tuner.run()
        options = f"--sockets {ranks} --budget {deadline.budget_s:g}s --seed {seed}{f' --wire {wire}' if several else ''}"
        command = f"autotune tune {shlex.quote(name)} {options} -o {shlex.quote(str(output))}"
        launch = launch_of(outcome.chosen, topology).model_copy(update={"rank_cpus": cores.rank_cpus if several else ()})
        config = assemble(
            model, outcome, here, name=name, sockets=ranks, command=command, seed=seed, budget_s=deadline.budget_s, launch=launch,
            profile=profile,
        )  # fmt: skip
        write_tuned(output, config)
        journal.discard()
    return config
