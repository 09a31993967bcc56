"""A made-up machine whose passes take exactly what a law says, so that what is learned from it can be compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from autotune.config.calibration import CalibrationRun
from autotune.config.knobs import Knobs
from autotune.config.model import Model
from autotune.config.network import InterfaceRate, Network, NetworkFit, Together
from autotune.config.profile import PROFILE_SCHEMA, Ceilings, ComputePoint, Fingerprint, Profile, RowPoint, StreamPoint, TimePoint, Topology
from autotune.dlrm.defaults import random_config
from autotune.dlrm.schedule import schedule
from autotune.machine.topology import detect, fingerprint
from autotune.ops.base import Residence
from autotune.ops.native import kernels
from autotune.ops.overhead import KEY as OTHER
from autotune.ops.overhead import Overhead
from autotune.ops.schedule import Pass
from autotune.perf.cache_model import residences
from autotune.perf.features import Machine, features_of
from autotune.perf.predictor import Predictor
from autotune.perf.regression import weighted
from autotune.probing.calibrate import reference_models

THREADS = (1, 4)


def topology(sockets: int = 1, cores: int = 4) -> Topology:
    count = sockets * cores
    return Topology(
        cpu_model="made up", vendor="x", sockets=sockets, physical_cores=count, logical_cpus=count, allowed_cpus=tuple(range(count)),
        core_cpus=tuple((c,) for c in range(count)), socket_of_core=tuple(c // cores for c in range(count)),
        numa_nodes={0: tuple(range(count))}, l1d_bytes=32768, l2_bytes=1 << 20, l3_bytes=16 << 20, l3_instances=sockets, isa=("avx512f",),
        cpu_quota=None, memory_bytes=64 << 30, memory_limit_bytes=None, huge_pages="madvise",
    )  # fmt: skip


def bare(sockets: int = 1, network: Network | None = None) -> Profile:
    """Without reference passes."""
    counts = tuple(sockets * t for t in THREADS)
    rows = tuple(
        RowPoint(row_bytes=width, working_set_bytes=size, threads=t, bandwidth_bytes_per_s=rate * t)
        for t in counts
        for width in (64, 256, 1024)
        for size, rate in ((1 << 19, 4e10), (8 << 20, 2e10), (64 << 20, 8e9), (1 << 31, 6e9))
    )
    return Profile(
        name="made up",
        source="test",
        created="2026-01-01T00:00:00Z",
        fingerprint=Fingerprint(topology=topology(sockets), kernel="", versions={}, target="avx512"),
        ceilings=Ceilings(
            fma=tuple(ComputePoint(threads=t, flops_per_s=1.2e11 * t) for t in counts),
            gemm=tuple(ComputePoint(threads=t, flops_per_s=1e11 * t) for t in counts),
            stream=tuple(StreamPoint(kind=k, threads=t, bandwidth_bytes_per_s=1e10 * t) for k in ("read", "update") for t in counts),
            gather=rows,
            scatter=rows,
            fork_join=tuple(TimePoint(threads=t, time_s=1e-6) for t in counts),
        ),
        network=network,
    )


def network(ranks: int = 4, bandwidth: float = 1e9) -> Network:
    fits = tuple(
        NetworkFit(operation=operation, form=form, ranks=ranks, latency_s=1e-5, bandwidth_bytes_per_s=bandwidth, residual=0.0, worst=0.1)
        for operation, form in (("all_to_all", "native"), ("all_reduce", ""))
    )  # fmt: skip
    together = Together(compute_s=1.0, transfer_s=1.0, both_s=1.0, compute_while_talking_s=1.0)
    interfaces = (InterfaceRate(name="x", bandwidth_bytes_per_s=None, used=True),)
    return Network(backend="gloo", interface="x", ranks=ranks, hosts=1, interfaces=interfaces, points=(), fits=fits, together=together)


def true_times(model: Model, profile: Profile, threads: int, knobs: Mapping[str, Knobs], factor: float = 1.0) -> dict[str, float]:
    """Each pass as its prior weights say, times `factor`."""
    machine, passes = Machine(profile, threads), schedule(model).passes
    places = residences(passes, machine.own_bytes, machine.shared_bytes)
    between = Pass(OTHER, Overhead(OTHER, len(passes)))
    return {
        each.key: factor * weighted(features_of(each, place, knobs.get(each.key), machine), each.operator.prior)
        for each, place in [*zip(passes, places, strict=True), (between, Residence(0.0, 0.0, 0.0))]
    }


def calibrated(factor: float = 1.0) -> Profile:
    """With reference passes that follow the usual laws, times `factor`."""
    profile = bare()
    runs = []
    for model, _ in reference_models(1e8):
        for threads in THREADS:
            knobs = random_config(model, profile.fingerprint.topology, threads, f"{model.name} on {threads}").operators
            times = true_times(model, profile, threads, knobs, factor)
            runs.append(CalibrationRun(model=model, threads=threads, iteration_s=sum(times.values()), passes_s=times, knobs=knobs))
    return profile.model_copy(update={"calibration": tuple(runs)})


def predictor(profile: Profile) -> Predictor:
    return Predictor(profile)


def topology_of(cores: int = 4, **changes: Any) -> Topology:
    values: dict[str, Any] = {
        "cpu_model": "Example 9000",
        "vendor": "Example",
        "sockets": 1,
        "physical_cores": cores,
        "logical_cpus": cores,
        "allowed_cpus": tuple(range(cores)),
        "core_cpus": tuple((cpu,) for cpu in range(cores)),
        "socket_of_core": (0,) * cores,
        "numa_nodes": {0: tuple(range(cores))},
        "l1d_bytes": 32768,
        "l2_bytes": 1 << 20,
        "l3_bytes": 1 << 25,
        "l3_instances": 1,
        "isa": ("avx2", "fma"),
        "cpu_quota": None,
        "memory_bytes": 1 << 34,
        "memory_limit_bytes": None,
        "huge_pages": "never",
    }
    return Topology(**values | changes)


def fingerprint_of(cores: int = 4, **changes: Any) -> Fingerprint:
    return Fingerprint(topology=topology_of(cores, **changes), kernel="6.1", versions={"torch": "2.13", "autotune": "0.1.0"}, target="avx2")


def made_up_profile() -> Profile:
    """Ceilings of nobody's machine under this machine's fingerprint: enough for verdicts, without a probe."""
    cores = range(1, detect().physical_cores + 1)
    kinds: Any = ("read", "copy", "triad", "copy_nt", "update")
    sizes = itertools.product((64, 1024), (1 << 20, 1 << 28), cores)
    rows = tuple(RowPoint(row_bytes=b, working_set_bytes=w, threads=n, bandwidth_bytes_per_s=1e10) for b, w, n in sizes)
    ceilings = Ceilings(
        fma=tuple(ComputePoint(threads=n, flops_per_s=1e11 * n) for n in cores),
        gemm=tuple(ComputePoint(threads=n, flops_per_s=9e10 * n) for n in cores),
        stream=tuple(StreamPoint(kind=kind, threads=n, bandwidth_bytes_per_s=2e10) for kind in kinds for n in cores),
        gather=rows,
        scatter=rows,
        fork_join=tuple(TimePoint(threads=n, time_s=1e-6) for n in cores),
    )
    here = fingerprint(detect(), kernels.target())
    about = {"name": "made-up", "source": "this test", "created": "2025-01-01T00:00:00Z"}
    return Profile(schema=PROFILE_SCHEMA, fingerprint=here, ceilings=ceilings, **about)
