"""Held-out models: the same for a seed, within their limits, and errors summed up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import bare, topology

from autotune.catalog import load_model_by_name
from autotune.config.calibration import CalibrationRun
from autotune.config.tuned import Interval
from autotune.dlrm.defaults import default_config, random_config
from autotune.errors import InputError
from autotune.machine.topology import detect
from autotune.ops.embedding_bag import UPDATE
from autotune.ops.embedding_tables import EmbeddingUpdateKnobs
from autotune.ops.layer import LayerKnobs
from autotune.perf.calibrated import config_of
from autotune.perf.perturb import _none
from autotune.perf.random_models import random_model
from autotune.perf.table import OperatorTable, Perturbation
from autotune.perf.validate import IterationError, _summary, validate
from autotune.probing.calibrate import calibrate, reference_models
from autotune.report.layout import to_text
from autotune.report.predict import validation


@given(seed=st.integers(0, 1000), number=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_random_model_is_given_by_its_seed_and_keeps_its_limits(seed: int, number: int) -> None:
    model = random_model(seed, number, 1e8)
    assert model == random_model(seed, number, 1e8)
    assert model.table_bytes <= 1.01e8 + 4 * 256 * 2 * model.num_tables
    assert 1 <= model.lookups_per_iteration <= 2_000_000


def test_no_reference_model_is_a_shipped_or_a_random_one() -> None:
    hashes = {model.hash() for model, _ in reference_models(1e9)}
    assert not hashes & {random_model(0, number, 1e9).hash() for number in range(20)}
    assert not hashes & {load_model_by_name(name).hash() for name in ("small", "rm2", "mlperf-1m", "tiny")}


def test_errors_are_summed_up() -> None:
    measured: dict[str, Any] = {"model": "m", "threads": 1, "random": True, "measured_s": 1.0, "drift": 1.25, "disturbed": False}
    pairs = [(0.8, True), (1.1, True), (1.0, True), (1.5, False), (0.9, True)]
    rows = [IterationError(predicted_s=predicted_s, inside=inside, **measured) for predicted_s, inside in pairs]
    found = _summary("iterations", rows)
    assert (found.count, found.median, found.bias, found.inside) == (5, pytest.approx(0.1), pytest.approx(0.0), pytest.approx(0.8))
    assert rows[0].error_without_drift == pytest.approx(0.0)


def test_a_profile_without_reference_passes_cannot_be_validated() -> None:
    with pytest.raises(InputError, match="needs a profile with reference passes, got none"):
        validate(bare(), detect(), available_bytes=1 << 33)


def test_a_validation_measures_what_it_is_told_to() -> None:
    """Its structure: quick reference runs are no calibration, so the errors mean nothing."""
    here = detect()
    runs = calibrate(here, (1,), 1 << 33, quick=True)
    profile = bare().model_copy(update={"calibration": runs})
    found = validate(profile, here, [load_model_by_name("tiny")], budget_s=0.0, available_bytes=1 << 33)
    assert [one.model for one in found.iterations] == ["tiny"]
    assert found.random is None
    assert found.kinds[-1].kind == "all passes"
    assert found.kinds[-1].count == len(found.passes)
    assert all(one.measured_s > 0 and one.predicted_s > 0 for one in found.passes)
    for width in (60, 80, 120):
        assert max(map(len, to_text(validation(found, width), width).splitlines())) <= width


def test_reference_runs_are_of_every_thread_count_and_both_pages() -> None:
    runs = calibrate(detect(), (1,), 1 << 33, quick=True)
    assert {run.threads for run in runs} == {1}
    for run in runs:
        assert run.iteration_s == pytest.approx(sum(run.passes_s.values()), rel=0.5)
        assert "embedding_bag.update" in run.passes_s
    assert any(shape.small_pages for _, shape in reference_models(1e9))
    assert any(shape.strategies for _, shape in reference_models(1e9))


def test_agreement_counts_what_perturbing_showed() -> None:
    def of(agrees: bool | None) -> Perturbation:
        return Perturbation("x", "memory", True, None, None, agrees=agrees, detail="")

    interval = Interval(median=1.0, low=1.0, high=1.0, samples=1)
    table = OperatorTable("m", "d", 1, 1, interval, (), (), tuple(of(one) for one in (True, True, False, None)))
    assert table.agreement == (2, 1, 1)


def test_a_pass_below_every_ceiling_is_told_by_what_threads_do() -> None:
    assert "overhead or imbalance rules" in _none(1.05, 2.0)
    assert "latency inside" in _none(1.95, 2.0)
    assert "a part" in _none(1.5, 2.0)


def test_reference_runs_take_random_knobs_and_keep_them_compactly() -> None:
    """What a tuner may choose is among what is calibrated: every value of every knob, over all reference models."""
    machine = topology()
    met: dict[str, set[object]] = {}
    for model, _ in reference_models(1e8):
        for threads in (1, 4):
            config, default = random_config(model, machine, threads, model.name), default_config(model, machine, threads)
            assert config == random_config(model, machine, threads, model.name)
            for key, knobs in config.operators.items():
                if isinstance(knobs, LayerKnobs) and knobs != default.operators[key]:
                    assert threads % knobs.thread_columns == 0
                    for name, value in knobs.model_dump().items():
                        met.setdefault(name, set()).add(value)
    assert met["bk"] == {16, 32, 48, 64}
    assert met["loop_order"] == {"rows_outer", "columns_outer"}
    assert {24, 32, 48, 64, 96, 128} <= met["bn"]
    assert {128, 256, 512, 1024} <= met["bc"]
    assert met["thread_columns"] == {1, 2, 4}
    run = CalibrationRun(model=model, threads=4, iteration_s=1.0, passes_s={}, knobs=config.operators)
    dumped = run.model_dump(mode="json")
    assert CalibrationRun.model_validate(dumped) == run
    assert all("implementation" not in knobs for knobs in dumped["knobs"].values())


def test_a_run_of_an_older_file_is_that_of_the_defaults_and_its_strategy() -> None:
    model = load_model_by_name("tiny")
    old = CalibrationRun(model=model, threads=2, strategy="atomic", iteration_s=1.0, passes_s={})
    default = default_config(model, topology(), 2)
    update = default.operators[UPDATE]
    assert isinstance(update, EmbeddingUpdateKnobs)
    wanted = {**default.operators, UPDATE: update.model_copy(update={"strategy": "atomic"})}
    assert config_of(old, topology()).operators == wanted
