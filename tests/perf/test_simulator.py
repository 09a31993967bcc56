"""The simulation of ranks against cases computed by hand and closed forms."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.catalog import load_model_by_name
from autotune.ops.overhead import Overhead
from autotune.ops.schedule import Buffer, Lane, Pass, Schedule
from autotune.perf.simulator import Simulation

SECONDS = st.floats(0.0, 10.0)
X, Y, Z = (Buffer(name, 4.0) for name in "xyz")


def step(key: str, lane: Lane = "compute", reads: tuple[Buffer, ...] = (), writes: tuple[Buffer, ...] = ()) -> Pass:
    return Pass(key, Overhead(key, 1), lane, reads, writes)


BEFORE, TRANSFER = step("before", writes=(X,)), step("transfer", "network", (X,), (Y,))
BESIDE, AFTER = step("beside"), step("after", reads=(Y,))
PASSES = (BEFORE, TRANSFER, BESIDE, AFTER)


def schedule_of(passes: Sequence[Pass], overlap: bool = True) -> Schedule:
    model = load_model_by_name("tiny")
    return Schedule(tuple(passes), model, 1, (0, model.minibatch), model.minibatch, overlap)


def simulation(
    *ranks: tuple[float, float, float], transfer_s: float, overlap: bool = True, slowdown: float = 1.0, rest_s: Sequence[float] = ()
) -> Simulation:
    """Ranks that compute before, beside and after one transfer."""
    times = [{0: before, 2: beside, 3: after} for before, beside, after in ranks]
    return Simulation([schedule_of(PASSES, overlap) for _ in ranks], times, [transfer_s], slowdown, rest_s)


def test_a_collective_begins_with_the_last_rank_and_is_exposed_where_nothing_runs_beside_it() -> None:
    ranks = simulation((1, 2, 1), (3, 1, 1), transfer_s=4)
    assert ranks.run() == 8
    assert ranks.exposed_s == [{"transfer": 4}, {"transfer": 3}]
    spans = {(span.rank, span.key): (span.begin_s, span.end_s) for span in ranks.spans}
    assert spans == {
        (0, "before"): (0, 1), (0, "transfer"): (3, 7), (0, "beside"): (1, 3), (0, "after"): (7, 8),
        (1, "before"): (0, 3), (1, "transfer"): (3, 7), (1, "beside"): (3, 4), (1, "after"): (7, 8),
    }  # fmt: skip


def test_without_overlap_every_transfer_is_waited_for_at_once() -> None:
    ranks = simulation((1, 2, 1), (3, 1, 1), transfer_s=4, overlap=False)
    assert ranks.run() == 10
    assert ranks.exposed_s == [{"transfer": 6}, {"transfer": 4}]


@pytest.mark.parametrize(("beside_s", "end_s", "exposed_s"), [(1.0, 8.0, 2.0), (2.0, 8.0, 0.0), (3.0, 9.0, 0.0)])
def test_computing_is_slower_only_as_long_as_a_transfer_runs_beside_it(beside_s: float, end_s: float, exposed_s: float) -> None:
    """Four seconds of transfer, from 3 to 7, leave two seconds of computing at a slowdown of 2."""
    ranks = simulation((3, beside_s, 1), (3, beside_s, 1), transfer_s=4, slowdown=2)
    assert ranks.run() == pytest.approx(end_s)
    assert ranks.exposed_s[0]["transfer"] == pytest.approx(exposed_s)


def test_computing_before_the_last_rank_arrives_is_not_slowed() -> None:
    ranks = simulation((1, 4, 0), (3, 0, 0), transfer_s=4, slowdown=2)
    assert ranks.run() == 7  # two seconds before the transfer, the other two take four beside it
    assert ranks.exposed_s[0]["transfer"] == pytest.approx(0)


def test_a_rank_without_tables_has_fewer_passes_and_the_same_collectives() -> None:
    schedules = [schedule_of(PASSES), schedule_of((TRANSFER, BESIDE, AFTER))]
    ranks = Simulation(schedules, [{0: 5.0, 2: 1.0, 3: 1.0}, {1: 1.0, 2: 1.0}], [2.0])
    assert ranks.run() == 8
    assert ranks.exposed_s == [{"transfer": 1}, {"transfer": 6}]


def test_transfers_follow_each_other_on_the_network() -> None:
    second = step("second", "network", writes=(Z,))
    passes = (BEFORE, TRANSFER, second, BESIDE, step("after", reads=(Y, Z)))
    ranks = Simulation([schedule_of(passes)] * 2, [{0: 1.0, 3: 1.0, 4: 1.0}] * 2, [2.0, 3.0])
    assert ranks.run() == 7
    assert [(span.begin_s, span.end_s) for span in ranks.spans if span.rank == 0 and span.lane == "network"] == [(1, 3), (3, 6)]
    assert ranks.exposed_s[0] == {"transfer": 1, "second": 3}


def test_the_time_between_passes_ends_the_step() -> None:
    ranks = simulation((1, 1, 1), (1, 1, 1), transfer_s=1, rest_s=(0.25, 0.5))
    assert ranks.run() == 3.5


@given(st.lists(st.lists(SECONDS, min_size=3, max_size=3), min_size=1, max_size=4))
def test_without_transfers_the_step_is_the_sum_of_the_slowest_rank(times: list[list[float]]) -> None:
    schedules = [schedule_of((BEFORE, BESIDE, AFTER)) for _ in times]
    total = Simulation(schedules, [dict(enumerate(rank_times)) for rank_times in times], []).run()
    assert total == pytest.approx(max(map(sum, times)))


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=4), SECONDS)
def test_one_transfer_follows_the_closed_form(times: list[tuple[float, float, float]], transfer_s: float) -> None:
    """It ends at E = max(before) + transfer; a rank ends at max(before + beside, E) + after, and what is not exposed is hidden."""
    ranks = simulation(*times, transfer_s=transfer_s)
    ended = max(before for before, _, _ in times) + transfer_s
    assert ranks.run() == pytest.approx(max(max(before + beside, ended) + after for before, beside, after in times))
    for (before, beside, _), exposed in zip(times, ranks.exposed_s, strict=True):
        assert exposed["transfer"] == pytest.approx(max(0.0, ended - before - beside))
        hidden_s = min(ended - before, beside)
        assert exposed["transfer"] + hidden_s == pytest.approx(ended - before)


@given(SECONDS, SECONDS, st.floats(1.0, 4.0))
def test_slower_computing_follows_the_closed_form(beside_s: float, transfer_s: float, slowdown: float) -> None:
    ranks = simulation((0, beside_s, 0), transfer_s=transfer_s, slowdown=slowdown)
    alone = beside_s * slowdown if beside_s * slowdown <= transfer_s else beside_s + transfer_s * (1 - 1 / slowdown)
    assert ranks.run() == pytest.approx(max(alone, transfer_s))
