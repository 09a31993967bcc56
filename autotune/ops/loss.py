"""Binary cross entropy of click probabilities, with its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.config.knobs import FixedKnobs, Knobs
from autotune.ops.base import OUTSIDE, Case, Check, Family, Features, Operator, Rates, Residence, Work
from autotune.ops.memory import Memory
from autotune.ops.native import torch, zeros

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


@dataclass(eq=False)
class Loss(Operator):
    """Loss and gradient of N samples.

    Args:
        samples: N, of this rank.
        of_samples: the global minibatch, over which the loss is a mean.
        output: name of the buffer of the probabilities [N, 1].
    """

    samples: int
    of_samples: int = 0
    output: str = ""

    kind: ClassVar[str] = KEY
    family: ClassVar[Family] = OUTSIDE
    prior: ClassVar[Mapping[str, float]] = {"samples": 31.0, "call": 177.0}

    def work(self) -> Work:
        """Two logarithms and about eight operations a sample; probability and label are read, the gradient written."""
        return Work(flops=10 * self.samples, bytes_read=8 * self.samples, bytes_written=4 * self.samples)

    def size(self) -> Mapping[str, float]:
        return {"samples": float(self.samples)}

    def features(self, knobs: Knobs | None, residence: Residence, rates: Rates) -> Features:
        return {"samples": self.samples * rates.cycle_s}

    def prepare(self, memory: Memory, knobs: Any, config: Any) -> None:
        if "loss" not in memory.buffers:
            memory.buffers["loss"] = zeros(1)

    def run(self, memory: Memory, knobs: FixedKnobs, threads: int) -> None:
        d_logits = memory.buffers[f"d_{self.output}"]
        value = binary_cross_entropy(memory.buffers[self.output], memory.buffers["labels"], d_logits)
        if self.of_samples not in (0, self.samples):  # this rank's part of the mean over all
            d_logits.mul_(self.samples / self.of_samples)
            value *= self.samples / self.of_samples
        memory.buffers["loss"].fill_(value)

    def case(self, seed: int, warm: bool = False) -> Case:
        return _LossCase(self.samples, seed)


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
