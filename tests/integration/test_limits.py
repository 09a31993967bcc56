"""Machines with an artificial limit: what the tool says follows the limit.

One core of two; a program on the other core that takes memory bandwidth; a program that takes turns on the same core. What a limit does to
the machine is measured beside the test, without the tool, and where it does too little there is nothing to show.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from quick import QUICK_PROBE, model_yaml
from quiet import measured

import autotune
from autotune.config.files import load_tuned_and_record
from autotune.explaining.diagnosis import explain
from autotune.ops.native import kernels
from autotune.report.json import to_json

_TIMEOUT_S = 120
_CORES = sorted(os.sched_getaffinity(0))
_PROBE = """
from functools import partial
from autotune.probing.store import load_or_probe
from autotune.probing.ceilings import measure_ceilings
from autotune.probing.probe import probe
from autotune.machine.topology import detect

def ceilings_alone(**_):
    measured = measure_ceilings(detect(), budget_s=4.0)
    ceilings, notes = measured.ceilings, measured.notes
    return probe(quick=True).model_copy(update={"ceilings": ceilings, "notes": notes})

load_or_probe(measure=ceilings_alone)
"""
_HOG = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
from autotune.ops.native import kernels
arrays = [kernels.allocate(1 << 26, True) for _ in range(3)]
for array in arrays:
    kernels.fill_uniform(array, 1.0, 2.0, 0, 1)
print("ready", flush=True)
while True:
    kernels.ceiling_stream("copy_nt", *arrays, 1)
"""
_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print("ready", flush=True)
while True:
    pass
"""
# Look-ups from memory beside layers of arithmetic.
_MODEL = model_yaml("mixed", 512, "[64, 512, 64]", "[1024, 1024, 1]", "[{rows: 700000, dim: 64, pooling: 60, count: 4}]")

pytestmark = pytest.mark.skipif(len(_CORES) < 2, reason="two cores are needed, one to limit")


class Cores:
    """Runs commands on some cores, with a cache of their own."""

    def __init__(self, folder: Path, cores: list[int]) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MALLOC_", "AUTOTUNE_"))}
        self.environment = kept | {"PYTHONPATH": str(Path(autotune.__file__).parents[1]), "AUTOTUNE_CACHE": str(folder / "cache")}
        self.folder, self.cores = folder, cores

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            preexec_fn=lambda: os.sched_setaffinity(0, self.cores),
        )
        assert done.returncode == code, done.stderr
        return done

    def tuned(self, model: str, output: str, budget: str) -> dict[str, Any]:
        """Tunes, and returns what `explain --json` tells."""
        self.run("-m", "autotune", "tune", model, "--budget", budget, "-o", output)
        told: dict[str, Any] = json.loads(to_json(explain(load_tuned_and_record(self.folder / output))))
        return told


@contextmanager
def beside(program: str, core: int) -> Iterator[None]:
    """A program on a core for as long as the block takes."""
    environment = {**os.environ, "PYTHONPATH": str(Path(autotune.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([sys.executable, "-c", program, str(core)], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield
    finally:
        running.kill()
        running.wait()


@pytest.fixture(scope="module")
def one_core(tmp_path_factory: pytest.TempPathFactory) -> Cores:
    """Probed while nothing of ours runs on the other core."""
    cores = Cores(tmp_path_factory.mktemp("one"), _CORES[:1])
    (cores.folder / "mixed.yaml").write_text(_MODEL, encoding="utf-8")
    cores.run("-c", _PROBE)
    return cores


@pytest.fixture(scope="module")
def alone(one_core: Cores) -> dict[str, Any]:
    """Tuned with nothing of ours beside it."""
    return one_core.tuned("mixed.yaml", "alone.tuned.yaml", "1s")


def saving_s(told: dict[str, Any], kind: str) -> float:
    return sum(float(finding["saving_s"]) for finding in told["findings"] if finding["kind"] == kind)


def time_s(told: dict[str, Any], binder: str, *starts: str) -> float:
    """Of the passes with this verdict, or of those whose name starts so."""
    return sum(float(one["time_s"]["median"]) for one in told["operators"] if one["binder"] == binder or one["operator"].startswith(starts))


def of_bandwidth(call: Callable[[], object]) -> float:
    """Median seconds of a stream on the first core: the hog's effect, without the tool."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _CORES[:1])
    try:
        times_s = []
        for _ in range(7):
            begin_s = time.perf_counter()
            call()
            times_s.append(time.perf_counter() - begin_s)
        return sorted(times_s)[3]
    finally:
        os.sched_setaffinity(0, before)


@measured
def test_a_memory_hog_on_the_other_core_is_found(one_core: Cores, alone: dict[str, Any]) -> None:
    """Random rows and streams get less, arithmetic stays; verdicts are held against what there is, and a finding tells what it costs."""
    arrays = [kernels.allocate(1 << 25, True) for _ in range(3)]
    for array in arrays:
        kernels.fill_uniform(array, 1.0, 2.0, 0, 1)

    def stream() -> None:
        arrays.append(arrays.pop(0))
        kernels.ceiling_stream("read", *arrays, 1)  # type: ignore[call-arg, arg-type]

    before_s = of_bandwidth(stream)
    with beside(_HOG, _CORES[1]):
        beside_s = of_bandwidth(stream)
        hogged = one_core.tuned("mixed.yaml", "hogged.tuned.yaml", "1s")
        beside_s = min(beside_s, of_bandwidth(stream))
    before_s = min(before_s, of_bandwidth(stream))
    if beside_s < 1.3 * before_s:
        pytest.skip(f"a hog on the other core takes too little here: a stream takes {beside_s / before_s:.2f} times as long beside it")
    rows, layers = [time_s(told, "", "embedding") for told in (alone, hogged)], [time_s(told, "", "top_mlp") for told in (alone, hogged)]
    assert rows[1] / rows[0] > layers[1] / layers[0]
    assert saving_s(hogged, "less_bandwidth") > saving_s(alone, "less_bandwidth")
    (finding,) = (one for one in hogged["findings"] if one["kind"] == "less_bandwidth")
    assert "random rows" in finding["evidence"]
    # Look-ups stay bound by memory: the ceiling is what memory gives now.
    assert {one["binder"] for one in hogged["operators"] if one["operator"] == "embedding_bag.forward"} == {"memory"}
    assert any("the machine gave of what the probe found" in note for note in hogged["provenance"]["notes"])


@measured
def test_a_program_on_the_same_core_is_found(one_core: Cores, alone: dict[str, Any]) -> None:
    with beside(_SPIN, _CORES[0]):
        shared = one_core.tuned("mixed.yaml", "shared.tuned.yaml", "1s")
    assert saving_s(shared, "waiting_for_cores") > saving_s(alone, "waiting_for_cores")
    (finding,) = (one for one in shared["findings"] if one["kind"] == "waiting_for_cores")
    assert f"threads on core {_CORES[0]} were at work without a core" in finding["evidence"]


@measured
def test_one_core_of_two(one_core: Cores, tmp_path: Path) -> None:
    """Half the threads: no forks to pay for and nobody to wait for; what was tuned for two cores is refused here, with the reason."""
    two_cores = Cores(tmp_path, _CORES[:2])
    two_cores.run("-c", QUICK_PROBE)
    both, one = two_cores.tuned("tiny", "both.tuned.yaml", "1s"), one_core.tuned("tiny", "one.tuned.yaml", "1s")
    assert (both["threads"], one["threads"]) == (2, 1)
    told = [next(one["evidence"] for one in of["findings"] if one["kind"] == "small_minibatch") for of in (both, one)]
    assert "forks and joins of 2 threads" in told[0]
    assert "forks" not in told[1]
    assert any(verdict["parts"]["imbalance"] > 0 for verdict in both["operators"] if verdict["parts"])
    assert all(verdict["parts"]["imbalance"] == 0 for verdict in one["operators"] if verdict["parts"])
    refused = one_core.run("-m", "autotune", "run", "tiny", "--config", str(tmp_path / "both.tuned.yaml"), code=2)
    assert "physical_cores: config 2, here 1" in refused.stderr
