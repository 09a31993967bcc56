"""The passes of a layer with one output: to the bit what the tiles compute for it as the first of two outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from autotune import _kernels as kernels
from autotune.ops.layer import LayerKnobs, split_weights

WIDTH, RATE = 16, 0.1  # a rate that is rounded: fused multiply-adds show


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def panels(weight: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
    """The packed copies of weight [K, C] for forward and backward-data."""
    (outputs, inputs), members = weight.shape, 2 if bf16 else 1
    parts = split_weights(weight) if bf16 else (weight,)
    forward, backward = (
        torch.zeros(-(-columns // WIDTH) * WIDTH * -(-reduction // members) * members, dtype=parts[0].dtype)
        for columns, reduction in ((outputs, inputs), (inputs, outputs))
    )
    pack = kernels.pack_weights_bf16 if bf16 else kernels.pack_weights
    pack(parts[0].contiguous(), forward, WIDTH, backward, WIDTH, 1)  # type: ignore[arg-type]
    return forward, backward


def passes(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, adagrad: bool, bf16: bool, threads: int, guarded: Any) -> list[Tensor]:
    """Output, gradient of the input, gradients of weight and bias, and what a step leaves, each [.., K]-like; rows padded."""
    (n, c), k = x.shape, weight.shape[0]
    suffix, blocking = "_bf16" if bf16 else "", (8, 1 << 20, WIDTH, False, 1, threads)
    forward, backward = panels(weight, bf16)
    y, dx = guarded(n, k, padding=(0, 3)), guarded(n, c, padding=(0, 3))
    getattr(kernels, f"linear_forward{suffix}")(x, forward, bias, y.view, "sigmoid", *blocking)
    getattr(kernels, f"linear_backward_data{suffix}")(dy, backward, x, dx.view, *blocking)
    d_weight, d_bias = guarded(k, c), guarded(k)
    step = getattr(kernels, f"linear_backward_weights{suffix}")
    step(dy, x, d_weight.view, d_bias.view, *[None] * (3 if bf16 else 2), RATE, *blocking)
    parts = [guarded.of(part) for part in (split_weights(weight) if bf16 else (weight,))]
    stepped = [*parts, guarded.of(bias)]
    states = [guarded.of(torch.full(shape, 0.5)) for shape in ((k, c), (k,))] if adagrad else []
    live = dict(zip(("state", "bias_state"), (state.view for state in states), strict=False))
    step(dy, x, torch.zeros(k, c), torch.zeros(k), *(part.view for part in stepped), RATE, *blocking, **live)
    results = [y, dx, d_weight, d_bias, *stepped, *states]
    for result in results:
        result.assert_untouched()
    return [result.view for result in results]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("n", "c"), [(1, 1), (3, 16), (37, 61), (64, 40), (130, 129)])
def test_one_output_is_the_first_of_two(n: int, c: int, bf16: bool, target: str, guarded: Any) -> None:
    if bf16 and target == "avx512_bf16":
        pytest.skip("its tiles add pairs; one output is added value by value")
    x, dy, weight, bias = random(n, c, seed=1), random(n, 2, seed=2), random(2, c, seed=3), random(2, seed=4)
    dy[:, 1] = weight[1] = 0  # so that the input's gradient is of the first output alone
    for threads in (1, 3):
        two = passes(x, dy, weight, bias, n % 2 == 0, bf16, threads, guarded)
        one = passes(x, dy[:, :1], weight[:1].contiguous(), bias[:1], n % 2 == 0, bf16, threads, guarded)
        for name, got, wanted in zip(("y", "dx", "dw", "db", "step", "step", "step", "step", "step"), one, two, strict=False):
            first = wanted[:, :1] if name == "y" else wanted if name == "dx" else wanted[:1]
            assert torch.equal(got, first), f"{name} of {n} x {c} on {target}, {threads} threads: off by {(got - first).abs().max()}"


def test_not_a_number_stays_in_its_row(target: str) -> None:
    x, weight, y = random(19, 37, seed=1), random(1, 37, seed=2), torch.zeros(19, 1)
    x[3, 36] = float("nan")
    kernels.linear_forward(x, panels(weight, False)[0], None, y, "none", LayerKnobs().bn, 512, WIDTH, False, 1, 2)
    assert [int(row) for row in y[:, 0].isnan().nonzero()] == [3]
