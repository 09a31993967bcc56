"""Synthetic results for the tests of everything that reads results."""

from __future__ import annotations

import omp_waiting  # noqa: F401
import pytest
from configs import recorded_with

from autotune.config.knobs import FixedKnobs, RunConfig
from autotune.config.measured import RankRow, TableUse, TimedSpan
from autotune.config.model import Model, Table
from autotune.config.partition import CommunicationKnobs, Partition, Placement
from autotune.config.profile import Ceilings, ComputePoint, Fingerprint, Profile, RowPoint, StreamPoint, TimePoint, Topology
from autotune.config.tuned import Gain, Interval, Launch, MeasuredPass, Prediction, Provenance, Record, TunedConfig
from autotune.ops.embedding_tables import EmbeddingForwardKnobs, EmbeddingUpdateKnobs
from autotune.ops.interaction import InteractionKnobs
from autotune.ops.layer import LayerKnobs


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for the whole suite, which mostly waits for other processes to load; none for chosen files, or for what is measured."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return 2 if whole and "not measured" in config.option.markexpr else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that both processes end together."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


def around(median: float, spread: float = 0.02, samples: int = 30) -> Interval:
    return Interval(median=median, low=median * (1 - spread), high=median * (1 + spread), samples=samples)


@pytest.fixture(scope="session")
def topology() -> Topology:
    """A made-up machine of two cores with hyperthreads."""
    return Topology(
        cpu_model="Some CPU",
        vendor="x",
        sockets=1,
        physical_cores=2,
        logical_cpus=4,
        allowed_cpus=(0, 1, 2, 3),
        core_cpus=((0, 2), (1, 3)),
        socket_of_core=(0, 0),
        numa_nodes={0: (0, 1, 2, 3)},
        l1d_bytes=32 * 1024,
        l2_bytes=512 * 1024,
        l3_bytes=16 * 2**20,
        l3_instances=1,
        isa=("avx2", "fma"),
        cpu_quota=None,
        memory_bytes=2**35,
        memory_limit_bytes=24 * 2**30,
        huge_pages="madvise",
    )


@pytest.fixture(scope="session")
def tuned_config(topology: Topology) -> TunedConfig:
    """A tuned config of `small`: one choice kept, one not, one pass never raced."""
    operators = {
        "embedding_bag.forward": EmbeddingForwardKnobs(prefetch_distance=16),
        "embedding_bag.update": EmbeddingUpdateKnobs(),
        "top_mlp.0.backward_weights": LayerKnobs(bn=32),
        "interaction.forward": InteractionKnobs(),
        "loss": FixedKnobs(),
    }
    gains = (
        Gain(
            operator="embedding_bag.forward",
            knob="prefetch_distance 8 -> 16, bags_per_task 256 -> 64",
            default_s=around(0.020),
            tuned_s=around(0.016),
            speedup=around(1.25),
            candidates=12,
            kept=True,
        ),
        Gain(
            operator="embedding_bag.update",
            knob="strategy bucketed -> race_free_range",
            default_s=around(0.030),
            tuned_s=around(0.0301),
            speedup=around(0.997),
            candidates=5,
            kept=False,
        ),
    )
    verdicts = (
        MeasuredPass(operator="embedding_bag.forward", time_s=around(0.016), binder="memory", fractions={"memory": 0.9}, detail="gather"),
        MeasuredPass(
            operator="top_mlp.0.backward_weights",
            time_s=around(0.05),
            binder="compute",
            fractions={"memory": 0.2, "compute": 0.7},
            detail="2048x1024x1024",
        ),
        MeasuredPass(operator="interaction.forward", time_s=around(0.01, 0.3), binder="none", fractions={"memory": 0.3}, detail=""),
        MeasuredPass(operator="other", time_s=around(0.002), binder="none", fractions={}, detail=""),
    )
    return TunedConfig(
        schema=3,
        model="small",
        model_hash="ab" * 32,
        sockets=1,
        minibatch=2048,
        config=RunConfig(threads=2, operators=operators),
        launch=Launch(
            threads=2,
            cpus=(0, 1),
            environment={"OMP_NUM_THREADS": "2", "GLIBC_TUNABLES": "a=1:b=2", "AUTOTUNE_TARGET": "it's $HOME"},
        ),
        default_iteration_s=around(0.09),
        tuned_iteration_s=around(0.078),
        speedup=around(1.15),
        significant=True,
        bound_by={verdict.operator: verdict.binder for verdict in verdicts},
        record=Record(
            schema=1, model="small", model_hash="ab" * 32, sockets=1, created="2025-01-01T00:00:00Z", gains=gains, verdicts=verdicts
        ),
        fingerprint=Fingerprint(topology=topology, kernel="6.1", versions={"python": "3.11", "torch": "2.10"}, target="avx2"),
        provenance=Provenance(
            created="2025-01-01T00:00:00Z",
            autotune_version="0.1",
            command="autotune tune small",
            seed=0,
            budget_s=120.0,
            spent_s=119.0,
            trials=7,
            notes=("2 disturbed rounds were repeated",),
        ),
    )


@pytest.fixture(scope="session")
def hardware_profile(tuned_config: TunedConfig) -> Profile:
    """Ceilings of the made-up machine at one and two threads."""
    both = (1, 2)
    return Profile(
        schema=1,
        name="some machine",
        source="measured by autotune probe",
        created="2025-01-01T00:00:00Z",
        fingerprint=tuned_config.fingerprint,
        ceilings=Ceilings(
            fma=tuple(ComputePoint(threads=t, flops_per_s=1e11 * t) for t in both),
            gemm=tuple(ComputePoint(threads=t, flops_per_s=0.9e11 * t, shape="2048x1024x1024 blocked") for t in both),
            stream=tuple(StreamPoint(kind="read", threads=t, bandwidth_bytes_per_s=2e10 * t) for t in both),
            gather=(RowPoint(row_bytes=256, working_set_bytes=2**28, threads=2, bandwidth_bytes_per_s=2.1e10),),
            scatter=(),
            fork_join=tuple(TimePoint(threads=t, time_s=1e-6 * t) for t in both),
        ),
        notes=("disturbed once",),
    )


@pytest.fixture(scope="session")
def full_config(tuned_config: TunedConfig, hardware_profile: Profile) -> TunedConfig:
    """The same with everything that a config of today holds, of a model whose name would break markup that is not escaped."""
    model = Model(
        schema=1,
        name='<i>a & "b"</i>',
        source="made up",
        description="",
        minibatch=2048,
        bottom_mlp=(13, 64),
        top_mlp=(100, 1),
        tables=(Table(rows=100_000, dim=64, pooling=50), Table(rows=1000, dim=64, pooling=1)),
    )
    work = {
        "embedding_bag.forward": (2_000_000, 30_000_000, "gather", 26_000_000),
        "top_mlp.0.backward_weights": (400_000_000, 2_000_000, "stream", 0),
        "interaction.forward": (3_000_000, 3_000_000, "stream", 0),
    }
    verdicts = []
    for verdict in tuned_config.verdicts:
        flops, size, access, rows = work.get(verdict.operator, (0, 0, "", 0))
        time_s = verdict.time_s.median
        predicted = Prediction(low_s=0.8 * time_s, time_s=0.9 * time_s, high_s=1.1 * time_s) if flops else None
        more = {"flops": flops, "bytes": size, "access": access, "row_traffic_bytes": rows, "parallel_regions": 1, "predicted": predicted}
        verdicts.append(verdict.model_copy(update=more))
    use = TableUse(
        table=1, rank=0, rows=1000, dim=64, lookups=2048, unique=400, hot_rows=16, hot_share=0.5, range_load=1.9, modulo_load=1.02,
        bucketed_load=1.05, forward_s=1e-3, forward_ceiling_s=9e-4, update_s=8e-3, update_ceiling_s=2e-3,
    )  # fmt: skip
    spans, at = [], 0.0
    for verdict in verdicts[:3]:
        spans.append(TimedSpan(rank=0, operator=verdict.operator, begin_s=at, end_s=at + verdict.time_s.median))
        at += verdict.time_s.median
    profile = hardware_profile.model_copy(
        update={"ceilings": hardware_profile.ceilings.model_copy(update={"scatter": hardware_profile.ceilings.gather})}
    )
    recorded = {
        "model": model.name, "workload": model, "profile": profile, "verdicts": tuple(verdicts), "tables": (use,), "timeline": tuple(spans),
    }  # fmt: skip
    predicted = Prediction(low_s=0.07, time_s=0.075, high_s=0.08)
    return recorded_with(tuned_config, **recorded).model_copy(update={"model": model.name, "predicted_iteration": predicted})


@pytest.fixture(scope="session")
def four_sockets(full_config: TunedConfig) -> TunedConfig:
    """On four ranks: a split and a replicated table, transfers, one rank slower than the others for its look-ups."""
    sent = {"bytes_sent": 2**20, "binder": "network"}
    transfers = (
        MeasuredPass(operator="all_to_all.forward", time_s=around(0.004), fractions={"network": 0.8}, detail="", hidden_s=0.001, **sent),
        MeasuredPass(operator="all_reduce", time_s=around(0.002), fractions={"network": 0.7}, detail="", hidden_s=0.0, **sent),
    )
    passes = {verdict.operator: verdict.time_s.median for verdict in (*full_config.verdicts[:3], *transfers)}
    ranks, spans = [], []
    for rank in range(4):
        slower = passes | ({"embedding_bag.forward": 0.03} if rank == 2 else {})
        compute_s = sum(time_s for key, time_s in slower.items() if not key.startswith("all_"))
        ranks.append(
            RankRow(
                rank=rank, compute_s=compute_s, waiting_s=0.006, tables=1, memory_bytes=7_000_000, lookups=60_000 if rank == 2 else 20_000,
                passes_s=slower,
            )
        )  # fmt: skip
        at = 0.0
        for key, time_s in slower.items():
            spans.append(TimedSpan(rank=rank, operator=key, begin_s=at, end_s=at + time_s))
            at += time_s
    tables = (Placement(kind="row_wise", ranks=(0, 1, 2, 3), bounds=(0, 25_000, 50_000, 75_000, 100_000)), Placement(kind="replicated"))
    config = full_config.config.model_copy(
        update={"partition": Partition(ranks=4, tables=tables), "communication": CommunicationKnobs(overlap=False)}
    )
    verdicts = (*full_config.verdicts, *transfers)
    recorded = recorded_with(full_config, sockets=4, verdicts=verdicts, ranks=tuple(ranks), timeline=tuple(spans))
    launch = full_config.launch.model_copy(update={"rank_cpus": ((0,), (1,), (2,), (3,))})
    return recorded.model_copy(update={"sockets": 4, "config": config, "launch": launch})
