"""The commands as a user types them, in processes of their own, on the model `tiny`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import invoke
from quick import QUICK_PROBE
from quiet import measured

import autotune
from autotune.config.files import load_tuned, load_tuned_and_record, write_yaml
from autotune.config.model import Changes, DataSpec
from autotune.config.profile import PROFILE_SCHEMA
from autotune.ranks.launch import environment

_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def user_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a user's shell gives a command, with a cache that holds a profile of this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MALLOC_", "AUTOTUNE_"))}
    root = str(Path(autotune.__file__).parents[1])  # the package under test, installed or not
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    values = kept | {"AUTOTUNE_CACHE": str(tmp_path_factory.mktemp("cache")), "PATH": path, "PYTHONPATH": root, "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", QUICK_PROBE], env=values, check=True, timeout=_TIMEOUT_S)
    return values


class User:
    """Types commands in one folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment

    def __call__(self, command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.line(command), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=_TIMEOUT_S)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def start(self, command: str) -> subprocess.Popen[str]:
        """A process that heeds SIGINT, even where the tests themselves run in the background of a shell that ignores it."""
        return subprocess.Popen(
            self.line(command),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    @staticmethod
    def line(command: str) -> list[str]:
        return [sys.executable, "-m", *shlex.split(command)]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, user_environment: dict[str, str]) -> User:
    return User(tmp_path_factory.mktemp("work"), user_environment)


@pytest.fixture(scope="module")
def tuned_file(user: User) -> Path:
    """One tuning run for all tests that read its config."""
    done = user("autotune tune tiny --sockets 1 --budget 5s -o tiny.tuned.yaml")
    assert "embedding_bag.forward" in done.stdout
    assert "speedup" in done.stdout
    return user.folder / "tiny.tuned.yaml"


def end_of(process: subprocess.Popen[str]) -> str:
    """Standard error of a process that has been told to end."""
    try:
        return process.communicate(timeout=30)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_run_trains_and_its_checkpoint_carries_training_on(user: User) -> None:
    assert "samples/s" in user("autotune run tiny --steps 12 --sockets 1 -o record.json --checkpoint-out weights.pt").stdout
    record = json.loads((user.folder / "record.json").read_text())
    assert (record["schema"], record["steps"], len(record["losses"])) == (1, 12, 12)
    assert record["iteration_s"]["low"] <= record["iteration_s"]["median"] <= record["iteration_s"]["high"]
    assert autotune.run("tiny", steps=5, checkpoint_in=user.folder / "weights.pt").losses[0] < record["losses"][0]


def test_run_takes_scales_data_threads_and_seed() -> None:
    options = "--max-rows 100 --minibatch 32 --data zipf:1.2 --threads 1 --seed 3 --steps 4 --json"
    record = json.loads(invoke("run", "tiny", *options.split()).stdout)
    assert record["model"] == "tiny[max_rows=100,minibatch=32]"
    assert record["data"].startswith("Zipf(1.2)")
    assert record["config"]["threads"] == 1
    again = autotune.run("tiny", changes=Changes(100, 32), data=DataSpec(distribution="zipf", alpha=1.2), threads=1, seed=3, steps=4)
    assert record["losses"] == list(again.losses)


def test_probe_shows_the_cached_profile(user: User) -> None:
    shown = json.loads(user("autotune probe --json -o here.yaml").stdout)
    assert shown["ceilings"]["fma"]
    assert (user.folder / "here.yaml").read_text().startswith(f"schema: {PROFILE_SCHEMA}\n")


def test_tune_writes_a_config_and_leaves_nothing_else(user: User, tuned_file: Path) -> None:
    config = load_tuned(tuned_file)
    assert config.model == "tiny"
    assert not any(name.endswith((".tmp", ".journal")) for name in files(user.folder))


@measured
def test_tuning_keeps_its_budget(tuned_file: Path) -> None:
    assert load_tuned(tuned_file).provenance.spent_s <= 5 * 1.15


def test_run_starts_in_the_environment_of_the_config(user: User, tuned_file: Path) -> None:
    process = user.start(f"autotune run tiny --config {tuned_file.name} --steps 1000000")
    wanted = environment(load_tuned(tuned_file).launch)
    try:
        deadline = time.monotonic() + 30
        seen: dict[str, str] = {}
        while not wanted.items() <= seen.items() and time.monotonic() < deadline:
            entries = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
            seen = dict(entry.split("=", 1) for entry in entries if entry)
            time.sleep(0.05)
        assert wanted.items() <= seen.items()
    finally:
        process.kill()
        process.communicate()


def test_profile_takes_the_config_and_accounts_for_the_iteration(user: User, tuned_file: Path) -> None:
    table = json.loads(user(f"autotune profile tiny --config {tuned_file.name} --rounds 10 --json").stdout)
    rows = table["rows"]
    assert table["threads"] == load_tuned(tuned_file).config.threads
    assert rows[-1]["operator"] == "other"
    # Every round adds up exactly; medians of rounds that differ need not. Within 5 %, or the table says that they do not.
    apart = sum(row["time_s"]["median"] for row in rows) / table["iteration_s"]["median"] - 1.0
    assert (abs(apart) > 0.05) == any("add up to" in note for note in table["notes"])
    assert all(row["binder"] in ("memory", "compute", "network", "none") for row in rows)


def test_explain_accounts_for_the_config(user: User, tuned_file: Path) -> None:
    account = json.loads(user(f"autotune explain {tuned_file.name} --json").stdout)
    assert {row["operator"] for row in account["operators"]} >= {"embedding_bag.forward", "top_mlp.0.forward"}
    assert "default" in user(f"autotune explain {tuned_file.name}").stdout


def test_verify_says_no_when_the_gain_is_gone(user: User, tuned_file: Path) -> None:
    text = tuned_file.read_text()
    boast = load_tuned(tuned_file).model_copy(update={"significant": True})
    # So much that no busy machine shows half of it: on one, two threads that wait for a core may take 30 times as long as one.
    claimed = boast.speedup.model_copy(update={"median": 1e6, "low": 0.9e6, "high": 1.1e6})
    write_yaml(user.folder / "boast.yaml", boast.model_copy(update={"speedup": claimed}))
    done = user("autotune verify boast.yaml --budget 1s", code=1)
    assert done.stdout.startswith("does not hold")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert tuned_file.read_text() == text


def test_run_uses_exactly_what_the_config_says_in_the_exported_environment(user: User, tuned_file: Path) -> None:
    lines = user(f"autotune export {tuned_file.name} --to env").stdout
    script = f"{lines}\nexec {sys.executable} -m autotune run tiny --config {tuned_file.name} --steps 3 --json"
    done = subprocess.run(["bash", "-c", script], cwd=user.folder, env=user.environment, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    result, config = json.loads(done.stdout), load_tuned_and_record(tuned_file)
    assert len(result["losses"]) == 3
    assert result["config"] == config.config.model_dump(mode="json")
    assert f"using {tuned_file.name}: {config.config.threads} thread" in done.stderr
    assert f"bound to CPU {' '.join(map(str, config.launch.cpus))}" in done.stderr


def test_the_torchrun_script_reproduces_the_run(user: User, tuned_file: Path, tmp_path: Path) -> None:
    user(f"autotune export {tuned_file.name} --to torchrun -o start.sh")
    script = str(user.folder / "start.sh")
    done = subprocess.run(
        ["bash", script, "--steps", "3", "-o", str(tmp_path / "record.json")],
        cwd=tmp_path,
        env=user.environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["config"] == load_tuned_and_record(tuned_file).config.model_dump(mode="json")


def test_ctrl_c_ends_with_130_and_keeps_state(user: User) -> None:
    process = user.start("autotune run tiny --steps 100000000")
    while "_kernels" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)  # it builds the model in milliseconds, and trains
    process.send_signal(signal.SIGINT)
    errors = end_of(process)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; no file is half written"


def test_tuning_goes_on_after_ends_in_its_middle(user: User, tmp_path: Path) -> None:
    here = User(tmp_path, user.environment)
    command = "autotune tune tiny -o x.tuned.yaml --budget"
    journal = tmp_path / "x.tuned.yaml.journal"
    for sent, kept_bytes in ((signal.SIGKILL, 3000), (signal.SIGINT, 6000)):
        process = here.start(f"{command} 60s")
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.stat().st_size > kept_bytes) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(sent)
        errors = end_of(process)
        assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL), errors
        assert journal.exists()
        assert not {"x.tuned.yaml", "x.record.json"} & files(tmp_path)
    assert "goes on from its journal" in errors
    here(f"{command} 3s")
    assert load_tuned(tmp_path / "x.tuned.yaml").model == "tiny"
    assert files(tmp_path) == {"x.tuned.yaml", "x.record.json"}
