"""A training step in steady state takes no memory that it did not have: nothing mapped anew, nothing kept by Python."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from collections.abc import Callable

import pytest
import torch

from autotune.catalog import load_model_by_name
from autotune.config.knobs import RunConfig
from autotune.dlrm.data import make_source
from autotune.dlrm.model import DLRM

STEPS, WINDOWS = 20, 5


@pytest.fixture(scope="module")
def steps() -> Callable[[], None]:
    """Trains for STEPS iterations, on batches made beforehand."""
    model = load_model_by_name("tiny")
    dlrm = DLRM(model, RunConfig(threads=2))
    batches = [make_source(model).batch(i) for i in range(4)]

    def train() -> None:
        for i in range(STEPS):
            dlrm.step(batches[i % len(batches)])
        dlrm.recorder.take()

    train()  # every buffer is touched, the team and its scratch are there
    return train


def _least(measured: Callable[[], int]) -> int:
    """Of some windows: whatever else the process does comes and goes, what a step does is in every window."""
    return min(measured() for _ in range(WINDOWS))


def test_a_step_maps_no_memory(steps: Callable[[], None]) -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        steps()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert _least(faults) == 0


def test_a_step_leaves_nothing_in_python(steps: Callable[[], None]) -> None:
    def grown() -> int:
        steps()  # caches of the interpreter fill under tracing too
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        steps()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        least = _least(grown)
    finally:
        tracemalloc.stop()
    # Less than one object a step: an object and its reference take 64 B and more.
    assert least < 64 * STEPS


def test_the_measure_sees_a_step_that_allocates(steps: Callable[[], None]) -> None:
    kept: list[torch.Tensor] = []

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        steps()
        kept.append(torch.ones(1 << 20))  # 4 MiB: past what the allocator keeps
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert _least(faults) > 0
