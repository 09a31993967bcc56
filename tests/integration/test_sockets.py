"""`run --sockets N` as a user types it: ranks in processes of their own, bound to their cores, equal to one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from command_line import invoke, refused
from quick import QUICK_PROBE

import autotune

_TIMEOUT_S = 120


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """What a user's shell gives a command; ranks may share cores, so that one core is enough."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MALLOC_", "AUTOTUNE_"))}
    root = str(Path(autotune.__file__).parents[1])
    cache = str(tmp_path / "cache")
    return kept | {"PYTHONPATH": root, "AUTOTUNE_CACHE": cache, "COLUMNS": "100", "AUTOTUNE_OVERSUBSCRIBE": "1"}


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same with a quick profile of the machine in the cache: its structure, in a few seconds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MALLOC_", "AUTOTUNE_"))}
    root, cache = str(Path(autotune.__file__).parents[1]), str(tmp_path_factory.mktemp("cache"))
    shell = kept | {"PYTHONPATH": root, "AUTOTUNE_CACHE": cache, "COLUMNS": "120", "AUTOTUNE_OVERSUBSCRIBE": "1"}
    subprocess.run([sys.executable, "-c", QUICK_PROBE], env=shell, check=True, timeout=_TIMEOUT_S)
    return shell


def autotune_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "autotune", *words]


def run(shell: dict[str, str], *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(autotune_command(*words), env=shell, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode == code, done.stderr
    return done


def test_several_sockets_train_as_one_does_and_their_checkpoint_goes_on(shell: dict[str, str], tmp_path: Path) -> None:
    """Three: the minibatch does not divide. What takes no ranks runs in this process, which has torch loaded."""
    weights, alone, together = (tmp_path / name for name in ("weights.pt", "alone.pt", "together.pt"))
    autotune.run("tiny", steps=2, checkpoint_out=weights)
    one = autotune.run("tiny", steps=5, checkpoint_in=weights, checkpoint_out=alone)
    words = ("--json", "--sockets", "3", "--checkpoint-in", str(weights), "--checkpoint-out", str(together))
    several = json.loads(run(shell, "run", "tiny", "--steps", "5", *words).stdout)
    assert several["losses"] == pytest.approx(one.losses, rel=1e-5)
    assert several["minibatch"] == one.minibatch
    assert any("3 ranks" in note for note in several["notes"])
    after_one, after_several = (autotune.run("tiny", steps=3, checkpoint_in=file).losses for file in (alone, together))
    assert after_several == pytest.approx(after_one, rel=1e-5)


def wait_for_training(parent: subprocess.Popen[str], ranks: int) -> list[psutil.Process]:
    """The processes of the ranks, once they have torch's and gloo's threads."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = psutil.Process(parent.pid).children()
        if len(children) == ranks and all(child.num_threads() >= 4 for child in children):
            return children
        time.sleep(0.1)
    raise AssertionError("the ranks did not start")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed to see two ranks on different cores")
def test_ranks_are_bound_to_different_cores(shell: dict[str, str]) -> None:
    del shell["AUTOTUNE_OVERSUBSCRIBE"]
    line = autotune_command("run", "tiny", "--steps", "1000000", "--sockets", "2")
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # the tests may run in the background of a shell that ignores it
    with subprocess.Popen(line, env=shell, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as parent:
        try:
            first, second = (set(child.cpu_affinity()) for child in wait_for_training(parent, 2))
            assert len(first) == len(second) == 1
            assert first != second
        finally:
            parent.send_signal(signal.SIGINT)
            parent.wait(timeout=30)
    assert parent.returncode == 130


def test_a_killed_rank_ends_the_run_with_one_error(shell: dict[str, str]) -> None:
    line = autotune_command("run", "tiny", "--steps", "1000000", "--sockets", "2")
    with subprocess.Popen(line, env=shell, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        children = wait_for_training(parent, 2)
        children[1].kill()
        _, errors = parent.communicate(timeout=30)
    assert parent.returncode == 3
    assert errors.count("error:") == 1
    assert "killed by SIGKILL" in errors
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_plan_of_a_model_that_fits_no_single_socket(shell: dict[str, str]) -> None:
    found = json.loads(run(shell, "plan", "mlperf", "--sockets", "8", "--memory-per-socket", "32GB", "--json").stdout)
    assert len(found["partition"]["tables"]) == 26
    assert max(rank["memory_bytes"] for rank in found["ranks"]) <= 32e9
    assert "rank" in run(shell, "plan", "mlperf", "--sockets", "8").stdout
    assert "short" in run(shell, "plan", "mlperf", "--sockets", "2", "--memory-per-socket", "32GB", code=3).stderr


def test_numbers_of_sockets_that_cannot_be(shell: dict[str, str]) -> None:
    del shell["AUTOTUNE_OVERSUBSCRIBE"]
    assert "every rank needs a core of its own" in run(shell, "run", "tiny", "--sockets", "100000", code=3).stderr
    run(shell, "run", "tiny", "--sockets", "0", code=2)
    launched = shell | {"RANK": "0", "WORLD_SIZE": "2"}
    assert "the number of sockets must be one" in run(launched, "run", "tiny", "--sockets", "3", code=2).stderr


def test_probe_measures_the_network(probed: dict[str, str]) -> None:
    network = json.loads(run(probed, "probe", "--sockets", "2", "--json").stdout)["network"]
    assert (network["ranks"], network["hosts"], network["interface"]) == (2, 1, "lo")
    forms = {("all_to_all", form) for form in ("native", "fused_scatter", "scatter_list")}
    assert {(fit["operation"], fit["form"]) for fit in network["fits"]} >= forms | {("all_reduce", ""), ("point_to_point", "")}
    assert all(fit["bandwidth_bytes_per_s"] > 0 for fit in network["fits"])
    assert [one["name"] for one in network["interfaces"] if one["used"]] == ["lo"]


def test_profile_has_rows_of_the_network_and_of_every_rank(probed: dict[str, str], tmp_path: Path) -> None:
    done = run(probed, "profile", "tiny", "--sockets", "2", "--rounds", "6", "--prove", "-o", str(tmp_path / "table.json"))
    assert "hidden ms" in done.stdout
    table = json.loads((tmp_path / "table.json").read_text())
    rows = {row["operator"]: row for row in table["rows"]}
    for key in ("all_to_all.forward", "all_to_all.backward", "all_reduce"):
        assert rows[key]["bytes_sent"] > 0
        assert rows[key]["hidden_s"] >= 0
        assert rows[key]["fractions"]["network"] > 0
    assert [row["rank"] for row in table["ranks"]] == [0, 1]
    proofs = {proof["operator"]: proof for proof in table["perturbations"]}
    assert proofs["all_to_all.forward"]["fewer_bytes_gain"]["median"] > 0
    assert proofs["top_mlp.0.forward"]["warm_gain"]["median"] > 0
    assert "optimizer" not in proofs
    assert any("the slowest" in note for note in table["notes"])


def test_tuning_two_sockets_gives_a_config_that_runs_on_two(probed: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "tiny.tuned.yaml"
    tuned = json.loads(run(probed, "tune", "tiny", "--sockets", "2", "--budget", "5s", "--wire", "any", "-o", str(file), "--json").stdout)
    assert tuned["sockets"] == 2
    assert len(tuned["config"]["partition"]["tables"]) == 4
    assert len(tuned["launch"]["rank_cpus"]) == 2
    assert {"all_to_all.forward", "all_reduce"} <= set(tuned["bound_by"])
    assert not list(tmp_path.glob("*.journal*"))
    # Noise may say that it does not hold, with exit code 1; all else would be a fault.
    words = autotune_command("verify", str(file), "--budget", "1s", "--json")  # on two, which the config alone says
    done = subprocess.run(words, env=probed, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode in (0, 1), done.stderr
    assert "starting 2 ranks" in done.stderr
    assert json.loads(done.stdout)["holds"] is (done.returncode == 0)
    refused(invoke("run", "tiny", "--config", file, "--sockets", "1"), 2, "the number of sockets must be one")


def test_a_trial_that_ends_its_ranks_is_a_failed_trial(probed: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "tiny.tuned.yaml"
    marker = tmp_path / "tiny.tuned.yaml.journal.trial"
    line = autotune_command("tune", "tiny", "--sockets", "2", "--budget", "6s", "-o", str(file), "--json")
    with subprocess.Popen(line, env=probed, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        deadline = time.monotonic() + 90
        while not marker.exists():
            assert time.monotonic() < deadline, "no trial began"
            assert parent.poll() is None
            time.sleep(0.002)
        psutil.Process(parent.pid).children()[1].kill()
        out, errors = parent.communicate(timeout=_TIMEOUT_S)
    assert parent.returncode == 0, errors
    assert "a trial failed, and tuning goes on" in errors
    assert any("trials ended their ranks" in note for note in json.loads(out)["provenance"]["notes"])
    assert file.exists()
