"""Equal shares, counted rather than timed: tables that differ in rows and pooling, hot rows, and many owners."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autotune import _kernels as kernels
from autotune.ops.embedding_bag import default_forward
from autotune.ops.native import target

SAMPLES, DIM = 2048, 128
# Rows and pooling factors of dlrm-dcnv2, the larger tables cut to 200,000 rows.
POOLING = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
LARGE = 200_000
ROWS = (
    LARGE, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, LARGE, LARGE, LARGE, 10, 2209, 11938, 155, 4, 976, 14, LARGE, LARGE, LARGE, LARGE,
    12973, 108, 36,
)  # fmt: skip


@pytest.fixture(scope="module")
def handle() -> kernels.EmbeddingTables:
    return kernels.EmbeddingTables([torch.zeros(rows, 1) for rows in ROWS])


def lookups(skewed: bool) -> tuple[Tensor, Tensor]:
    """Uniform rows, or hot ones side by side at the beginning of each table: log-uniform, as in Zipf of exponent 1."""
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for rows, pooling in zip(ROWS, POOLING, strict=True):
        u = torch.rand(SAMPLES * pooling, generator=generator, dtype=torch.float64)
        row = (rows + 1.0) ** u - 1 if skewed else rows * u
        drawn.append(row.long().clamp_max(rows - 1))
    lengths = torch.tensor(POOLING).repeat_interleave(SAMPLES)
    return torch.cat(drawn), torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


@pytest.mark.parametrize("threads", [2, 8, 28, 56])
def test_no_thread_waits_long_for_the_last_forward_task(handle: kernels.EmbeddingTables, threads: int) -> None:
    indices, offsets = lookups(skewed=False)
    sizes = handle.task_sizes(indices, offsets, SAMPLES, default_forward(SAMPLES, len(ROWS), DIM, threads).bags_per_task)
    assert sum(sizes) == len(indices) + len(offsets) - 1
    # When the last task begins, nobody is idle; it takes this much of a thread's time.
    assert max(sizes) <= 0.05 * sum(sizes) / threads


@pytest.mark.parametrize("bags_per_task", [1, 7, 500, 2**62])
def test_tasks_are_all_bags_once(handle: kernels.EmbeddingTables, bags_per_task: int) -> None:
    indices, offsets = lookups(skewed=False)
    sizes = handle.task_sizes(indices, offsets, SAMPLES, bags_per_task)
    assert len(sizes) == -(-(len(offsets) - 1) // bags_per_task)
    assert sum(sizes) == len(indices) + len(offsets) - 1
    assert max(sizes) <= -(-sum(sizes) // len(sizes)) + max(POOLING) + 1


@pytest.mark.parametrize(
    ("strategy", "threads", "skewed", "idle"),
    [
        ("race_free_range", 2, False, 0.1),
        ("race_free_modulo", 2, False, 0.1),
        *(("bucketed", threads, False, 0.1) for threads in (2, 8, 28, 56)),
        ("race_free_modulo", 2, True, 0.15),
        *(("bucketed", threads, True, 0.1) for threads in (2, 8)),
    ],
)
def test_owners_apply_equal_shares(handle: kernels.EmbeddingTables, strategy: str, threads: int, skewed: bool, idle: float) -> None:
    indices, offsets = lookups(skewed)
    sizes = handle.owner_sizes(indices, offsets, SAMPLES, strategy, threads)
    assert len(sizes) == threads
    assert sum(sizes) == len(indices)
    assert min(sizes) >= (1 - idle) * max(sizes), (min(sizes), max(sizes))


def test_only_strategies_with_owners_are_counted(handle: kernels.EmbeddingTables) -> None:
    indices, offsets = lookups(skewed=False)
    with pytest.raises(ValueError, match="got 'atomic'"):
        handle.owner_sizes(indices, offsets, SAMPLES, "atomic", 2)
    with pytest.raises(ValueError, match="bags_per_task"):
        handle.task_sizes(indices, offsets, SAMPLES, 0)
    with pytest.raises(ValueError, match="first_table"):
        handle.owner_sizes(indices, offsets, SAMPLES, "bucketed", 2, -1)


@pytest.mark.parametrize("strategy", ["race_free_range", "race_free_modulo", "bucketed"])
@pytest.mark.parametrize("row", [-1, 10, 2**40])
def test_rows_outside_the_table_are_not_counted(strategy: str, row: int) -> None:
    handle = kernels.EmbeddingTables([torch.zeros(10, 1)])
    with pytest.raises(IndexError, match="index must lie in"):
        handle.owner_sizes(torch.tensor([3, row]), torch.tensor([0, 2]), 1, strategy, 2)


def claimed(bucket_sizes: list[int], threads: int) -> list[int]:
    """Look-ups of each thread when whoever has the fewest claims the largest bucket left."""
    sizes = [0] * threads
    for bucket_size in sorted(bucket_sizes, reverse=True):
        sizes[sizes.index(min(sizes))] += bucket_size
    return sizes


@pytest.mark.parametrize("name", [name for name in kernels.targets() if name != "reference"])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_bucketed_owners_share_what_the_update_filed(name: str, threads: int) -> None:
    handle = kernels.EmbeddingTables([torch.zeros(rows, 1) for rows in ROWS])
    indices, offsets = lookups(skewed=True)
    assert handle.bucket_sizes() == []
    with target(name):
        handle.update(indices, offsets, torch.zeros(SAMPLES, len(ROWS), 1), 0.0, None, False, "bucketed", 0, threads)
    bucket_sizes = handle.bucket_sizes()
    assert (len(bucket_sizes), sum(bucket_sizes)) == (8 * threads, len(indices))
    assert handle.owner_sizes(indices, offsets, SAMPLES, "bucketed", threads) == claimed(bucket_sizes, threads)
    handle.release_workspace()
    assert handle.bucket_sizes() == []


@pytest.mark.parametrize("number", [0, 3, 25])
def test_a_table_by_itself_is_filed_as_at_its_place_among_others(number: int) -> None:
    # The other tables have no look-ups, so all that the update files is of this one.
    tables = kernels.EmbeddingTables([torch.zeros(1000, 1) for _ in range(26)])
    indices = torch.arange(999) ** 2 // 999
    offsets = torch.tensor([0] * (number + 1) + [999] * (26 - number))
    with target("scalar"):
        tables.update(indices, offsets, torch.zeros(1, 26, 1), 0.0, None, False, "bucketed", 0, 3)
    single = kernels.EmbeddingTables([torch.zeros(1000, 1)])
    sizes = single.owner_sizes(indices, torch.tensor([0, 999]), 1, "bucketed", 3, first_table=number)
    assert sizes == claimed(tables.bucket_sizes(), 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 40), st.integers(0, 50), st.booleans())
def test_owners_by_range_and_by_modulo_own_one_part_of_each_table(rows: list[int], threads: int, first_table: int, wide: bool) -> None:
    """Part p of a table: its p-th range of rows, or every row that is p modulo the threads. Thread i owns part (i + table) mod threads."""
    by_range, by_modulo, indices = [0] * threads, [0] * threads, []
    for table, count in enumerate(rows, first_table):
        looked_up = [row for row in range(count) for _ in range(row % 3 + 1)]
        for row in looked_up:
            (part,) = (p for p in range(threads) if count * p // threads <= row < count * (p + 1) // threads)
            by_range[(part - table) % threads] += 1
            by_modulo[(row - table) % threads] += 1
        indices.append(torch.tensor(looked_up, dtype=torch.int64 if wide else torch.int32))
    offsets = torch.tensor([0, *itertools.accumulate(map(len, indices))], dtype=indices[0].dtype)
    handle = kernels.EmbeddingTables([torch.zeros(count, 1) for count in rows])
    assert handle.owner_sizes(torch.cat(indices), offsets, 1, "race_free_range", threads, first_table) == by_range
    assert handle.owner_sizes(torch.cat(indices), offsets, 1, "race_free_modulo", threads, first_table) == by_modulo


@pytest.mark.parametrize("strategy", ["race_free_range", "race_free_modulo", "bucketed"])
def test_no_look_up_is_nobodys_work(strategy: str) -> None:
    handle = kernels.EmbeddingTables([torch.zeros(3, 1), torch.zeros(1, 1)])
    nothing = torch.zeros(0, dtype=torch.int64)
    assert handle.owner_sizes(nothing, torch.zeros(3, dtype=torch.int64), 1, strategy, 5) == [0] * 5
    assert handle.owner_sizes(nothing, torch.zeros(1, dtype=torch.int64), 0, strategy, 5) == [0] * 5
