"""Bad input of every kind, generated: a documented exit code, one message, no traceback, and nothing written."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import command_line
import pytest
import yaml
from typer.testing import Result

from autotune import catalog
from autotune.config.files import write_tuned
from autotune.config.model import DataSpec, Model
from autotune.config.tuned import TunedConfig
from autotune.data.batches import make_source
from autotune.dlrm.checkpoint import read_checkpoint
from autotune.errors import InputError
from autotune.ranks.session import Cores

REFUSALS = {2, 3}
VALUES = (
    "-1", "0", "''", "x", "null", "[]", "{}", "1e400", ".nan", "-.inf", "true", "99999999999999999999", "[1, [2]]",
    "!!python/name:os.system",
    "!!set {a}", "*alias", "&a 1", "'\\0'", "1.5", "{a: 1}", "\"\\ud800\"", "@", "2024-01-01", "[" * 60,
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever is not refused would start here, and fail the test as an error that nobody foresaw."""

    def started(*_: object) -> None:
        raise AssertionError("the input was not refused")

    monkeypatch.setattr(Cores, "start", started)
    monkeypatch.setattr("autotune.ranks.launch.ensure_environment", started)
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def invoke(folder: Path, words: list[str], *, refused: bool) -> Result:
    """Without a refusal the input happened to be good; with one, all rules of a refusal hold."""
    before = contents(folder)
    result = command_line.invoke(*words)
    shown = f"{words}: {result.exit_code}\n{result.output}"
    assert contents(folder) == before, shown
    if result.exit_code == 0 and not refused:
        return result
    assert result.exit_code in REFUSALS, shown
    assert result.stdout == "", shown
    assert "Traceback" not in result.stderr, shown
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert lines, shown
    assert lines[0].startswith("error: "), shown
    assert sum(line.startswith("error: ") for line in lines) == 1, shown
    assert len(lines) <= 4, shown  # a file with several flaws names the first three
    assert all(len(line) < 2000 for line in lines), shown
    return result


def mutants(text: str, count: int, seed: int) -> Iterator[str]:
    """Changed copies of a YAML file: values, keys, structure, bytes."""
    chance = random.Random(seed)
    lines = text.splitlines()
    for number in range(count):
        changed = list(lines)
        at = chance.choice([i for i, line in enumerate(lines) if ":" in line])
        kind = number % 6
        key, _, value = changed[at].partition(":")
        if kind < 3:
            changed[at] = f"{key}: {VALUES[number // 2 % len(VALUES)]}"
            # What hung below the value would be another error.
            depth = len(key) - len(key.lstrip())
            while at + 1 < len(changed) and len(changed[at + 1]) - len(changed[at + 1].lstrip()) > depth and not value.strip():
                del changed[at + 1]
        elif kind == 3:
            changed[at] = f"{key}x:{value}"
        elif kind == 4:
            changed.insert(at, changed[at])
        else:
            changed = (
                changed[:at]
                if number % 4
                else [*changed[:at], " " * chance.randrange(9) + chance.choice(["\t", "- -", "? :", "%"]), *changed[at:]]
            )
        yield "\n".join(changed) + "\n"


@pytest.mark.parametrize("seed", range(4))
def test_models(tmp_path: Path, seed: int) -> None:
    file, refusals = tmp_path / "m.yaml", 0
    for text in mutants(catalog.find_model("tiny").read_text(), 24, seed):
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        refusals += invoke(tmp_path, ["plan", str(file), "--sockets", "2"], refused=False).exit_code != 0
    assert refusals >= 12


@pytest.mark.parametrize("seed", range(2))
def test_profiles(tmp_path: Path, seed: int) -> None:
    file, refusals = tmp_path / "p.yaml", 0
    for text in mutants(catalog.find_profile("xeon-8280").read_text(), 10, seed):
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        refusals += invoke(tmp_path, ["scale", "tiny", "--profile", str(file), "--sockets", "1,2"], refused=False).exit_code != 0
    assert refusals >= 4


@pytest.mark.parametrize("number", ["0", "-1.0", ".nan"])
@pytest.mark.parametrize("key", ["flops_per_s", "bandwidth_bytes_per_s", "time_s", "threads", "row_bytes"])
def test_numbers_of_a_profile_are_positive_and_finite(tmp_path: Path, key: str, number: str) -> None:
    text = catalog.find_profile("xeon-8280").read_text()
    at = text.index(f"{key}: ", text.index("ceilings:")) + len(key) + 2
    end = min(text.index(mark, at) for mark in ",}\n" if mark in text[at:])
    file = tmp_path / "p.yaml"
    file.write_text(text[:at] + number + text[end:])
    result = invoke(tmp_path, ["scale", "tiny", "--profile", str(file), "--sockets", "1"], refused=True)
    line = text.count("\n", 0, at) + 1
    assert f"{file}:{line}: " in result.stderr
    assert key in result.stderr


@pytest.mark.parametrize("seed", range(2))
def test_configs(tmp_path: Path, full_config: TunedConfig, seed: int) -> None:
    file, refusals = tmp_path / "c.tuned.yaml", 0
    write_tuned(file, full_config)
    for number, text in enumerate(mutants(file.read_text(), 18, seed)):
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        words = (["explain", str(file)], ["export", str(file), "--to", "slurm"], ["verify", str(file)])[number % 3]
        refusals += invoke(tmp_path, words, refused=words[0] == "verify").exit_code != 0
    assert refusals >= 10


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", "5", '{"schema": 1}', '{"schema": 99}', "\0\0", '{"schema": 1, "model": "other"}', "[" * 5000, '{"a": NaN}'],
)
def test_records(tmp_path: Path, full_config: TunedConfig, damage: str) -> None:
    file = tmp_path / "c.tuned.yaml"
    write_tuned(file, full_config)
    record = tmp_path / "c.record.json"
    record.write_text(damage)
    assert "c.record.json" in invoke(tmp_path, ["explain", str(file)], refused=True).stderr
    record.write_text("")
    assert invoke(tmp_path, ["export", str(file), "--to", "env"], refused=False).exit_code == 0


NUMBERS = ("-1", "0", "x", "", "1e3", "nan", "0x10", "99999999999999999999")
OPTIONS = [
    *(["run", "tiny", "--steps", value] for value in NUMBERS[:-1]),
    *(["profile", "tiny", "--rounds", value] for value in NUMBERS[:-1]),
    *(["run", "tiny", "--sockets", value] for value in NUMBERS),
    *(["tune", "tiny", "--sockets", value, "--budget", "5s"] for value in NUMBERS),
    *(["plan", "tiny", "--sockets", value] for value in (*NUMBERS, "100000")),
    *(["run", "tiny", "--threads", value] for value in NUMBERS),
    *(["run", "tiny", "--minibatch", value] for value in NUMBERS),
    *(["run", "tiny", "--max-rows", value] for value in NUMBERS[:-1]),
    *(["run", "tiny", "--seed", value] for value in ("-1", "x", "", "1e3", "99999999999999999999")),
    *(["tune", "tiny", "--budget", value] for value in ("-1", "0", "x", "", "nan", "inf", "5 s s", "1h-3s", "1e400", "-5s")),
    *(["verify", "nowhere.yaml", "--budget", value] for value in ("-1", "x", "")),
    *(
        ["run", "tiny", "--data", value]
        for value in ("", "x", "zipf:", "zipf:0", "zipf:nan", "zipf:-1", "histogram:", "criteo:x", "/dev/null", "/")
    ),
    *(["run", "tiny", "--dtype", value] for value in ("", "fp16", "FP32", "0")),
    *(["run", "tiny", "--optimizer", value] for value in ("", "adam", "SGD")),
    *(
        ["run", name]
        for name in ("", "x" * 5000, "../..", "/dev/null", "tiny[", "tiny[max_rows=]", "tiny[max_rows=x]", "tiny[a=1]", "tiny[]", "a\0b")
    ),
    *(["run", "tiny", "--config", name] for name in ("", "x" * 5000, "/", "/dev/null", "nowhere.yaml", "a\0b")),
    *(["scale", "tiny", "--profile", name] for name in ("", "x" * 5000, "/", "nowhere")),
    *(["scale", "tiny", "--profile", "xeon-8280", "--sockets", value] for value in ("", "0", "1,", "1,x", "-1", "1e3", "1,99999999")),
    *(
        ["scale", "tiny", "--profile", "xeon-8280", *pair]
        for pair in (("--wire", "x"), ("--placing", "x"), ("--all-to-all", "x"), ("--overhead", "x"))
    ),
    *(["plan", "tiny", "--sockets", "2", "--pin", value] for value in ("", "x", "0", "0=9", "9=0", "0=0,1", "=", "-1=0")),
    *(["plan", "tiny", "--sockets", "2", "--kinds", value] for value in ("", "x", ",", "table_wise,x")),
    *(["plan", "tiny", "--sockets", "2", "--memory-per-socket", value] for value in ("", "x", "-1GB", "0", "1XB", "nan")),
    *(["compare", "tiny", *pair] for pair in (("--peers", "x"), ("--peers", ""), ("--budget", "0"), ("--seed", "-1"))),
    *(["export", "nowhere.yaml", "--to", value] for value in ("", "x", "ENV")),
    *(["run", "tiny", "--checkpoint-in", name, "--steps", "1"] for name in ("", "/", "nowhere.pt", "x" * 5000)),
    *(["run", "tiny", name, "no/such/folder/x"] for name in ("-o", "--checkpoint-out")),
    ["run", "tiny", "--checkpoint-out", "x", "-o", "x"], ["tune", "tiny", "--wire", "x"],
    ["explain", "nowhere.yaml", "--html", "x", "--trace", "x"], ["run"], ["run", "tiny", "more"], ["runn"], ["run", "--step", "3", "tiny"],
    ["--no-such"], ["validate", "nowhere"], ["validate", "tiny", "--budget", "x"], ["models", "--jsn"], ["export", "x.yaml"],
]  # fmt: skip


@pytest.mark.parametrize("words", OPTIONS, ids=lambda words: " ".join(words)[:60].encode("ascii", "replace").decode().replace("\0", "0"))
def test_options(tmp_path: Path, words: list[str]) -> None:
    invoke(tmp_path, words, refused=True)


ALLOWED = {
    ("AUTOTUNE_OVERSUBSCRIBE", ""), ("AUTOTUNE_OVERSUBSCRIBE", "0"), ("OMP_NUM_THREADS", ""),
}  # fmt: skip
VARIABLES = [
    (name, value)
    for name in ("AUTOTUNE_HANG_S", "AUTOTUNE_STALL_S", "AUTOTUNE_START_S", "AUTOTUNE_OVERSUBSCRIBE", "OMP_NUM_THREADS", "WORLD_SIZE")
    for value in ("x", "-1", "0", "nan", "inf", "1 2", "", "/dev/null")
    if (name, value) not in ALLOWED
]


@pytest.mark.parametrize(("name", "value"), [*VARIABLES, ("AUTOTUNE_CACHE", "/dev/null"), ("AUTOTUNE_CACHE", "/dev/null/x")])
def test_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv(name, value)
    stderr = invoke(tmp_path, ["plan", "tiny", "--sockets", "1"], refused=True).stderr
    assert name in stderr
    assert repr(value) in stderr


def junk() -> list[bytes]:
    chance = random.Random(1)
    kinds = [
        b"",
        b"\n",
        b"text\n",
        b"\x1f\x8b\x08",
        b"PK\x03\x04",
        b"\x80\x02}q\x00.",
        b"\xff\xfe\0\0",
        b"label,I1\n1,2\n",
        b"1\t2\t3\n",
        b"\0" * 99,
    ]
    row = "\t".join(["1", *["3"] * 13, *["68fd1e64"] * 26]).encode()
    rows = [
        row.replace(b"1\t", b"2\t", 1), row.replace(b"3", b"x", 1), row + b"\t", row.replace(b"68fd1e64", b"zz", 1), row[:50],
        row.replace(b"1\t", b"\t", 1), row.replace(b"3", b"1e400", 1), row.replace(b"3", b"nan", 1), row + b"\n\n" + row, b"\0" + row,
    ]  # fmt: skip
    return [*kinds, *(each + b"\n" for each in rows), *(chance.randbytes(200) for _ in range(10))]


def wide_model() -> Model:
    tiny = catalog.load_model_by_name("tiny")
    return tiny.model_copy(update={"tables": tiny.tables[:1] * 26})


@pytest.mark.parametrize("distribution", ["criteo", "histogram"])
@pytest.mark.parametrize("data", junk(), ids=range(len(junk())))
def test_data_files(tmp_path: Path, data: bytes, distribution: str) -> None:
    file = tmp_path / "data"
    file.write_bytes(data)
    with pytest.raises(InputError, match="data") as raised:
        make_source(wide_model(), DataSpec.model_validate({"distribution": distribution, "path": str(file)})).batch(0)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("data", junk(), ids=range(len(junk())))
def test_checkpoints(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "w.pt"
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"w\.pt") as raised:
        read_checkpoint(file)
    assert len(str(raised.value).splitlines()) == 1
    assert not any(f"got {number}" in str(raised.value) for number in range(10))


@pytest.mark.parametrize("option", ["--data", "--checkpoint-in", "--config"])
def test_a_pipe_is_no_file_to_read_twice(tmp_path: Path, option: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "fifo" in invoke(tmp_path, ["run", "tiny", option, str(tmp_path / "fifo")], refused=True).stderr


def test_every_generated_file_is_one_that_a_hand_could_have_written() -> None:
    """The generator is of use only while most of what it makes is still YAML."""
    texts = [*mutants(catalog.find_model("tiny").read_text(), 60, 0)]
    readable = 0
    for text in texts:
        try:
            yaml.safe_load(text)
        except yaml.YAMLError:
            continue
        readable += 1
    assert readable > len(texts) // 3
