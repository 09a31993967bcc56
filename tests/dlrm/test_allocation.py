"""A training step in steady state takes no memory that it did not have: nothing mapped anew, nothing kept by Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import autotune


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    environment = {**os.environ, "PYTHONPATH": str(Path(autotune.__file__).parents[1])}
    script = str(Path(__file__).with_name("steady_state.py"))
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_a_step_maps_no_memory(measured: dict[str, int]) -> None:
    assert measured["faults"] == 0


def test_a_step_leaves_nothing_in_python(measured: dict[str, int]) -> None:
    # Less than one object a step: an object and its reference take 64 B and more.
    assert measured["python_bytes"] < 64 * measured["steps"]


def test_the_measure_sees_a_step_that_allocates(measured: dict[str, int]) -> None:
    assert measured["faults_with_an_allocation"] > 0
