"""libxsmm is found, or its absence is said once, with the next step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.catalog import load_model_by_name
from autotune.config.knobs import FixedKnobs, RunConfig
from autotune.config.profile import Topology
from autotune.data.batches import make_source
from autotune.dlrm.model import DLRM
from autotune.errors import InputError, MachineError
from autotune.ops import libxsmm
from autotune.ops.base import Operator
from autotune.ops.layer import LayerKnobs
from autotune.ops.mlp import LayerForward
from autotune.ops.native import kernels

CHOSEN = LayerKnobs(implementation="libxsmm")
PASS = LayerForward("top_mlp.0.forward", "layer", 200, 100, 70, "relu", masked=False)

needs_libxsmm = pytest.mark.skipif(not libxsmm.available(), reason=f"libxsmm does not serve here: {libxsmm.missing()}")


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without it."""
    monkeypatch.setattr(libxsmm, "available", lambda: False)
    monkeypatch.setattr(libxsmm, "missing", lambda: "no such file")


def test_without_it_no_candidate_names_it(absent: None, topology: Topology) -> None:
    assert {knobs.implementation for knobs in PASS.candidates(topology, 2)} == {"blocked", "torch"}


def test_a_config_that_names_it_is_refused_with_the_package_to_install(absent: None) -> None:
    config = RunConfig(threads=1, operators={"loss": FixedKnobs(), "top_mlp.0.forward": CHOSEN})
    said = r"chooses \(top_mlp\.0\.forward\), got none.*no such file.*apt-get install libxsmm-dev.*AUTOTUNE_LIBXSMM"
    with pytest.raises(MachineError, match=said) as raised:
        libxsmm.require_for(config, "the config")
    assert raised.value.exit_code == 3
    libxsmm.require_for(RunConfig(threads=1, operators={"top_mlp.0.forward": LayerKnobs()}), "the config")


def test_a_model_does_not_start_with_it(absent: None) -> None:
    """So neither does a tuned config: `run`, `verify` and the API make the model of it."""
    with pytest.raises(MachineError, match="libxsmm-dev"):
        DLRM(load_model_by_name("tiny"), RunConfig(threads=1, operators={"top_mlp.0.forward": CHOSEN}))


@needs_libxsmm
def test_its_candidates_differ_and_match_the_reference(topology: Topology) -> None:
    for which in ("forward", "backward_data", "backward_weights"):
        operator = Operator.registry[f"mlp.{which}"](f"top_mlp.0.{which}", "layer", 200, 100, 70, "relu", masked=True)
        case = operator.case(seed=0)
        chosen = [knobs for knobs in operator.candidates(topology, 2) if knobs.implementation == "libxsmm"]
        assert len(chosen) == len(set(chosen)) >= 3
        for knobs in chosen:
            check = case.check(knobs, 2)
            assert check.passed, (which, knobs, check)


def test_a_model_in_bf16_is_refused_with_it_and_has_no_such_candidate(topology: Topology) -> None:
    model = load_model_by_name("tiny").model_copy(update={"dtype": "bf16"})
    with pytest.raises(InputError, match=r"in bf16 must be blocked or torch.*got libxsmm.*top_mlp\.0\.forward\.implementation"):
        DLRM(model, RunConfig(threads=1, operators={"top_mlp.0.forward": CHOSEN}))
    halves = LayerForward("top_mlp.0.forward", "layer", 200, 100, 70, "relu", masked=False, dtype="bf16")
    assert {knobs.implementation for knobs in halves.candidates(topology, 2)} == {"blocked", "torch"}


@needs_libxsmm
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_a_model_trains_on_it_as_on_our_own(optimizer: str) -> None:
    model = load_model_by_name("tiny").model_copy(update={"optimizer": optimizer})
    ours = DLRM(model, RunConfig(threads=2))
    layers = {key: knobs for key, knobs in ours.config.operators.items() if isinstance(knobs, LayerKnobs)}
    theirs = {key: knobs.model_copy(update={"implementation": "libxsmm"}) for key, knobs in layers.items()}
    other = DLRM(model, RunConfig(threads=2, operators=theirs))
    source = make_source(model)
    for step in range(5):
        batch = source.batch(step)
        assert other.step(batch) == pytest.approx(ours.step(batch), rel=1e-5)


def _found(tmp_path: Path, **environment: str) -> str:
    code = "from autotune.ops import libxsmm; print(libxsmm.available(), libxsmm.missing())"
    variables = {**os.environ, "AUTOTUNE_CACHE": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=variables)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_what_the_variable_names_must_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_LIBXSMM", "/no-such/libxsmm.so")
    monkeypatch.setattr(libxsmm.kernels, "libxsmm_open", lambda name: f"{name}: no such file")  # another test may have opened it
    with pytest.raises(InputError, match=r"AUTOTUNE_LIBXSMM must name .*'/no-such/libxsmm.so'.*unset it"):
        libxsmm.missing.__wrapped__()


@needs_libxsmm
def test_it_is_found_with_an_empty_cache_and_again_with_what_that_left(tmp_path: Path) -> None:
    assert [_found(tmp_path), _found(tmp_path)] == ["True", "True"]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "a folder of work was left behind"


def test_nothing_to_link_with_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path))
    assert libxsmm._linked() is None
    assert not kernels.libxsmm_opened() or libxsmm.available()
