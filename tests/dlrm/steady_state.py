"""Measures what a training step of `tiny` allocates, in a process of its own: `test_allocation` reads what this prints.

In a test run the heap is what the tests before left of it, and may grow and shrink under any step.
"""

from __future__ import annotations

import gc
import json
import resource
import tracemalloc
from collections.abc import Callable

import torch

from autotune.catalog import load_model_by_name
from autotune.config.knobs import RunConfig
from autotune.data.batches import make_source
from autotune.dlrm.model import DLRM

STEPS, WINDOWS = 10, 6


def least(measured: Callable[[], int]) -> int:
    """Of some windows: whatever else the process does comes and goes, what a step does is in every window."""
    return min(measured() for _ in range(WINDOWS))


def faults(work: Callable[[], object]) -> int:
    """Pages that were mapped anew meanwhile."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def growth(work: Callable[[], object]) -> int:
    """Bytes that Python keeps of it."""
    work()  # caches of the interpreter fill under tracing too
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    work()
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


def main() -> None:
    model = load_model_by_name("tiny")
    dlrm = DLRM(model, RunConfig(threads=2))
    batches = [make_source(model).batch(i) for i in range(4)]
    kept: list[torch.Tensor] = []

    def train() -> None:
        for i in range(STEPS):
            dlrm.step(batches[i % len(batches)])
        dlrm.recorder.take()

    def train_and_allocate() -> None:
        train()
        kept.append(torch.ones(1 << 20))  # 4 MiB: past what the allocator keeps

    train()  # every buffer is touched, the team and its scratch are there
    found = {"faults": least(lambda: faults(train)), "faults_with_an_allocation": least(lambda: faults(train_and_allocate))}
    tracemalloc.start()
    found["python_bytes"] = least(lambda: growth(train))
    print(json.dumps({**found, "steps": STEPS}))


if __name__ == "__main__":
    main()
