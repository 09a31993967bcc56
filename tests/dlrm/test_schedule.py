"""The step of every rank: what it reads is there, what it starts it waits for, and all ranks meet in the same collectives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.config.interactions import INTERACTIONS
from autotune.config.knobs import FixedKnobs
from autotune.config.model import Model, Table
from autotune.config.partition import CommunicationKnobs, Partition, Placement
from autotune.dlrm.schedule import schedule
from autotune.dlrm.sharding import load_signatures, rank_memory_bytes
from autotune.errors import InputError
from autotune.ops.all_reduce import AllReduce
from autotune.ops.overhead import Overhead
from autotune.ops.schedule import ROWS, Buffer, Pass, Schedule
from autotune.ops.shards import Part

DIM = 8
REPLICATED = Placement(kind="replicated")


def model_of(rows: Sequence[int], minibatch: int = 16, bottom: tuple[int, ...] = (3, 6, DIM), top: tuple[int, ...] = (5, 1)) -> Model:
    return Model(
        schema=1, name="schedule", source="t", description="t", minibatch=minibatch, bottom_mlp=bottom, top_mlp=top,
        tables=tuple(Table(rows=count, dim=bottom[-1], pooling=3) for count in rows),
    )  # fmt: skip


def table_wise(*ranks: int, of: int) -> Partition:
    return Partition(ranks=of, tables=tuple(Placement(kind="table_wise", ranks=(rank,)) for rank in ranks))


@st.composite
def placements(draw: st.DrawFn, rows: int, ranks: int) -> Placement:
    kind = draw(st.sampled_from(["table_wise", "row_wise", "column_wise", "replicated"]))
    if kind == "replicated":
        return REPLICATED
    if kind == "table_wise":
        return Placement(kind="table_wise", ranks=(draw(st.integers(0, ranks - 1)),))
    extent = rows if kind == "row_wise" else DIM
    owners = draw(st.permutations(range(ranks)))[: draw(st.integers(1, min(ranks, extent)))]
    inner = draw(st.lists(st.integers(1, extent - 1), min_size=len(owners) - 1, max_size=len(owners) - 1, unique=True))
    return Placement.model_validate({"kind": kind, "ranks": tuple(owners), "bounds": (0, *sorted(inner), extent)})


@st.composite
def all_ranks(draw: st.DrawFn) -> list[Schedule]:
    """The schedules of 1 to 4 ranks under a random partition, bucket size and overlap."""
    rows = draw(st.lists(st.sampled_from([4, 7, 30, 200]), min_size=1, max_size=4))
    interaction = draw(st.sampled_from(list(INTERACTIONS)))
    model, ranks = model_of(rows, draw(st.integers(4, 40))).model_copy(update={"interaction": interaction}), draw(st.integers(1, 4))
    partition = Partition(ranks=ranks, tables=tuple(draw(placements(count, ranks)) for count in rows))
    knobs = CommunicationKnobs(bucket_bytes=draw(st.sampled_from([1 << 10, 1 << 11, 1 << 20])), overlap=draw(st.booleans()))
    return [schedule(model, partition, rank, knobs) for rank in range(ranks)]


def check_reads(steps: Schedule) -> None:
    """Every buffer read is written before, or belongs to the batch, the tables or a layer's packed weights."""
    written: set[str] = set()
    for each in steps.passes:
        for buffer in each.reads:
            given_before = buffer.name in ("input", "indices", ROWS) or ".packed_" in buffer.name or not buffer.size_bytes
            assert given_before or buffer.name in written, (each.key, buffer.name)
        written |= {buffer.name for buffer in each.writes}


def test_the_passes_of_one_rank_in_order() -> None:
    steps = schedule(model_of([100, 4]))
    keys = [each.key for each in steps.passes]
    assert keys[: steps.forward_passes] == [
        "bottom_mlp.0.forward", "bottom_mlp.1.forward", "embedding_bag.forward", "interaction.forward",
        "top_mlp.0.forward", "top_mlp.1.forward",
    ]  # fmt: skip
    assert keys[steps.forward_passes :] == [
        "loss", "top_mlp.1.backward_data", "top_mlp.1.backward_weights", "top_mlp.0.backward_data", "top_mlp.0.backward_weights",
        "interaction.backward", "embedding_bag.update", "bottom_mlp.mask",
        "bottom_mlp.1.backward_data", "bottom_mlp.1.backward_weights", "bottom_mlp.0.backward_weights",
    ]  # fmt: skip
    assert steps.output == "top.2"
    assert not steps.collectives
    check_reads(steps)


def test_no_pass_concatenates() -> None:
    """The top MLP reads what the bottom MLP and the tables wrote, and its gradient is theirs."""
    dot, steps = (schedule(model_of([100, 4]).model_copy(update={"interaction": name})) for name in ("dot", "concatenation"))
    keys = [each.key for each in steps.passes]
    assert keys == [each.key for each in dot.passes if not each.key.startswith("interaction.")]
    assert steps.passes[steps.forward_passes - 1].key == "top_mlp.1.forward"
    (read,) = (each.reads for each in steps.passes if each.key == "top_mlp.0.forward")
    (written,) = (each.writes for each in steps.passes if each.key == "top_mlp.0.backward_data")
    assert [buffer.name for buffer in read[:2]] == ["features", "dense_vector"]
    assert [buffer.name for buffer in written] == ["d_features", "d_dense_vector"]
    assert sum(buffer.size_bytes for buffer in written) == 4 * 16 * 3 * DIM
    check_reads(steps)


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_every_buffer_has_one_size(interaction: str) -> None:
    model = model_of([100, 4]).model_copy(update={"interaction": interaction})
    for steps in (schedule(model), schedule(model, Partition(ranks=2, tables=(REPLICATED,) * 2), 1)):
        sizes: dict[str, float] = {}
        for buffer in (buffer for each in steps.passes for buffer in each.touches):
            if buffer.name not in ("indices", ROWS):  # those of the tables that a pass walks
                assert sizes.setdefault(buffer.name, buffer.size_bytes) == buffer.size_bytes, buffer.name


@settings(deadline=None)
@given(all_ranks())
def test_what_a_rank_reads_was_written_before(ranks: list[Schedule]) -> None:
    for steps in ranks:
        check_reads(steps)


@settings(deadline=None)
@given(all_ranks())
def test_a_transfer_is_started_once_and_waited_for_once_before_what_depends_on_it(ranks: list[Schedule]) -> None:
    for steps in ranks:
        order = [(instruction.what, instruction.number) for instruction in steps.instructions]
        assert [number for what, number in order if what != "wait"] == list(range(len(steps.passes)))
        began = {number: i for i, (what, number) in enumerate(order) if what != "wait"}
        for number, each in enumerate(steps.passes):
            if each.lane == "compute":
                assert order.count(("run", number)) == 1
                continue
            assert order.count(("start", number)) == order.count(("wait", number)) == 1
            started, waited = order.index(("start", number)), order.index(("wait", number))
            assert started < waited
            assert steps.overlap or waited == started + 1
            arrives, leaves = {buffer.name for buffer in each.writes}, {buffer.name for buffer in each.reads}
            for i, later in enumerate(steps.passes[number + 1 :], number + 1):
                touched = {buffer.name for buffer in later.touches} | set(later.after)
                if arrives & touched or leaves & {buffer.name for buffer in later.writes}:
                    assert waited < began[i], (each.key, later.key)


@settings(deadline=None)
@given(all_ranks())
def test_all_ranks_meet_in_the_same_collectives(ranks: list[Schedule]) -> None:
    met = []
    for steps in ranks:
        operators = [each.operator for each in steps.passes if each.lane == "network"]
        met.append([(each.key, each.gradients if isinstance(each, AllReduce) else ()) for each in operators])
    assert all(collectives == met[0] for collectives in met)
    reduced = [name for _, gradients in met[0] for name, _ in gradients]
    assert len(reduced) == len(set(reduced))
    layers = {f"{name}.{kind}" for name in ("bottom_mlp.0", "bottom_mlp.1", "top_mlp.0", "top_mlp.1") for kind in "wb"}
    assert {name for name in reduced if not name.startswith("table.")} == {"loss", *layers}


@settings(deadline=None)
@given(all_ranks())
def test_the_ranks_share_out_the_samples(ranks: list[Schedule]) -> None:
    ends = [steps.samples for steps in ranks]
    assert ends[0][0] == 0
    assert ends[-1][1] == ranks[0].global_minibatch
    assert all(left[1] == right[0] for left, right in pairwise(ends))
    assert all(steps.model.minibatch == end - begin > 0 for steps, (begin, end) in zip(ranks, ends, strict=True))


@pytest.mark.parametrize(
    ("later", "depends"),
    [
        ({"reads": (Buffer("arrives", 4),)}, True),
        ({"writes": (Buffer("arrives", 4),)}, True),
        ({"writes": (Buffer("leaves", 4),)}, True),
        ({"reads": (Buffer("leaves", 4),)}, False),
        ({"after": ("arrives",)}, True),
        ({"reads": (Buffer("unrelated", 4),)}, False),
    ],
)  # fmt: skip
def test_a_transfer_is_waited_for_before_it_is_read_or_what_it_sends_is_written(later: dict[str, Any], depends: bool) -> None:
    transfer = Pass("transfer", Overhead("transfer", 1), "network", (Buffer("leaves", 4),), (Buffer("arrives", 4),))
    steps = Schedule((transfer, Pass("later", Overhead("later", 1), **later)), model_of([4]), 1, (0, 16), 16)
    order = [instruction.what for instruction in steps.instructions]
    assert order == (["start", "wait", "run"] if depends else ["start", "run", "wait"])


def knob_keys(steps: Schedule) -> set[str]:
    return {key for key, operator in steps.operators.items() if operator.knobs_type is not FixedKnobs}


def test_knobs_have_the_same_keys_on_one_rank_and_on_several() -> None:
    model = model_of([100, 4])
    alone, owner, other = (
        knob_keys(schedule(model, *place)) for place in ((None,), (table_wise(1, 1, of=2), 1), (table_wise(1, 1, of=2), 0))
    )
    assert {"embedding_bag.forward", "embedding_bag.update", "top_mlp.0.backward_weights"} <= alone
    assert owner == alone
    assert other == alone - {"embedding_bag.forward", "embedding_bag.update"}  # owns no table


def test_fewer_samples_than_ranks_are_refused() -> None:
    with pytest.raises(InputError, match="every rank needs a sample, got a minibatch of 2 for 3 ranks; raise --minibatch"):
        schedule(model_of([4], minibatch=2), table_wise(0, of=3))


@pytest.mark.parametrize(("optimizer", "dense_bytes", "part_bytes"), [("sgd", 16 * 18, 5 * 16), ("adagrad", 20 * 18, 5 * 20)])
def test_memory_of_a_rank_by_hand(optimizer: str, dense_bytes: int, part_bytes: int) -> None:
    """18 dense parameters: 2 x 4 + 4 below, 5 + 1 above; activations of 3 samples: 20 values and gradients each, 9 look-ups."""
    model = model_of([10], bottom=(2, 4), top=(1,)).model_copy(update={"optimizer": optimizer})
    activations = 2 * 4 * 3 * (6 + 8 + 6) + 8 * (9 + 4) + 4 * 9 * 4
    assert rank_memory_bytes(model, (), 3) == dense_bytes + activations
    assert rank_memory_bytes(model, [Part(0, (5, 10), (0, 4))], 3) == dense_bytes + activations + part_bytes


def test_ranks_of_equal_load_have_equal_signatures() -> None:
    model = model_of([100, 200, 100, 200, 50])
    named = model.model_copy(update={"tables": tuple(t.model_copy(update={"name": f"t{i}"}) for i, t in enumerate(model.tables))})
    split = Placement(kind="row_wise", ranks=(2, 0, 1), bounds=(0, 60, 130, 200))
    whole = table_wise(0, 1, 1, 0, of=3).tables[:3]
    partition = Partition(ranks=3, tables=(*whole, split, REPLICATED))
    first, second, third = load_signatures(named, partition)
    assert first == ((0, 100, DIM, False), (1, 70, DIM, True))
    assert second == ((0, 100, DIM, False), (1, 70, DIM, True), (1, 200, DIM, False))
    assert third == ((1, 60, DIM, True),)
    two_tables, three_tables = load_signatures(named, table_wise(0, 0, 1, 1, 1, of=2))
    assert two_tables == ((0, 100, DIM, False), (1, 200, DIM, False))
    assert three_tables == (*two_tables, (4, 50, DIM, False))
