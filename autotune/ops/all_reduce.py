"""All-reduce of dense gradients, in buckets that go out as soon as their last gradient is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.config.knobs import RunConfig
from autotune.config.model import FLOAT_BYTES
from autotune.ops.base import Work
from autotune.ops.collective import Collective
from autotune.ops.memory import Memory
from autotune.ops.native import dist, torch, zeros

KEY = "all_reduce"
_ALIGN = 16
"""Floats a gradient's place is rounded up to: a cache line."""

Gradient = tuple[str, tuple[int, ...]]
"""Name of the buffer and its fp32 shape."""


def padded_elements(shape: Sequence[int]) -> int:
    """Elements that a gradient of this shape takes in a bucket."""
    return -(-math.prod(shape) // _ALIGN) * _ALIGN


def buckets(gradients: Sequence[Gradient], bucket_bytes: int) -> Iterator[tuple[Gradient, ...]]:
    """Gradients in their order, a bucket closed as soon as it holds `bucket_bytes`."""
    group: list[Gradient] = []
    for i, gradient in enumerate(gradients):
        group.append(gradient)
        filled = sum(padded_elements(shape) for _, shape in group)
        if FLOAT_BYTES * filled >= bucket_bytes or i == len(gradients) - 1:
            yield tuple(group)
            group = []


@dataclass(eq=False)
class AllReduce(Collective):
    """The sum over all ranks of the gradients in one bucket.

    Args:
        number: of the bucket.
        gradients: in the order of their places; each is a buffer of its name.
        ranks: that add up.
    """

    number: int
    gradients: tuple[Gradient, ...]
    ranks: int

    kind: ClassVar[str] = KEY
    shortest_words: ClassVar[Mapping[str, str]] = {"all_reduce": "reduce"}

    @property
    def size_bytes(self) -> int:
        return FLOAT_BYTES * sum(padded_elements(shape) for _, shape in self.gradients)

    def work(self) -> Work:
        """A reduction moves 2 (W-1)/W of the bytes through every rank, in at least 2 (W-1) messages (ring)."""
        size = self.size_bytes
        return Work(
            flops=size // FLOAT_BYTES,
            bytes_read=size,
            bytes_written=size,
            operation="all_reduce",
            messages=2 * (self.ranks - 1),
            message_bytes=2 * (self.ranks - 1) * size // self.ranks,
            parallel_regions=0,
        )

    def prepare(self, memory: Memory, knobs: Any, config: RunConfig) -> None:
        """One flat array a bucket, and the gradients as views into it."""
        flat = memory.variant(f"bucket.{self.number}", self.gradients, lambda: zeros(self.size_bytes // FLOAT_BYTES))
        begin = 0
        for name, shape in self.gradients:
            memory.buffers[name] = flat[begin : begin + math.prod(shape)].view(shape)
            begin += padded_elements(shape)

    def start(self, memory: Memory) -> None:
        flat: torch.Tensor = memory.modules[f"bucket.{self.number}"]
        memory.modules[f"bucket.{self.number} (pending)"] = dist.all_reduce(flat, async_op=True)

    def wait(self, memory: Memory) -> None:
        memory.modules.pop(f"bucket.{self.number} (pending)").wait()

    def alone(self, memory: Memory, share: float) -> None:
        flat: torch.Tensor = memory.modules[f"bucket.{self.number}"]
        dist.all_reduce(flat[: max(1, round(share * flat.numel()))])
