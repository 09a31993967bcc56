from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.config import files
from autotune.config.files import dump_yaml, load_profile, load_tuned, load_tuned_and_record, record_path, write_tuned, write_yaml
from autotune.config.knobs import RunConfig
from autotune.config.profile import Ceilings, ComputePoint, Fingerprint, Profile, RowPoint, StreamPoint, TimePoint, Topology
from autotune.config.tuned import Gain, Interval, Launch, MeasuredPass, Prediction, Provenance, Record, TunedConfig, knobs_hash
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


PASS = MeasuredPass(
    operator="a", time_s=interval(1e-3), binder="memory", fractions={"memory": 0.9}, detail="gather: 90 %", flops=2_000_000,
    bytes=4_000_000, row_traffic_bytes=8_000_000, predicted=Prediction(low_s=4e-4, time_s=5e-4, high_s=6e-4),
)  # fmt: skip


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
        schema=3,
        model="small",
        model_hash="ab" * 32,
        sockets=1,
        minibatch=2048,
        config=RunConfig(threads=2, operators=operators),
        knobs_hash=knobs_hash(operators),
        launch=Launch(threads=2, cpus=(0, 1), environment={"OMP_NUM_THREADS": "2", "AUTOTUNE_TARGET": "avx2", "GLIBC_TUNABLES": "a=1:b=2"}),
        default_iteration_s=interval(time_s),
        tuned_iteration_s=interval(time_s / 7),
        speedup=interval(7.0),
        significant=True,
        bound_by={"a": "memory 90 %, 1 ns"},
        record=Record(
            schema=1,
            model="small",
            model_hash="ab" * 32,
            sockets=1,
            created="2025-01-01T00:00:00Z",
            knobs_hash=knobs_hash(operators),
            defaults=operators | {"bottom_mlp.0.forward": LayerKnobs()},
            gains=(gain,),
            verdicts=(PASS,),
        ),
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


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A tuned config and its record in a folder of their own."""
    write_tuned(tmp_path / "x.tuned.yaml", tuned())
    return tmp_path / "x.tuned.yaml"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.floats(min_value=1e-300, max_value=1e100))
def test_a_tuned_config_comes_back_equal_to_the_last_bit(tmp_path: Path, time_s: float) -> None:
    write_tuned(tmp_path / "x.tuned.yaml", tuned(time_s))
    assert load_tuned_and_record(tmp_path / "x.tuned.yaml") == tuned(time_s)


def test_a_tuned_file_is_made_to_be_read(written: Path) -> None:
    text = written.read_text()
    assert text.startswith("schema: 3\nkind: tuned_config\nmodel: small\n")
    assert "  cpus: [0, 1]\n" in text
    assert "    OMP_NUM_THREADS: '2'\n" in text
    assert "  a: memory 90 %, 1 ns\n" in text
    assert "&id" not in text
    assert not {"record", "verdicts", "gains", "profile"} & {line.split(":")[0] for line in text.splitlines()}


def test_the_config_names_only_knobs_that_differ_from_the_default(written: Path) -> None:
    assert list(load_tuned(written).config.operators) == ["bottom_mlp.0.forward"]
    assert load_tuned_and_record(written).config.operators == tuned().config.operators


def test_what_was_edited_by_hand_stands(written: Path) -> None:
    written.write_text(written.read_text().replace("bn: 32", "bn: 16"))
    knobs = load_tuned_and_record(written).config.operators["bottom_mlp.0.forward"]
    assert isinstance(knobs, LayerKnobs)
    assert knobs.bn == 16


@pytest.mark.parametrize(
    ("config", "record"),
    [("x.tuned.yaml", "x.record.json"), ("x.yaml", "x.record.json"), ("x.yml", "x.record.json"), ("x", "x.record.json"),
     ("a.tuned.b.yaml", "a.tuned.b.record.json")],
)  # fmt: skip
def test_the_record_lies_beside_its_config(config: str, record: str) -> None:
    assert record_path(Path("folder") / config) == Path("folder") / record


def test_the_record_is_written_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: object, value: object) -> None:
        raise InputError("no space")

    monkeypatch.setattr(files, "write_yaml", fail)
    with pytest.raises(InputError, match="no space"):
        write_tuned(tmp_path / "x.tuned.yaml", tuned())
    assert [path.name for path in tmp_path.iterdir()] == ["x.record.json"]


def test_without_its_record_a_config_says_nothing_of_what_was_measured(written: Path) -> None:
    record_path(written).unlink()
    config = load_tuned_and_record(written)
    assert config == load_tuned(written)
    assert config.record is None
    assert (config.verdicts, config.gains, config.tables, config.profile) == ((), (), (), None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"kind"', '"kind', r"malformed JSON: .* \(.*x.record.json:\d+:\d+\); the file was cut short or edited: restore or remove it"),
        ('"schema": 1', '"schema": 9', r"schema 9 is newer than this autotune understands \(1\) \(.*x.record.json"),
        ('"binder"', '"bindre"', r"unknown key 'bindre' \(.*x.record.json: verdicts\[0\].bindre\); did you mean 'binder'"),
        ("2025-01-01", "2024-01-01", r"got .*x.record.json of small on 1 socket, tuned 2024.*, .*x.tuned.yaml of small .*, tuned 2025"),
        ("abab", "cdab", r"a record must belong to the config beside it, got .*x.record.json of .*x.tuned.yaml of .*; put each beside"),
    ],
)
def test_a_bad_record_is_refused_and_the_config_alone_still_loads(written: Path, old: str, new: str, message: str) -> None:
    file = record_path(written)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        load_tuned_and_record(written)
    assert "\n" not in str(caught.value)
    assert load_tuned(written).model == "small"


def test_a_cut_record_is_refused(written: Path) -> None:
    file = record_path(written)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match="cut short"):
        load_tuned_and_record(written)


@pytest.mark.parametrize("schema", [1, 2])
def test_files_that_hold_their_record_still_load(tmp_path: Path, schema: int) -> None:
    """Up to schema 2 everything stood in the YAML, and every pass was named."""
    config = tuned()
    assert config.record is not None
    old = config.model_dump(mode="json", by_alias=True, exclude={"bound_by", "knobs_hash"}, round_trip=True) | {"schema": schema}
    old |= config.record.model_dump(mode="json", include={"gains", "verdicts"}, round_trip=True)
    for verdict in old["verdicts"]:
        del verdict["share"], verdict["imbalance"]
    write_yaml(tmp_path / "x.tuned.yaml", old)
    loaded = load_tuned(tmp_path / "x.tuned.yaml")
    assert loaded == load_tuned_and_record(tmp_path / "x.tuned.yaml")
    assert (loaded.verdicts, loaded.gains, loaded.config) == (config.verdicts, config.gains, config.config)
    write_tuned(tmp_path / "new.yaml", loaded)
    assert load_tuned_and_record(tmp_path / "new.yaml") == loaded
    text = (tmp_path / "x.tuned.yaml").read_text().replace("binder: memory", "bindre: memory")
    (tmp_path / "x.tuned.yaml").write_text(text)
    with pytest.raises(InputError, match=r"unknown key 'bindre' \(.*x.tuned.yaml:\d\d+: verdicts\[0\].bindre\); did you mean 'binder'"):
        load_tuned(tmp_path / "x.tuned.yaml")


def test_a_record_inside_the_config_is_refused_with_its_place(written: Path) -> None:
    written.write_text(written.read_text() + "record: {}\n")
    with pytest.raises(InputError, match=r"unknown key 'record' \(.*x.tuned.yaml:\d+: record\); .*x.record.json: remove"):
        load_tuned(written)


def test_figures_of_a_pass_follow_from_its_work_and_time() -> None:
    assert PASS.flops_per_s == pytest.approx(2e9)
    assert PASS.bandwidth_bytes_per_s == pytest.approx(8e9)
    assert PASS.intensity == pytest.approx(0.25)
    assert PASS.above_ceiling_s == pytest.approx(1e-4)
    assert PASS.over_predicted == pytest.approx(2.0)
    sent = MeasuredPass(operator="b", time_s=interval(1e-3), binder="none", fractions={}, detail="", bytes_sent=4_000_000, hidden_s=1e-3)
    assert sent.bandwidth_bytes_per_s == pytest.approx(2e9)
    assert (sent.flops_per_s, sent.intensity, sent.above_ceiling_s, sent.over_predicted) == (None, None, None, None)


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
        ("schema: 3", "schema: 9", "schema 9 is newer"),
        ("bn: 32", "bn: 99999999999999999999", r"bn should be less than or equal to 65536, got 9"),
        *(
            ("AUTOTUNE_TARGET: ", f"{name!r}: ", rf"sets only OMP_NUM_THREADS, .*, got '{name}' \(.*:\d+: launch.environment.{name}\)")
            for name in ("LD_PRELOAD", "PYTHONPATH", "PATH", "PYTHONSTARTUP", "A=B; false", "AUTOTUNE_CACHE")
        ),
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
