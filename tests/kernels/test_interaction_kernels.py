"""Dot interaction on every target, against torch in double (and its autograd) and the reference target."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from autotune import _kernels as kernels

DRAWN = settings(
    deadline=None,
    max_examples=int(os.environ.get("AUTOTUNE_TEST_EXAMPLES", "25")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAN = float("nan")

shapes = st.tuples(
    st.integers(0, 5),
    st.sampled_from((1, 2, 3, 4, 5, 8, 9, 27, 28, 33, 50)),
    st.sampled_from((1, 2, 7, 8, 13, 16, 17, 20, 24, 40, 64, 100, 128)),
)
tasks = st.sampled_from((1, 2, 100, 2**63 - 1))
seeds = st.integers(0, 2**31)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def interaction(features: Tensor, diagonal: bool) -> Tensor:
    """The formula: feature 0, then <f_i, f_j> for j < i, or j <= i, by rows of the lower triangle."""
    i, j = torch.tril_indices(features.shape[1], features.shape[1], offset=0 if diagonal else -1)
    products = torch.bmm(features, features.transpose(1, 2))
    return torch.cat([features[:, 0], products[:, i, j]], 1)


@DRAWN
@given(
    shape=shapes, diagonal=st.booleans(), samples_per_task=tasks, threads=st.integers(1, 4), slots=st.integers(0, 1), pad=st.integers(0, 3),
    seed=seeds,
)  # fmt: skip
def test_forward(
    shape: tuple[int, int, int],
    diagonal: bool,
    samples_per_task: int,
    threads: int,
    slots: int,
    pad: int,
    seed: int,
    target: str,
    guarded: Any,
    close: Any,
    rounding_of: Any,
    on_target: Any,
) -> None:
    n, f, e = shape
    features = guarded.of(random(n, f, e, seed=seed), padding=(0, slots, pad), fill=NAN).view
    expected = interaction(features.double(), diagonal)
    tolerance = rounding_of(e, interaction(features.double().abs(), diagonal))

    def run() -> Tensor:
        out = guarded(n, expected.shape[1], padding=(0, pad))
        kernels.interaction_forward(features, out.view, diagonal, samples_per_task, threads)
        out.assert_untouched()
        result: Tensor = out.view
        return result

    actual = run()
    close(actual, expected, tolerance, f"forward on {target}")
    assert torch.equal(actual[:, :e], features[:, 0])
    with on_target("reference"):
        close(actual, run().double(), tolerance, f"forward on {target} against the reference")


@DRAWN
@given(
    shape=shapes, diagonal=st.booleans(), samples_per_task=tasks, threads=st.integers(1, 4), slots=st.integers(0, 1), pad=st.integers(0, 3),
    seed=seeds,
)  # fmt: skip
def test_backward(
    shape: tuple[int, int, int],
    diagonal: bool,
    samples_per_task: int,
    threads: int,
    slots: int,
    pad: int,
    seed: int,
    target: str,
    guarded: Any,
    close: Any,
    rounding_of: Any,
    on_target: Any,
) -> None:
    n, f, e = shape
    features = guarded.of(random(n, f, e, seed=seed), padding=(0, slots, pad), fill=NAN).view
    d_out = guarded.of(random(n, e + f * (f + (1 if diagonal else -1)) // 2, seed=seed + 1), padding=(0, pad), fill=NAN).view

    def gradient(values: Tensor, cotangent: Tensor) -> Tensor:
        values = values.double().requires_grad_()
        return torch.autograd.grad(interaction(values, diagonal), values, cotangent.double())[0]

    expected = gradient(features, d_out)
    tolerance = rounding_of(f, gradient(features.abs(), d_out.abs()))

    def run() -> Tensor:
        d_features = guarded(n, f, e, padding=(0, slots, pad))
        d_features.view.fill_(NAN)  # written, not added to
        kernels.interaction_backward(features, d_out, d_features.view, diagonal, samples_per_task, threads)
        d_features.assert_untouched()
        result: Tensor = d_features.view
        return result

    actual = run()
    close(actual, expected, tolerance, f"backward on {target}")
    with on_target("reference"):
        close(actual, run().double(), tolerance, f"backward on {target} against the reference")


BAD: dict[str, dict[str, Any]] = {
    "features double": {"features": torch.ones(2, 3, 4, dtype=torch.float64)},
    "features strided": {"features": torch.ones(2, 3, 8)[..., ::2]},
    "features transposed": {"features": torch.ones(3, 2, 4).transpose(0, 1)},
    "features 2-d": {"features": torch.ones(6, 4)},
    "features of no length": {"features": torch.ones(2, 3, 0), "out": torch.zeros(2, 3)},
    "no features": {"features": torch.ones(2, 0, 4), "out": torch.zeros(2, 4)},
    "out too narrow": {"out": torch.zeros(2, 6)},
    "out too narrow for the diagonal": {"diagonal": True, "out": torch.zeros(2, 9)},
    "out too high": {"out": torch.zeros(3, 7)},
    "out double": {"out": torch.zeros(2, 7, dtype=torch.float64)},
    "out strided": {"out": torch.zeros(2, 14)[:, ::2]},
    "out expanded": {"out": torch.zeros(1, 7).expand(2, 7)},
    "no samples a task": {"samples_per_task": 0},
    "no threads": {"threads": 0},
}


@pytest.mark.parametrize("what", BAD)
def test_forward_refuses(what: str) -> None:
    arguments: dict[str, Any] = {
        "features": torch.ones(2, 3, 4),
        "out": torch.zeros(2, 7),
        "diagonal": False,
        "samples_per_task": 1,
        "threads": 1,
    } | BAD[what]
    with pytest.raises((TypeError, ValueError)):
        kernels.interaction_forward(**arguments)
    assert not arguments["out"].any()


def test_overlapping_arrays_are_refused() -> None:
    memory = torch.zeros(64)
    with pytest.raises(ValueError, match="out must not overlap features"):
        kernels.interaction_forward(memory[:24].view(2, 3, 4), memory[20:34].view(2, 7), False, 1, 1)
    with pytest.raises(ValueError, match="d_features must not overlap d_out"):
        kernels.interaction_backward(torch.zeros(2, 3, 4), memory[20:34].view(2, 7), memory[:24].view(2, 3, 4), False, 1, 1)
