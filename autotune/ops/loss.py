"""Binary cross entropy behind the last sigmoid: the loss, and its gradient before the sigmoid."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autotune.config.knobs import FixedKnobs
from autotune.config.profile import Topology
from autotune.ops.base import Case, Check, Operator, Work
from autotune.ops.native import zeros

KEY = "loss"


def binary_cross_entropy(probabilities: torch.Tensor, labels: torch.Tensor, d_logits: torch.Tensor) -> float:
    """Mean of -(y log p + (1-y) log(1-p)), logarithms clamped at -100 as in torch; d_logits = (p - y) / N, written.

    Args:
        probabilities: fp32 [N, 1], outputs of the sigmoid.
        labels: fp32 [N].
        d_logits: fp32 [N, 1].
    """
    column = labels.unsqueeze(1)
    torch.sub(probabilities, column, out=d_logits)
    d_logits.div_(labels.shape[0])
    # Not torch's own, which raises on a NaN: a run that diverges must be able to say so.
    hit, miss = torch.log(probabilities).clamp_(min=-100.0), torch.log1p(-probabilities).clamp_(min=-100.0)
    return -float(torch.lerp(miss, hit, column).mean())


class Loss(Operator):
    """Loss and gradient of N samples."""

    key = KEY

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def work(self) -> Work:
        """Two logarithms and about eight operations a sample; probability and label are read, the gradient written."""
        return Work(flops=10 * self._samples, bytes_read=8 * self._samples, bytes_written=4 * self._samples)

    def default(self, machine: Topology) -> FixedKnobs:
        return FixedKnobs()

    def candidates(self, machine: Topology, threads: int) -> Sequence[FixedKnobs]:
        return [FixedKnobs()]

    def case(self, seed: int, warm: bool = False) -> Case:
        return _LossCase(self._samples, seed)


class _LossCase(Case):
    def __init__(self, samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._probabilities = torch.rand(samples, 1, generator=generator)
        self._labels = (torch.rand(samples, generator=generator) < 0.5).float()
        self._gradient = zeros(samples, 1)

    def run(self, knobs: FixedKnobs, threads: int) -> None:
        binary_cross_entropy(self._probabilities, self._labels, self._gradient)

    def check(self, knobs: FixedKnobs, threads: int) -> Check:
        p, y = self._probabilities.double(), self._labels.double().unsqueeze(1)
        wanted = float(-(y * p.log() + (1 - y) * (1 - p).log()).mean())
        got = binary_cross_entropy(self._probabilities, self._labels, self._gradient)
        return Check(abs(got - wanted), 1e-5 * max(1.0, abs(wanted)))
