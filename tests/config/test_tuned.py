from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.config.files import dump_yaml, load_profile, load_tuned, write_yaml
from autotune.config.knobs import RunConfig
from autotune.config.profile import Ceilings, ComputePoint, Fingerprint, Profile, RowPoint, StreamPoint, TimePoint, Topology
from autotune.config.tuned import Gain, Interval, Launch, Provenance, TunedConfig, Verdict
from autotune.errors import InputError
from autotune.ops.embedding_tables import EmbeddingForwardKnobs, EmbeddingUpdateKnobs
from autotune.ops.interaction import InteractionKnobs
from autotune.ops.layer import LayerKnobs

TOPOLOGY = Topology(
    cpu_model="Some CPU @ 2.5: #1",
    vendor="x",
    sockets=1,
    physical_cores=2,
    logical_cpus=4,
    allowed_cpus=tuple(range(64)),
    core_cpus=((0, 2), (1, 3)),
    socket_of_core=(0, 0),
    numa_nodes={0: (0, 1, 2, 3), 1: ()},
    l1d_bytes=32768,
    l2_bytes=524288,
    l3_bytes=2**25,
    l3_instances=1,
    isa=("avx2", "fma"),
    cpu_quota=None,
    memory_bytes=2**35,
    memory_limit_bytes=24 * 2**30,
    huge_pages="madvise",
)
FINGERPRINT = Fingerprint(topology=TOPOLOGY, kernel="6.1", versions={"python": "3.11", "torch": "2.10"}, target="avx2")


def interval(median: float) -> Interval:
    return Interval(median=median, low=median * 0.9, high=median * 1.1, samples=15)


def tuned(time_s: float = 0.1 + 0.2) -> TunedConfig:
    operators = {
        "embedding_bag.forward": EmbeddingForwardKnobs(prefetch_distance=16),
        "embedding_bag.update": EmbeddingUpdateKnobs(strategy="race_free_range"),
        "bottom_mlp.0.forward": LayerKnobs(bn=32, implementation="torch"),
        "interaction.forward": InteractionKnobs(),
    }
    gain = Gain(
        operator="bottom_mlp.0.forward",
        knob="bk 32 -> 16",
        default_s=interval(time_s),
        tuned_s=interval(time_s / 3),
        speedup=interval(3.0),
        candidates=12,
        kept=True,
    )
    return TunedConfig(
        schema=1,
        model="small",
        model_hash="ab" * 32,
        sockets=1,
        minibatch=2048,
        config=RunConfig(threads=2, operators=operators),
        launch=Launch(threads=2, cpus=(0, 1), environment={"OMP_NUM_THREADS": "2", "FLAG": "on", "GLIBC_TUNABLES": "a=1:b=2"}),
        default_iteration_s=interval(time_s),
        tuned_iteration_s=interval(time_s / 7),
        speedup=interval(7.0),
        significant=True,
        gains=(gain,),
        verdicts=(Verdict(operator="a", time_s=interval(1e-9), binder="memory", fractions={"memory": 0.9}, detail="gather: 90 %"),),
        fingerprint=FINGERPRINT,
        provenance=Provenance(
            created="2025-01-01T00:00:00Z",
            autotune_version="0.1",
            command="autotune tune small",
            seed=0,
            budget_s=120.0,
            spent_s=1e-5,
            trials=3,
            notes=("disturbed: yes",),
        ),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.floats(min_value=1e-300, max_value=1e100))
def test_a_tuned_config_comes_back_equal_to_the_last_bit(tmp_path: Path, time_s: float) -> None:
    write_yaml(tmp_path / "x.tuned.yaml", tuned(time_s))
    assert load_tuned(tmp_path / "x.tuned.yaml") == tuned(time_s)


def test_a_tuned_file_is_made_to_be_read() -> None:
    text = dump_yaml(tuned())
    assert text.startswith("schema: 1\nkind: tuned_config\nmodel: small\n")
    assert "  cpus: [0, 1]\n" in text
    assert "    embedding_bag.update: {kind: embedding_update, strategy: race_free_range, prefetch_distance: 8}\n" in text
    assert "    OMP_NUM_THREADS: '2'\n" in text
    assert "&id" not in text


def test_a_profile_comes_back_equal(tmp_path: Path) -> None:
    ceilings = Ceilings(
        fma=(ComputePoint(threads=1, flops_per_s=1.02e11),),
        gemm=(ComputePoint(threads=2, flops_per_s=1.9e11, shape="2048x1024x1024 blocked"),),
        stream=(StreamPoint(kind="copy_nt", threads=2, bandwidth_bytes_per_s=4.1e10),),
        gather=(RowPoint(row_bytes=256, working_set_bytes=2**28, threads=2, bandwidth_bytes_per_s=2e10 / 3),),
        scatter=(),
        fork_join=(TimePoint(threads=2, time_s=1.5e-6),),
    )
    profile = Profile(schema=1, name="x", source="test", created="2025-01-01T00:00:00Z", fingerprint=FINGERPRINT, ceilings=ceilings)
    write_yaml(tmp_path / "x.yaml", profile)
    assert load_profile(tmp_path / "x.yaml") == profile


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "strategy: race",
            "strategie: race",
            r"\(.*:\d+: config.operators.embedding_bag.update.strategie\); did you mean 'stra",
        ),
        ("bn: 32", "bn: 0", r"bn should be greater than or equal to 1, got 0 \(.*: config.operators.bottom_mlp.0.forward.bn\)"),
        ("kind: layer", "kind: lair", "kind must be one of .*layer.*, got 'lair' .*mlp.0.forward.kind"),
        ("memory_limit_bytes", "memory_limit", "unknown key 'memory_limit' .*did you mean 'memory_limit_bytes'"),
        ("schema: 1", "schema: 9", "schema 9 is newer"),
        ("bn: 32", "bn: 99999999999999999999", r"bn should be less than or equal to 65536, got 9"),
        ("FLAG: ", "'A=B; false': ", r"name must be letters, digits and _, got 'A=B; false' \(.*:\d+: launch.environment.A=B; false\)"),
        ("OMP_NUM_THREADS: '2'", 'OMP_NUM_THREADS: "2\\0"', r"must not hold a NUL, got '2\\x00' \(.*: launch.environment.OMP_NUM\w+\)"),
        ("  threads: 2\n  cpus", "  threads: 1\n  cpus", r"must have the same threads \(2\), got 1 \(.*: launch.threads\)"),
        ("cpus: [0, 1]", "cpus: []", r"each of the 2 threads to a CPU of its own, got \[\] \(.*: launch.cpus\)"),
        ("cpus: [0, 1]", "cpus: [1, 1]", r"a CPU of its own, got \[1, 1\]"),
    ],
)
def test_a_bad_tuned_config_is_refused_by_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = dump_yaml(tuned())
    assert old in text
    (tmp_path / "x.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        load_tuned(tmp_path / "x.yaml")
    assert "\n" not in str(caught.value)
