"""What the figures show: roofline, timeline and loads, as data."""

from itertools import pairwise

import pytest

from autotune.config.tuned import TunedConfig
from autotune.explaining.diagnosis import explain
from autotune.explaining.loads import loads
from autotune.explaining.roofline import roofline
from autotune.explaining.timeline import measured
from autotune.perf.ceilings import gemm_ceiling


def test_a_point_lies_where_work_and_time_put_it(full_config: TunedConfig) -> None:
    found = roofline(full_config)
    assert found is not None
    points = {point.operator: point for point in found.points}
    assert points["top_mlp.0.backward_weights"].intensity == pytest.approx(200.0)
    assert points["top_mlp.0.backward_weights"].flops_per_s == pytest.approx(400_000_000 / 0.05)
    # Row bytes that pass, as the ceilings of gather count them.
    assert points["embedding_bag.forward"].intensity == pytest.approx(2 / 26)


def test_lines_are_the_ceilings_of_the_threads_in_force(full_config: TunedConfig, four_sockets: TunedConfig) -> None:
    found, of_four = roofline(full_config), roofline(four_sockets)
    assert found is not None
    assert of_four is not None
    assert full_config.profile is not None
    rates = {line.name: line.rate_per_s for line in found.ceilings}
    assert rates["best GEMM seen"] == gemm_ceiling(full_config.profile.ceilings, 2)
    assert rates["gather 256 B rows of 24.4 MiB"] == pytest.approx(2.1e10)
    assert {line.name: line.rate_per_s for line in of_four.ceilings}["stream read"] == pytest.approx(rates["stream read"] / 4)


def test_a_config_of_version_1_has_no_roofline_but_its_passes_end_to_end(tuned_config: TunedConfig) -> None:
    assert roofline(tuned_config) is None
    shown = measured(tuned_config)
    assert shown is not None
    assert shown.end_s == pytest.approx(0.076)
    assert "end to end" in shown.note
    account = explain(tuned_config)
    assert (account.tables, account.what_ifs, account.predicted_iteration) == ((), (), None)


def test_transfers_have_a_lane_of_their_own(four_sockets: TunedConfig) -> None:
    shown = measured(four_sockets)
    assert shown is not None
    assert shown.ranks == 4
    network = [bar for bar in shown.bars if bar.lane == "network"]
    assert {bar.operator for bar in network} == {"all_to_all.forward", "all_reduce"}
    assert all(bar.waiting == bar.operator.startswith("all_") for bar in shown.bars if bar.lane == "compute")
    for rank in range(4):
        lane = [bar for bar in shown.bars if bar.rank == rank and bar.lane == "compute"]
        assert all(one.end_s <= two.begin_s + 1e-12 for one, two in pairwise(lane))


def test_loads_hold_every_byte_of_every_table(four_sockets: TunedConfig, full_config: TunedConfig) -> None:
    assert full_config.workload is not None
    whole = full_config.workload
    (single,) = loads(full_config)
    assert single.memory_bytes == whole.table_bytes + whole.dense_bytes
    assert single.time_s == pytest.approx(0.078)
    of_four = loads(four_sockets)
    split = sum(part.value for load in of_four for part in load.memory if part.family == "row-wise")
    copies = [part.value for load in of_four for part in load.memory if part.family == "replicated"]
    assert split == whole.tables[0].size_bytes
    assert copies == [whole.tables[1].size_bytes] * 4
    assert all(load.time_s == pytest.approx(sum(row.passes_s.values())) for load, row in zip(of_four, four_sockets.ranks, strict=True))


def test_the_verdict_is_three_sentences(four_sockets: TunedConfig) -> None:
    sentences = explain(four_sockets).sentences
    assert len(sentences) == 3
    assert "4 sockets with 2 threads each takes 78.0 ms" in sentences[0]
    assert "ceiling" in sentences[1]
    assert all(sentence.endswith(".") for sentence in sentences)
