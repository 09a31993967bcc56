"""Scaling curves from profiles alone, and partitions that are not searched."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.catalog import load_model_by_name, load_profile_by_name
from autotune.config.model import Changes, Model, Table
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.dlrm.sharding import check_partition
from autotune.errors import InputError, MachineError
from autotune.planning.grouped import columns_partition, group_size, spread
from autotune.planning.scaling import Scaling, _lemma, scale
from autotune.report.json import to_json
from autotune.report.layout import to_text
from autotune.report.predict import scaling
from tests.support.plans import plan

MLPERF = load_model_by_name("mlperf")
NODE = load_profile_by_name("xeon-8380h-4s")
PUBLISHED_MS = {4: 67.2, 16: 26.6}
"""MLPerf Training v1.0, Intel, DLRM: 4 and 16 Xeon 8380H sockets at a global minibatch of 32768."""


def strong() -> Scaling:
    return scale(load_model_by_name("small"), load_profile_by_name("xeon-8280"), [1, 2, 4, 8], global_minibatch=8192)


def test_strong_scaling_gains_and_spreads_the_memory() -> None:
    """Efficiency need not fall at every step: 2048 rows in blocks of 64 leave 28 threads uneven, 1024 do not."""
    found = strong()
    assert [one.sockets for one in found.points] == [1, 2, 4, 8]
    assert found.points[0].speedup == pytest.approx(1.0)
    for few, many in pairwise(found.points):
        assert many.speedup > few.speedup
        assert 0.2 < many.efficiency < 1.2
        assert many.memory_bytes < few.memory_bytes
    assert found.largest_useful in (1, 2, 4, 8)
    assert all(set(one.exposed_s) == {"all_to_all.forward", "all_to_all.backward", "all_reduce"} for one in found.points)


def test_weak_scaling_keeps_the_minibatch_of_a_socket() -> None:
    found = scale(load_model_by_name("small"), load_profile_by_name("xeon-8180"), [1, 2, 4], minibatch_per_socket=1024)
    assert [one.minibatch for one in found.points] == [1024, 2048, 4096]
    assert found.mode == "weak"
    assert found.points[-1].speedup > 1


def test_a_curve_renders_at_any_width_and_as_json() -> None:
    found = strong()
    for width in (60, 80, 160):
        assert max(map(len, to_text(scaling(found, width), width).splitlines())) <= width
    assert '"lemma_speedup"' in to_json(found)


def test_the_minibatch_at_which_more_sockets_pay_is_where_they_are_faster() -> None:
    point = strong().points[1]
    assert point.pays_from is not None
    model = load_model_by_name("small")
    for minibatch, faster in ((point.pays_from, True), (point.pays_from // 2, False)):
        few, many = scale(model, load_profile_by_name("xeon-8280"), [1, 2], global_minibatch=minibatch).points
        assert (many.iteration.time_s < few.iteration.time_s) == faster


def test_the_lemma_is_ideal_without_overhead_and_flat_with_much() -> None:
    assert _lemma(8, 0.0) == 8
    assert _lemma(8, 1e9) == pytest.approx(1.0)
    assert 1 < _lemma(8, 0.5) < 8


def test_the_published_runs_lie_within_a_fifth() -> None:
    """Nothing is fitted to them. What the published system does beside its operators was measured apart: see autotune/perf/README.md."""
    found = scale(
        MLPERF.model_copy(update={"dtype": "bf16"}), NODE, [4, 16], global_minibatch=32768, placing="columns",
        communication=_published(), overhead_s=5.1e-3, input_s=0.236e-6,
    )  # fmt: skip
    for point in found.points:
        assert point.iteration.time_s * 1e3 == pytest.approx(PUBLISHED_MS[point.sockets], rel=0.2)


def _published() -> object:
    from autotune.config.partition import CommunicationKnobs

    return CommunicationKnobs(wire_dtype="bf16", communication_cores=4)


def many_tables() -> Model:
    tables = tuple(Table(rows=10_000 * (1 + i % 97), dim=128, pooling=1 + i % 20) for i in range(60))
    return Model(
        schema=1, name="big", source="t", description="t", minibatch=1 << 18, bottom_mlp=(512, 128), top_mlp=(512, 1), tables=tables
    )


def test_thousands_of_sockets_are_planned_coarsely() -> None:
    found = scale(many_tables(), load_profile_by_name("xeon-8280"), [1000])
    assert any("coarsely" in note for note in found.notes)
    assert found.points[0].memory_bytes < 96 * 2**30


@given(ranks=st.integers(2, 40), tables=st.integers(1, 30), dim=st.sampled_from([16, 48, 128]))
@settings(max_examples=12, deadline=None)
def test_partitions_that_are_not_searched_place_every_part(ranks: int, tables: int, dim: int) -> None:
    model = Model(
        schema=1, name="t", source="t", description="t", minibatch=64, bottom_mlp=(4, dim), top_mlp=(1,),
        tables=tuple(Table(rows=100 * (i + 1), dim=dim, pooling=1) for i in range(tables)),
    )  # fmt: skip
    groups = max(1, ranks // 3)
    for found in (columns_partition(model, ranks, 500), spread(model, plan(model, groups).partition, ranks)):
        assert isinstance(found, Partition)
        check_partition(model, found)
        assert found.ranks == ranks
    assert all(one.kind == "replicated" for one, table in zip(columns_partition(model, ranks, 500).tables, model.tables, strict=True)
               if table.rows < 500)  # fmt: skip


def test_groups_are_as_small_as_the_limit_allows() -> None:
    assert (group_size(4), group_size(512), group_size(513), group_size(10_000)) == (1, 1, 2, 20)


def test_what_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(InputError, match="both"):
        scale(MLPERF, NODE, [4], minibatch_per_socket=1, global_minibatch=1)
    with pytest.raises(InputError, match="sockets must be 1 or more"):
        scale(MLPERF, NODE, [])
    with pytest.raises(MachineError, match="the model must fit at least one"):
        scale(load_model_by_name("large"), load_profile_by_name("xeon-8180"), [1])


def test_counts_whose_fullest_socket_does_not_fit_are_left_out_and_said() -> None:
    found = scale(load_model_by_name("large"), load_profile_by_name("xeon-8180"), [2, 4, 32], placing="columns")
    room = load_profile_by_name("xeon-8180").fingerprint.topology.memory_bytes
    assert found.points
    assert all(one.memory_bytes <= room for one in found.points)
    assert any(note.startswith("2 sockets: ") and "must fit a socket" in note for note in found.notes)


def test_a_socket_of_a_node_draws_on_its_own_memory() -> None:
    """However many of the node's sockets take part, a rank's own passes take the same time."""
    small = load_model_by_name("small")
    alone, both = (scale(small, NODE, [count], minibatch_per_socket=1024).points[0] for count in (1, 4))
    assert both.iteration.time_s > 0.9 * alone.iteration.time_s


def test_more_sockets_than_samples_or_cores_than_there_are_is_refused() -> None:
    small, machine = load_model_by_name("small"), load_profile_by_name("xeon-8280")
    found = scale(small, machine, [1, 64], global_minibatch=8)
    assert [one.sockets for one in found.points] == [1]
    assert any("each needs a sample, got a minibatch of 8" in note for note in found.notes)
    with pytest.raises(InputError, match="communication cores must leave one"):
        scale(small, machine, [2], communication=CommunicationKnobs(communication_cores=28))
    with pytest.raises(InputError, match="row-wise Adagrad needs whole rows"):
        scale(small.changed(Changes(optimizer="adagrad")), machine, [2], placing="columns")
