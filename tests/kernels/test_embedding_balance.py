"""Equal shares, counted rather than timed: tables that differ in rows and pooling, hot rows, and many owners."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autotune import _kernels as kernels
from autotune.ops.embedding_bag import default_forward

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
    sizes = handle.owner_sizes(indices, offsets, SAMPLES, strategy, threads)  # type: ignore[arg-type]
    assert len(sizes) == threads
    assert sum(sizes) == len(indices)
    assert min(sizes) >= (1 - idle) * max(sizes), (min(sizes), max(sizes))


def test_only_strategies_with_owners_are_counted(handle: kernels.EmbeddingTables) -> None:
    indices, offsets = lookups(skewed=False)
    with pytest.raises(ValueError, match="got 'atomic'"):
        handle.owner_sizes(indices, offsets, SAMPLES, "atomic", 2)
    with pytest.raises(ValueError, match="bags_per_task"):
        handle.task_sizes(indices, offsets, SAMPLES, 0)
