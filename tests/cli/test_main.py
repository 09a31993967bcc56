from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import invoke, refused
from typer.testing import Result

from autotune import __version__, catalog
from autotune.cli import main, models
from autotune.cli.main import interrupted
from autotune.config.files import record_path, write_tuned
from autotune.config.tuned import TunedConfig
from autotune.machine import topology as machine
from autotune.ranks.interrupt import Terminated

COMMANDS = main.COMMANDS
GIB = 2**30


def changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_help_names_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(f"\n  {command} " in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Example: " in result.stdout
    assert f"autotune {command}" in result.stdout
    assert invoke(command, "-h").stdout == result.stdout


def test_help_and_version_work_whatever_the_environment_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AUTOTUNE_HANG_S",
        "AUTOTUNE_STALL_S",
        "AUTOTUNE_OVERSUBSCRIBE",
        "OMP_NUM_THREADS",
        "WORLD_SIZE",
        "AUTOTUNE_TARGET",
        "GLOO_SOCKET_IFNAME",
    ):
        monkeypatch.setenv(name, "bad")
    for words in (["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)):
        assert invoke(*words).exit_code == 0
    refused(invoke("models"), 2, "AUTOTUNE_HANG_S", "'bad'")


# What a command may not load, since it does without; each takes 0.05 to 2 s. `torch` stands for all that it brings.
HEAVY = ("torch", "pandas", "optuna", "matplotlib", "scipy", "sqlalchemy")
UNLISTED = ("numpy", "jinja2", "autotune.ops", "autotune.config.tuned", "autotune.ranks.binding", "autotune.ranks.supervisor")
MODULES_NOT_LOADED = {
    "--help": (*HEAVY, "pydantic", "yaml", "numpy", "rich", "jinja2"),
    "tune --help": (*HEAVY, "yaml", "numpy", "rich", "jinja2"),
    "models": (*HEAVY, *UNLISTED, "rich.progress"),
    "models --json": (*HEAVY, *UNLISTED, "rich"),
    "plan tiny --sockets 2": (*HEAVY, "jinja2"),
    "scale tiny --profile xeon-8280 --sockets 1,2": (*HEAVY, "jinja2"),
    "explain CONFIG": (*HEAVY, "jinja2", "rich.progress"),
    "explain CONFIG --html page.html": (*HEAVY, "rich.progress"),
    "explain CONFIG --figures figures": (*HEAVY, "rich.progress"),
    "export CONFIG --to slurm": (*HEAVY, "rich"),
}
_LOADED = """
import json, sys
from autotune.cli.main import command_line
try:
    code = command_line(sys.argv[1:])(sys.argv[1:], standalone_mode=False)
finally:
    sys.__stderr__.write(json.dumps([code, sorted(sys.modules)]))
"""


@pytest.mark.parametrize("line", MODULES_NOT_LOADED)
def test_a_command_loads_no_module_that_it_does_without(line: str, config_file: Path, full_config: TunedConfig, tmp_path: Path) -> None:
    write_tuned(config_file, full_config)
    words = [str(config_file) if word == "CONFIG" else word for word in line.split()]
    done = subprocess.run([sys.executable, "-P", "-c", _LOADED, *words], capture_output=True, text=True, cwd=tmp_path, check=True)
    code, loaded = json.loads(done.stderr.splitlines()[-1])
    assert code in (0, None)
    assert [name for name in MODULES_NOT_LOADED[line] if name in loaded] == []


LONG_COMMANDS = [
    "probe", "run tiny", "profile tiny", "tune tiny -o tiny.yaml", "verify CONFIG", "validate tiny", "compare tiny", "run tiny --sockets 2",
]  # fmt: skip
_FIRST_PHASE = """
import sys
from autotune.cli import progress
from autotune.cli.main import command_line

class Stop(BaseException):
    pass

def phase(self, name, total):
    raise Stop(name)

progress.Lines.phase = phase
for line in sys.argv[1:]:
    try:
        command_line(line.split())(line.split(), standalone_mode=False)
    except Stop as stop:
        print(line, stop, "torch" in sys.modules, sep=": ")
"""


def test_a_long_command_names_its_first_phase_before_it_loads_torch(tmp_path: Path, tuned_config: TunedConfig) -> None:
    tiny, here = catalog.load_model_by_name("tiny"), machine.detect()
    mine = tuned_config.fingerprint.model_copy(update={"topology": here})
    used = {"model": "tiny", "model_hash": tiny.hash(), "minibatch": tiny.minibatch, "fingerprint": mine}
    write_tuned(tmp_path / "mine.yaml", tuned_config.model_copy(update=used))
    lines = [line.replace("CONFIG", "mine.yaml") for line in LONG_COMMANDS if here.physical_cores > 1 or "--sockets" not in line]
    done = subprocess.run([sys.executable, "-P", "-c", _FIRST_PHASE, *lines], capture_output=True, text=True, cwd=tmp_path)
    phases = {line: "starting 2 ranks" if "--sockets" in line else "loading torch" for line in lines}
    assert done.stdout.splitlines() == [f"{line}: {phase}: False" for line, phase in phases.items()], done.stderr


def test_version() -> None:
    assert invoke("--version").stdout == f"autotune {__version__}\n"


@pytest.mark.parametrize("line", ["tun", "tune tiny --sockets", "tune tiny --bugdet 3s", "run tiny --steps 0", "run tiny --seed -1"])
def test_wrong_usage_ends_with_2(line: str) -> None:
    refused(invoke(*line.split()), 2, "see autotune")


@pytest.mark.parametrize("command", ["run", "profile", "tune"])
def test_an_unknown_model_is_answered_with_near_ones(command: str) -> None:
    refused(invoke(command, "smal"), 2, "unknown model 'smal'", "did you mean small")


@pytest.mark.parametrize(
    ("old", "new", "piece"),
    [
        ("bottom_mlp: [13, 32, 16]", "bottom_mlp: [13, 32, 16", "malformed YAML"),
        ("dim: 16", "dim: -16", "embedding dim must be positive, got -16"),
        ("learning_rate", "learning_rat", "did you mean 'learning_rate'"),
        ("schema: 1", "schema: 7", "schema 7 is newer"),
    ],
)
def test_a_bad_model_file_is_refused_with_its_line(model_file: Path, old: str, new: str, piece: str) -> None:
    refused(invoke("run", changed(model_file, old, new)), 2, piece, f"{model_file}:")


@pytest.mark.parametrize(("command", "sockets"), [("run", "0"), ("run", "-1"), ("tune", "0"), ("tune", "-1")])
def test_sockets_have_a_rule(command: str, sockets: str) -> None:
    refused(invoke(command, "tiny", "--sockets", sockets), 2, f"got {sockets} (--sockets)", "--sockets 1")


@pytest.mark.parametrize("budget", ["soon", "0", "-3s", "inf"])
def test_a_bad_budget_is_refused(budget: str) -> None:
    refused(invoke("tune", "tiny", "--budget", budget), 2, "duration", repr(budget), "120s")


@pytest.mark.parametrize(
    "arguments",
    [("tune", "tiny", "-o"), ("run", "tiny", "--checkpoint-out"), ("run", "tiny", "-o"), ("profile", "tiny", "-o"), ("probe", "-o")],
)
def test_an_unwritable_output_is_refused_before_the_work(arguments: tuple[str, ...], tmp_path: Path) -> None:
    refused(invoke(*arguments, tmp_path / "missing" / "x"), 2, "output folder does not exist")
    refused(invoke(*arguments, tmp_path), 2, "output must be a file")


@pytest.mark.parametrize("command", ["run", "profile", "tune"])
def test_a_model_too_large_is_refused_with_the_nearest_that_fits(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.ranks.session.available_memory_bytes", lambda _: 8 * GIB)
    refused(invoke(command, "mlperf"), 3, "GiB for 8.00 GiB", "tables 89.5 GiB", "mlperf-1m")


def test_more_threads_than_cores_are_refused() -> None:
    cores = machine.detect().physical_cores
    refused(invoke("run", "tiny", "--threads", str(cores + 1)), 3, f"got {cores + 1}")
    refused(invoke("run", "tiny", "--threads", "0"), 2, "threads must be at least 1, got 0")


@pytest.mark.parametrize("data", ["zipff", "zipf:x", "zipf:-1", "histogram:nowhere.txt", "nowhere.tsv"])
def test_unknown_data_is_refused(data: str) -> None:
    refused(invoke("run", "tiny", "--data", data), 2, "--data")


def test_a_scale_below_one_is_refused() -> None:
    refused(invoke("run", "tiny", "--max-rows", "0"), 2, "max_rows must be positive, got 0")
    refused(invoke("run", "tiny", "--minibatch", "-4"), 2, "minibatch must be positive, got -4")


def test_a_config_decides_the_threads(config_file: Path) -> None:
    refused(invoke("run", "tiny", "--config", config_file, "--threads", "1"), 2, "--threads 1 beside --config")


def test_a_config_of_another_model_is_refused(config_file: Path) -> None:
    refused(invoke("run", "tiny", "--config", config_file), 2, "belongs to one model")
    refused(invoke("verify", config_file), 2, "belongs to one model")


@pytest.mark.parametrize("command", [("run", "tiny", "--config"), ("verify",)])
def test_a_config_of_other_hardware_is_refused(command: tuple[str, ...], config_file: Path, tuned_config: TunedConfig) -> None:
    tiny = catalog.load_model_by_name("tiny")
    write_tuned(config_file, tuned_config.model_copy(update={"model": "tiny", "model_hash": tiny.hash(), "minibatch": tiny.minibatch}))
    refused(invoke(*command, config_file), 2, "belongs to the hardware", "Some CPU", "--force")


def test_a_file_that_is_no_config_is_refused(tmp_path: Path, config_file: Path) -> None:
    refused(invoke("explain", tmp_path / "nowhere.yaml"), 2, "file not found")
    refused(invoke("explain", changed(config_file, "minibatch: 2048", "minibatch: 0")), 2, "minibatch", f"{config_file}:")


def test_models_lists_every_shipped_one() -> None:
    listed = json.loads(invoke("models", "--json").stdout)["models"]
    assert [entry["name"] for entry in listed] == catalog.list_models()
    assert all(name in invoke("models").stdout for name in catalog.list_models())


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted; no file is half written\n"),
        (Terminated(), 143, "terminated; no file is half written\n"),
        (KeyboardInterrupt("the weights after 3 steps are in w.pt"), 130, "interrupted; the weights after 3 steps are in w.pt\n"),
    ],
    ids=["Ctrl-C", "SIGTERM", "with what was kept"],
)
def test_interrupted_says_what_is_kept(error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = failing(error, monkeypatch)
    assert (result.exit_code, result.stderr) == (code, line)
    assert interrupted("tune", KeyboardInterrupt()).endswith("the same command goes on from its journal")


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Result:
    def broken() -> None:
        raise error

    monkeypatch.setattr(models, "model_list", broken)
    return invoke("models")


def test_an_error_that_nobody_foresaw_is_one_line_and_a_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path))
    refused(failing(ZeroDivisionError("1/0\nand more"), monkeypatch), 70, "ZeroDivisionError: 1/0 (", str(tmp_path), "report it")
    (log,) = tmp_path.rglob("*.log")
    text = log.read_text()
    assert "Traceback" in text
    assert "in broken" in text


def test_the_log_goes_to_the_folder_for_temporary_files_where_the_cache_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "readonly").write_text("")
    monkeypatch.setattr("autotune.config.files.cache_folder", lambda: tmp_path / "readonly")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    refused(failing(ZeroDivisionError(), monkeypatch), 70, "ZeroDivisionError")
    assert len([*tmp_path.rglob("*.log")]) == 1


@pytest.mark.parametrize(
    ("error", "piece"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "must find space"),
        (OSError(errno.EIO, "Input/output error", "x"), "the system refused"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "the limit is"),
        (RuntimeError("can't start new thread"), "the limit is"),
        (MemoryError(), "memory must suffice"),
    ],
)
def test_what_the_machine_refuses_ends_with_3(error: Exception, piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(failing(error, monkeypatch), 3, piece)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tun", "no such command 'tun'; did you mean 'tune', 'run'? (autotune); see autotune --help"),
        ("run", "missing argument 'MODEL' (autotune run); see autotune run --help"),
        ("run tiny --steps 0", "--steps must be greater than or equal to 1, got '0' (autotune run); see autotune run --help"),
        ("run tiny --steps x", "--steps must be a valid integer, got 'x' (autotune run); see autotune run --help"),
    ],
)
def test_a_refused_command_line_has_the_form_of_all_errors(line: str, message: str) -> None:
    result = invoke(*line.split())
    refused(result, 2)
    # Older versions of typer word the rule otherwise.
    assert result.stderr == f"error: {message}\n" or "see autotune" in result.stderr


def test_a_closed_pipe_is_left_quietly() -> None:
    process = subprocess.Popen([sys.executable, "-m", "autotune", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == main.CLOSED_PIPE == 128 + signal.SIGPIPE


def test_the_module_runs_as_the_script_does() -> None:
    done = subprocess.run([sys.executable, "-m", "autotune", "run", "smal"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown model")


@pytest.mark.parametrize("command", [("run", "tiny", "--steps", "1"), ("tune", "tiny", "--budget", "1s")])
def test_a_seed_out_of_range_is_refused(command: tuple[str, ...]) -> None:
    result = invoke(*command, "--seed", str(2**64))
    assert result.exit_code == 2
    assert "--seed" in result.stderr


DATA_OF_A_MODEL = {
    "rows.tsv": "path: rows.tsv",
    "histogram.json": "distribution: histogram, path: histogram.json",
    "day_0_labels.npy": "path: day_0_dense.npy",
    "k_fea_dict_25.npz": "path: rows.tsv, categories: dictionary, dictionary: k_fea_dict_0.npz",
}
ANY_OUTPUT = [
    "run MODEL -o", "run MODEL --checkpoint-out", "profile MODEL -o", "tune MODEL -o", "compare MODEL -o", "validate MODEL -o",
    "plan MODEL --sockets 2 -o", "scale MODEL --sockets 2 --profile xeon-8280 -o", "run MODEL[minibatch=8] -o",
]  # fmt: skip


@pytest.mark.parametrize("file", [*DATA_OF_A_MODEL, "model.yaml"])
def test_no_result_takes_the_place_of_what_the_model_itself_names(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = DATA_OF_A_MODEL.get(file, "distribution: uniform")
    tiny = (catalog.find_model("tiny")).read_text(encoding="utf-8")
    spec = data if "distribution" in data else f"distribution: criteo, {data}"
    Path("model.yaml").write_text(re.sub(r"(?m)^data:.*\n((  .*)?\n)*", "", tiny) + f"data: {{{spec}}}\n", encoding="utf-8")
    Path(file).touch()
    before = Path(file).read_bytes()
    for words in ANY_OUTPUT:
        refused(invoke(*words.replace("MODEL", "model.yaml").split(), file), 2, "a file of its own", file)
    assert Path(file).read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_behind_standard_output_is_one_line(options: list[str], unbuffered: str) -> None:
    line = [sys.executable, "-m", "autotune", "models", *options]
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_standard_output_may_be_closed(options: list[str]) -> None:
    command = shlex.join([sys.executable, "-m", "autotune", "models", *options])
    done = subprocess.run(["sh", "-c", f"{command} >&-"], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    refused(invoke("run", tmp_path), 2, "got the folder")


def test_no_result_takes_the_place_of_another_or_of_what_is_read(tmp_path: Path, config_file: Path, model_file: Path) -> None:
    same = tmp_path / "same"
    refused(invoke("run", "tiny", "--checkpoint-out", same, "-o", same), 2, "a file of its own", str(same), "rename one")
    refused(invoke("explain", config_file, "--html", same, "--trace", same), 2, "a file of its own")
    before = config_file.read_bytes(), model_file.read_bytes()
    for words in (("explain", config_file, "-o", config_file), ("export", config_file, "--to", "env", "-o", record_path(config_file))):
        refused(invoke(*words), 2, "a file of its own")
    refused(invoke("tune", model_file, "-o", model_file), 2, "a file of its own")
    refused(invoke("plan", model_file, "--sockets", "2", "-o", model_file), 2, "a file of its own")
    refused(invoke("validate", model_file, "-o", model_file), 2, "a file of its own")
    rows = tmp_path / "rows.tsv"
    rows.write_text("1\n", encoding="utf-8")
    for words in (("run", "tiny", "--checkpoint-out"), ("profile", "tiny", "-o"), ("plan", "tiny", "--sockets", "2", "-o")):
        refused(invoke(*words, rows, "--data", f"criteo:{rows}"), 2, "a file of its own")
    more = ("--data", f"criteo:{config_file}", "--categories", f"dictionary:{rows}")
    refused(invoke("run", "tiny", *more, "-o", rows), 2, "a file of its own")
    refused(invoke("run", "tiny", "--checkpoint-in", rows, "-o", rows), 2, "a file of its own")
    assert rows.read_text(encoding="utf-8") == "1\n"
    assert (config_file.read_bytes(), model_file.read_bytes()) == before
