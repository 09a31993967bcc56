"""`tune`: from a model to its tuned config file, going on where an interrupted run of the same command ended."""

from __future__ import annotations

import functools
import hashlib
import shlex
from pathlib import Path

from autotune import catalog
from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.base import MAX_SEARCH_SEED
from autotune.config.files import check_writable, write_tuned
from autotune.config.model import Model
from autotune.config.profile import Fingerprint, Profile
from autotune.config.tuned import TunedConfig
from autotune.data.batches import BatchSource, make_source
from autotune.dlrm.model import DLRM, default_config
from autotune.errors import FingerprintError, InputError
from autotune.ops.native import kernels
from autotune.perf.measure import measure
from autotune.perf.tables import measure_tables
from autotune.probe.store import load_or_probe
from autotune.probe.topology import available_memory_bytes, detect, fingerprint, fingerprint_differences, hardware_id
from autotune.tune.budget import Deadline
from autotune.tune.journal import Journal, journal_path
from autotune.tune.launch import launch_of, not_in_force
from autotune.tune.result import assemble
from autotune.tune.tuner import Tuner

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


def check_sockets(sockets: int) -> None:
    """Raises: InputError: not 1."""
    if sockets < 1:
        raise InputError(f"sockets must be at least 1, got {sockets}; give --sockets 1")
    if sockets > 1:
        step = f"autotune tune --sockets {sockets}, or autotune.tune in Python, starts a rank on each"
        raise InputError(f"this process tunes one socket, got {sockets}; {step}")


def tune(
    model: Model,
    *,
    sockets: int = 1,
    budget_s: float = 120.0,
    output: Path,
    seed: int = 0,
    profile: Profile | None = None,
    progress: Progress = NO_PROGRESS,
    source: BatchSource | None = None,
    name: str | None = None,
) -> TunedConfig:
    """Search threads, pages and the knobs of every operator pass, and write the tuned config.

    Every result is in ``<output>.journal`` as soon as it exists; interrupted at any moment, the same call goes on from there. The
    journal is removed once the config is written.

    Args:
        sockets: 1.
        budget_s: Seconds for everything but the probe, kept within 15 %.
        output: File to write.
        seed: Of orders and sampling.
        profile: Ceilings of this machine; None takes the cached ones, or probes.
        source: Batches; None takes the model's own data.
        name: Of the model in the config, where it was given as a path.

    Raises:
        InputError: sockets, budget or seed out of range, an output that cannot be written, a journal in use.
        FingerprintError: the profile is of other hardware.
        MachineError: the model does not fit in memory.
        VerificationError: a default does not match its reference.
    """
    check_sockets(sockets)
    if not 0 <= seed <= MAX_SEARCH_SEED:
        raise InputError(f"the search's seed must be 0 to {MAX_SEARCH_SEED}, got {seed}; give for example 0")
    Deadline(budget_s)
    check_writable(output)
    topology = detect()
    catalog.check_fits(model, available_memory_bytes(topology))
    here = fingerprint(topology, kernels.target())
    if profile is None:
        profile = load_or_probe(progress=progress)
    differences = fingerprint_differences(profile.fingerprint, here)
    if differences:
        raise FingerprintError(
            f"tuning needs the profile of the machine it runs on, and {profile.name} differs: {'; '.join(differences)}; run autotune probe"
        )
    deadline = Deadline(budget_s)
    batches = make_source(model) if source is None else source
    with Journal(journal_path(output), study_name(model, here, batches, sockets=sockets, seed=seed), seed) as journal:
        progress.phase("building the model", None)
        default_for = functools.partial(default_config, model, topology)
        dlrm = DLRM(model, default_for(), machine=topology)
        tuner = Tuner(
            model=model,
            fingerprint=here,
            dlrm=dlrm,
            source=batches,
            default_for=default_for,
            measure=functools.partial(measure, profile=profile),
            measure_tables=lambda seconds: measure_tables(dlrm, batches, profile.ceilings, budget_s=seconds),
            deadline=deadline,
            journal=journal,
            progress=progress,
            monitor=NoiseMonitor(topology.allowed_cpus),
            seed=seed,
        )
        missing = not_in_force(launch_of(tuner.default, topology))
        if missing:
            tuner.note(f"measured in a process started without {', '.join(missing)}; the config's launch sets them")
        outcome = tuner.run()
        chosen_name = model.name if name is None else name
        options = f"--sockets {sockets} --budget {budget_s:g}s --seed {seed} -o {shlex.quote(str(output))}"
        command = f"autotune tune {shlex.quote(chosen_name)} {options}"
        config = assemble(
            model, outcome, here, name=chosen_name, sockets=sockets, command=command, seed=seed, budget_s=budget_s, profile=profile
        )
        write_tuned(output, config)
        journal.discard()
    return config
