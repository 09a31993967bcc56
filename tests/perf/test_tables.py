"""Every table by itself: what is counted of its look-ups, and that timing it leaves it as it was."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.catalog import load_model_by_name
from autotune.config.knobs import RunConfig
from autotune.config.measured import HOT_ROWS
from autotune.config.profile import Ceilings, ComputePoint, RowPoint, StreamPoint, TimePoint
from autotune.data.batches import make_source
from autotune.dlrm.model import DLRM
from autotune.ops.embedding_tables import EmbeddingBags, EmbeddingUpdateKnobs, Lookups
from autotune.ops.native import target
from autotune.ops.table_alone import TableAlone, tables_alone
from autotune.ops.timing import Recorder
from autotune.perf.measure import timed_spans
from autotune.perf.tables import measure_tables, table_use
from autotune.ranks.lockstep import Lockstep

ROW = RowPoint(row_bytes=64, working_set_bytes=1 << 20, threads=1, bandwidth_bytes_per_s=1e10)
CEILINGS = Ceilings(
    fma=(ComputePoint(threads=1, flops_per_s=1e11),),
    gemm=(),
    stream=(StreamPoint(kind="read", threads=1, bandwidth_bytes_per_s=1e10),),
    gather=(ROW,),
    scatter=(ROW,),
    fork_join=(TimePoint(threads=1, time_s=1e-6),),
)


def alone(rows: int, indices: list[int], samples: int = 4) -> TableAlone:
    """One table of dim 8 whose look-ups are spread evenly over the samples."""
    offsets = torch.arange(samples + 1) * (len(indices) // samples)
    bags = EmbeddingBags([rows], 8, huge_pages=False)
    (of_table,) = tables_alone(bags, [0], [Lookups(torch.tensor(indices), offsets)], samples)
    return of_table


def test_look_ups_are_counted_by_row() -> None:
    use = table_use(alone(100, [5] * 30 + list(range(50, 60))), 1e-3, 2e-3, CEILINGS, 1, 0)
    assert (use.lookups, use.unique, use.hot_rows, use.dim) == (40, 11, 11, 8)
    assert use.hot_share == 1.0
    spread = table_use(alone(100, [5] * 30 + list(range(50, 90)) + [5] * 2), 1e-3, 2e-3, CEILINGS, 1, 0)
    assert (spread.unique, spread.hot_rows) == (41, HOT_ROWS)
    assert spread.hot_share == pytest.approx((32 + HOT_ROWS - 1) / 72)


def test_the_busiest_owner_is_found_by_range_and_by_modulo() -> None:
    # Hot rows side by side are one owner's by range, and everybody's by modulo.
    use = table_use(alone(64, [0, 1, 2, 3] * 8), 1e-3, 2e-3, CEILINGS, 4, 0)
    assert (use.range_load, use.modulo_load) == (4.0, 1.0)
    assert table_use(alone(64, [0, 4, 8, 12] * 8), 1e-3, 2e-3, CEILINGS, 4, 0).modulo_load == 4.0


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_the_load_by_buckets_is_of_those_that_an_update_files(slot: int) -> None:
    # Only this table has look-ups, so the update's buckets hold nothing else. Half of its look-ups meet one row.
    threads, indices = 4, torch.tensor([7] * 2048 + list(range(2048)))
    bags = EmbeddingBags([4096] * 3, 8, huge_pages=False)
    lookups = Lookups(indices, torch.tensor([0] * (slot + 1) + [len(indices)] * (3 - slot)))
    with target("scalar"):
        bags.update(lookups, torch.zeros(1, 3, 8), 0.0, EmbeddingUpdateKnobs(strategy="bucketed"), threads)
    work = [0] * threads
    for size in sorted(bags._handle.bucket_sizes(), reverse=True):
        work[work.index(min(work))] += size
    assert sum(work) == len(indices)
    use = table_use(list(tables_alone(bags, range(3), [lookups], 1))[slot], 1e-3, 2e-3, CEILINGS, threads, 0)
    assert use.bucketed_load == pytest.approx(max(work) * threads / len(indices))
    assert use.bucketed_load > 2  # whoever claims the hot row's bucket


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.lists(st.integers(0, 49), min_size=4, max_size=40), st.integers(1, 9))
def test_a_load_lies_between_one_and_the_number_of_threads(rows: int, drawn: list[int], threads: int) -> None:
    indices = [row % rows for row in drawn[: len(drawn) // 4 * 4]]
    use = table_use(alone(rows, indices), 1e-3, 2e-3, CEILINGS, threads, 0)
    assert all(1 <= load <= threads for load in (use.range_load, use.modulo_load, use.bucketed_load))


def test_every_table_is_timed_against_its_ceiling_and_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass runs, and takes 1 ms without look-ups and 3 ms with them."""
    made = itertools.count()

    def timed(call: Callable[[], object]) -> Callable[[], tuple[float]]:
        time_s = 1e-3 if next(made) < 2 else 3e-3
        return lambda: (call(), (time_s,))[1]

    monkeypatch.setattr("autotune.perf.tables.timed", timed)
    model = load_model_by_name("tiny")
    lockstep = Lockstep(model, RunConfig(threads=2), make_source(model))
    tables = [bags.table(t) for _, bags, t in lockstep.dlrm.parts()]
    before = [table.clone() for table in tables]
    uses = measure_tables(lockstep, CEILINGS, budget_s=0.0)
    assert [use.table for use in uses] == [t for t, table in enumerate(model.tables) if table.pooling]
    assert all(use.forward_ceiling_s > 0 and use.update_ceiling_s > 0 for use in uses)
    assert [(use.forward_s, use.update_s) for use in uses] == [pytest.approx((2e-3, 2e-3))] * len(uses)
    assert all(use.lookups == model.minibatch * model.tables[use.table].pooling for use in uses)
    assert all(torch.equal(now, then) for now, then in zip(tables, before, strict=True))


def test_a_pass_without_look_ups_changes_nothing() -> None:
    forward, update = alone(50, [1, 2, 3, 4]).idle()
    before = update._bags.weights[0].clone()
    knobs = DLRM(load_model_by_name("tiny")).config.operators
    forward.run(knobs["embedding_bag.forward"], 1)
    update.run(knobs["embedding_bag.update"], 1)
    assert torch.equal(update._bags.weights[0], before)


def test_one_table_of_many_computes_what_all_together_do() -> None:
    bags = EmbeddingBags([50, 20], 8, huge_pages=False)
    lookups = Lookups(torch.tensor([1, 2, 3, 4, 7, 7, 0, 19]), torch.tensor([0, 1, 4, 6, 8]))
    whole = torch.empty(2, 2, 8)
    second = list(tables_alone(bags, [0, 1], [lookups], 2))[1]
    case = second.cases()[0]
    knobs = DLRM(load_model_by_name("tiny")).config.operators["embedding_bag.forward"]
    bags.forward(lookups, whole, knobs, 1)  # type: ignore[arg-type]
    case.run(knobs, 1)
    assert second.indices.tolist() == [7, 7, 0, 19]
    assert torch.equal(case._pooled[:, 0], whole[:, 1])


def test_a_recorder_remembers_when_passes_ran() -> None:
    recorder = Recorder()
    recorder.watch(True)
    for keys in (("a",), ("b", "c", "b")):
        for key in keys:
            with recorder.measure(key):
                pass
        recorder.take()
    spans = timed_spans(recorder, 1, rank=3)
    assert [span.operator for span in spans] == ["b", "c", "b"]
    assert spans[0].begin_s == 0.0
    assert all(one.begin_s <= one.end_s <= two.begin_s for one, two in itertools.pairwise(spans))
    assert {span.rank for span in spans} == {3}
    assert [span.operator for span in timed_spans(recorder, 2)] == ["a"]
    assert timed_spans(Recorder(), 1) == ()
