"""Binary cross entropy of click probabilities, with its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.config.knobs import FixedKnobs, Knobs
from autotune.ops.base import OUTSIDE, Case, Check, Family, Features, Operator, Rates, Residence, Work
from autotune.ops.memory import Memory
from autotune.ops.native import kernels, torch, zeros

KEY = "loss"


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
        share = self.samples / (self.of_samples or self.samples)  # this rank's part of the mean over all
        value = kernels.binary_cross_entropy(memory.buffers[self.output], memory.buffers["labels"], d_logits, share, threads)
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
        self._call(threads)

    def check(self, knobs: FixedKnobs, threads: int) -> Check:
        p, y = self._probabilities.double(), self._labels.double().unsqueeze(1)
        wanted = float(-(y * p.log() + (1 - y) * (1 - p).log()).mean())
        return Check(abs(self._call(threads) - wanted), 1e-5 * max(1.0, abs(wanted)))

    def _call(self, threads: int) -> float:
        return kernels.binary_cross_entropy(self._probabilities, self._labels, self._gradient, 1.0, threads)
