"""Work of the embedding passes with many owners: `pytest tests/benchmarks/test_many_owners.py --benchmark-only`.

More threads than cores share the cores there are, so with every core busy the time is the work of all owners together over the cores; what
grows with the team is work that each owner repeats, serial sections, and switching between threads. The last is no work of the operator
and is timed beside it, as an empty region of the same team. Nothing here fails for being slow: `work_over_two_owners` is in the extra
information of each benchmark and in the line that it prints.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import cache, partial
from statistics import median
from typing import Any

import pytest
import torch

from autotune.ops.embedding_bag import default_forward
from autotune.ops.embedding_tables import EmbeddingBags, EmbeddingUpdateKnobs, Lookups
from autotune.ops.native import kernels

TABLES, ROWS, DIM, POOLING, SAMPLES = 8, 250_000, 64, 50, 2048
FEW, MANY = 2, (8, 28, 56)
ROUNDS = 9


@cache
def passes() -> dict[str, Callable[[int], None]]:
    generator, count = torch.Generator().manual_seed(0), TABLES * SAMPLES * POOLING
    offsets = torch.arange(0, count + 1, POOLING, dtype=torch.int32)
    batches = itertools.cycle(
        [Lookups(torch.randint(0, ROWS, (count,), generator=generator, dtype=torch.int32), offsets) for _ in range(3)]
    )
    bags = {name: EmbeddingBags([ROWS] * TABLES, DIM, threads=FEW, optimizer=name) for name in ("sgd", "adagrad")}
    pooled, gradient = torch.zeros(SAMPLES, TABLES, DIM), torch.rand(SAMPLES, TABLES, DIM, generator=generator) - 0.5

    def forward(threads: int) -> None:
        bags["sgd"].forward(next(batches), pooled, default_forward(SAMPLES, TABLES, DIM, threads), threads)

    def update(optimizer: str, threads: int) -> None:
        bags[optimizer].update(next(batches), gradient, 1e-3, EmbeddingUpdateKnobs(strategy="bucketed", prefetch_distance=16), threads)

    return {"forward": forward, "bucketed sgd": partial(update, "sgd"), "bucketed adagrad": partial(update, "adagrad")}


def _net_s(run: Callable[[int], None], threads: int) -> float:
    """One call, less an empty region: teams of this size are made before."""
    kernels.fork_join(1, threads)
    begin_s = time.perf_counter()
    kernels.fork_join(1, threads)
    middle_s = time.perf_counter()
    run(threads)
    return (time.perf_counter() - middle_s) - (middle_s - begin_s)


@pytest.mark.parametrize("threads", MANY)
@pytest.mark.parametrize("name", ["forward", "bucketed sgd", "bucketed adagrad"])
def test_work_does_not_grow_with_the_owners(benchmark: Any, name: str, threads: int) -> None:
    run = passes()[name]
    run(FEW), run(threads)
    ratios = []
    for _ in range(ROUNDS):
        few_s = _net_s(run, FEW)
        ratios.append(_net_s(run, threads) / few_s)
    benchmark.extra_info["work_over_two_owners"] = round(median(ratios), 3)
    benchmark.pedantic(run, args=(threads,), rounds=3, setup=lambda: kernels.fork_join(1, threads))
    print(f"{name} with {threads} owners: {median(ratios):.2f} of the work of two")
