"""Predictions of passes under any knobs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from machines import calibrated

from autotune.catalog import load_model_by_name
from autotune.config.knobs import LayerKnobs, RunConfig
from autotune.perf.predictor import Predictor
from autotune.perf.steps import step_passes, whole_tables

SMALL = load_model_by_name("small")
PASSES = [one for one in step_passes(SMALL, whole_tables(SMALL)) if one.key.startswith("top_mlp.2.")]
LAYERS = st.builds(
    LayerKnobs,
    bn=st.sampled_from([1, 24, 32, 48, 64, 96, 128, 4096]),
    bc=st.sampled_from([1, 16, 128, 256, 512, 1024, 8192]),
    bk=st.sampled_from([16, 32, 48, 64]),
    loop_order=st.sampled_from(["rows_outer", "columns_outer"]),
    thread_columns=st.sampled_from([1, 2]),
)


@pytest.fixture(scope="module", params=[1.0, 0.2], ids=["as the usual laws", "by laws five times too fast"])
def predictor(request: pytest.FixtureRequest) -> Predictor:
    return Predictor(calibrated(request.param))


# The predictor only fills its caches, so examples may share it.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@example(LayerKnobs(bn=96, bc=1024, bk=16, thread_columns=2))  # was predicted 4.91 ms, bound 17, measured 19.3
@given(knobs=LAYERS)
def test_no_prediction_is_below_its_bound(predictor: Predictor, knobs: LayerKnobs) -> None:
    config = RunConfig(threads=2, operators={one.key: knobs for one in PASSES})
    for one in predictor.passes(PASSES, config):
        assert one.prediction.low_s >= max(one.limits_s.values())
        assert one.prediction.low_s <= one.prediction.time_s <= one.prediction.high_s
