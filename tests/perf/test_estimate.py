"""Predictions: laws that are found again, what they say of their own certainty, and steps on several ranks."""

from __future__ import annotations

import math
from itertools import cycle, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machines import bare, calibrated, network, true_times

from autotune.catalog import list_models, list_profiles, load_model_by_name, load_profile_by_name
from autotune.config.interactions import INTERACTIONS
from autotune.config.model import Model, Table
from autotune.config.partition import CommunicationKnobs
from autotune.config.profile import Profile
from autotune.data.batches import make_source
from autotune.dlrm.defaults import default_config, random_config
from autotune.dlrm.model import DLRM
from autotune.dlrm.schedule import schedule
from autotune.errors import InputError
from autotune.perf.cache_model import residences
from autotune.perf.estimate import Estimate, estimate
from autotune.perf.predictor import Predictor
from autotune.perf.random_models import random_model
from autotune.perf.regression import Reference, fit
from tests.support.plans import plan


@pytest.fixture(scope="module")
def profile() -> Profile:
    return calibrated(1.3)


@pytest.fixture(scope="module")
def predictor(profile: Profile) -> Predictor:
    return Predictor(profile)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("drawn", [False, True], ids=["default knobs", "random knobs"])
def test_a_machine_that_follows_the_laws_is_predicted_on_models_it_never_ran(
    profile: Profile, predictor: Predictor, threads: int, drawn: bool
) -> None:
    topology = profile.fingerprint.topology
    for number, interaction in zip(range(6), cycle(INTERACTIONS), strict=False):
        model = random_model(5, number, 1e8).model_copy(update={"interaction": interaction})
        config = random_config(model, topology, threads, str(number)) if drawn else default_config(model, topology, threads)
        true = true_times(model, profile, threads, config.operators, 1.3)
        found = estimate(model, profile, config, predictor=predictor)
        assert found.iteration.time_s == pytest.approx(sum(true.values()), rel=0.1)
        assert found.iteration.low_s < found.iteration.time_s < found.iteration.high_s
        assert {one.key for one in found.operators} == set(true)


def test_expected_distinct_rows_are_those_of_a_batch() -> None:
    model = load_model_by_name("tiny")
    expected = schedule(model).operators["embedding_bag.forward"]
    counted = [one.forward.work() for one in DLRM(model).tables_alone(make_source(model))]
    assert expected.work().flops == sum(work.flops for work in counted)
    assert expected.work().bytes == pytest.approx(sum(work.bytes for work in counted), rel=0.05)


def test_less_certain_where_nothing_was_calibrated(profile: Profile, predictor: Predictor) -> None:
    model = random_model(5, 1, 1e8)
    inside = estimate(model, profile, default_config(model, threads=4), predictor=predictor)
    without = estimate(model, bare(), default_config(model, threads=4))
    assert without.simulated
    assert not inside.simulated
    assert any("no reference passes" in note for note in without.notes)
    assert without.iteration.high_s / without.iteration.low_s > inside.iteration.high_s / inside.iteration.low_s


def test_a_shape_beyond_the_reference_says_so(profile: Profile, predictor: Predictor) -> None:
    model = Model(
        schema=1, name="huge", source="t", description="t", minibatch=1 << 17, bottom_mlp=(9000, 64), top_mlp=(16, 1),
        tables=(Table(rows=1000, dim=64, pooling=1),),
    )  # fmt: skip
    found = {one.key: one for one in estimate(model, profile, default_config(model, threads=4), predictor=predictor).operators}
    assert "inputs 9000 beside" in found["bottom_mlp.0.forward"].prediction.extrapolated


@given(number=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_model_gets_positive_finite_times(profile: Profile, predictor: Predictor, number: int) -> None:
    model = random_model(9, number, 1e8)
    found = estimate(model, profile, default_config(model, threads=4), predictor=predictor)
    for one in found.operators:
        assert 0 < one.prediction.low_s <= one.prediction.time_s <= one.prediction.high_s < math.inf
        assert one.binder in ("memory", "compute", "none")
    assert found.iteration.time_s == pytest.approx(sum(one.prediction.time_s for one in found.operators))
    spans = sorted(found.timeline, key=lambda span: span.begin_s)
    assert spans[-1].end_s == pytest.approx(found.iteration.time_s)


def test_more_bandwidth_helps_look_ups_and_not_layers() -> None:
    model = load_model_by_name("small")
    slow, fast = bare(), bare()
    rows = tuple(p.model_copy(update={"bandwidth_bytes_per_s": 2 * p.bandwidth_bytes_per_s}) for p in fast.ceilings.gather)
    fast = fast.model_copy(update={"ceilings": fast.ceilings.model_copy(update={"gather": rows, "scatter": rows})})
    before, after = ({one.key: one.prediction.time_s for one in estimate(model, one).operators} for one in (slow, fast))
    assert after["embedding_bag.forward"] < 0.8 * before["embedding_bag.forward"]
    assert after["top_mlp.1.forward"] == pytest.approx(before["top_mlp.1.forward"], rel=0.05)


def test_a_law_without_enough_references_keeps_a_wide_interval() -> None:
    one = Reference({"call": 1e-6, "memory": 1e-3}, {"samples": 10.0}, 2e-3, 1)
    law = fit("loss", 1, [one])
    assert law.predict(one.features, one.size, 1).time_s == pytest.approx(2e-3, rel=0.5)
    assert law.spread >= 0.4


def test_what_a_step_left_in_a_cache_is_not_fetched_again() -> None:
    model = load_model_by_name("small")
    shapes = schedule(model).passes
    small = residences(shapes, 1 << 20, 4 << 20)
    large = residences(shapes, 1 << 40, 1 << 41)
    assert all(one.memory_bytes == 0 for one in large)
    assert sum(one.memory_bytes for one in small) > 1e8


def several(sockets: int = 4, *, overlap: bool = True, bandwidth: float = 1e9) -> Estimate:
    model = load_model_by_name("mlperf-1m[minibatch=8192]")
    profile = bare(network=network(sockets, bandwidth))
    config = default_config(model, threads=4).model_copy(
        update={"partition": plan(model, sockets).partition, "communication": CommunicationKnobs(overlap=overlap), "operators": {}}
    )
    return estimate(model, profile, config, sockets=sockets, ranks_on_host=1)


def test_exposed_and_hidden_make_up_a_transfer() -> None:
    found = several()
    talks = [one for one in found.operators if one.lane == "network"]
    assert {one.key for one in talks} == {"all_to_all.forward", "all_to_all.backward", "all_reduce"}
    for one in talks:
        assert one.exposed_s >= 0
        assert one.hidden_s == pytest.approx(max(0.0, one.prediction.time_s - one.exposed_s))
    assert len(found.ranks) == 4
    assert found.simulated
    assert max(span.end_s for span in found.timeline) <= found.iteration.time_s * (1 + 1e-9)


def test_overlap_hides_and_bandwidth_helps() -> None:
    assert several().iteration.time_s < several(overlap=False).iteration.time_s
    assert several(bandwidth=1e10).iteration.time_s < several(bandwidth=1e8).iteration.time_s


def test_each_rank_does_one_thing_at_a_time() -> None:
    for lane in ("compute", "network"):
        for rank in range(4):
            mine = sorted((span.begin_s, span.end_s) for span in several().timeline if span.rank == rank and span.lane == lane)
            assert all(first[1] <= second[0] + 1e-12 for first, second in pairwise(mine))


def test_several_sockets_need_a_partition() -> None:
    with pytest.raises(InputError, match="2 sockets need a partition for as many, got none"):
        estimate(load_model_by_name("tiny"), bare(), sockets=2)


@pytest.mark.parametrize("name", list_profiles())
def test_a_shipped_profile_predicts_every_shipped_model_and_names_its_sources(name: str) -> None:
    profile = load_profile_by_name(name)
    assert all(text.startswith(("datasheet:", "assumed:", "the SC'20 page", "none:")) for text in profile.sources.values())
    for model in list_models():
        assert estimate(load_model_by_name(model), profile).iteration.time_s > 0
