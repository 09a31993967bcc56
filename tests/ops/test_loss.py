"""Binary cross entropy with its gradient, against torch in double."""

from __future__ import annotations

import math

import pytest
import torch

from autotune import _kernels as kernels


def clicks(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [N, 1] in padded rows, some of them 0 and 1, and labels [N], one of them neither."""
    generator = torch.Generator().manual_seed(samples)
    p = torch.rand(samples, 16, generator=generator)[:, :1]
    y = (torch.rand(samples, generator=generator) < 0.5).float()
    p[0], p[-1], y[samples // 2] = 0.0, 1.0, 0.25
    return p, y


@pytest.mark.parametrize("samples", [1, 64, 256, 257, 5000])
def test_value_and_gradient_are_torchs(samples: int) -> None:
    p, y = clicks(samples)
    d_logits = torch.full((samples, 16), 7.0)
    loss = kernels.binary_cross_entropy(p, y, d_logits[:, :1], 0.5, 2)
    assert loss == pytest.approx(0.5 * float(torch.nn.functional.binary_cross_entropy(p[:, 0].double(), y.double())), rel=1e-12)
    assert torch.equal(d_logits[:, 0], (p[:, 0] - y) / samples * 0.5)
    assert bool((d_logits[:, 1:] == 7.0).all())


def test_the_sum_is_the_same_at_any_team_size() -> None:
    p, y = clicks(3001)
    assert len({kernels.binary_cross_entropy(p, y, torch.zeros(3001, 1), 1.0, threads) for threads in (1, 2, 3, 7)}) == 1


def test_not_a_number_is_told() -> None:
    p, y = clicks(300)
    p[7] = float("nan")
    assert math.isnan(kernels.binary_cross_entropy(p, y, torch.zeros(300, 1), 1.0, 2))


def test_arrays_that_do_not_fit_are_refused() -> None:
    p, y = clicks(4)
    with pytest.raises(ValueError, match="probabilities must have size 4"):
        kernels.binary_cross_entropy(p[:3], y, torch.zeros(4, 1), 1.0, 1)
    with pytest.raises(ValueError, match="d_logits must not overlap"):
        kernels.binary_cross_entropy(p, y, p, 1.0, 1)
    with pytest.raises(ValueError, match="at least one sample"):
        kernels.binary_cross_entropy(torch.zeros(0, 1), torch.zeros(0), torch.zeros(0, 1), 1.0, 1)
