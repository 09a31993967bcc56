"""All-reduce of dense gradients, in buckets that go out as soon as their last gradient is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from autotune.ops.base import Work
from autotune.ops.native import zeros

KEY = "all_reduce"
_ALIGN = 16
"""Floats a gradient's place is rounded up to: a cache line."""


@dataclass
class _Bucket:
    flat: torch.Tensor
    waiting: set[str] = field(default_factory=set)
    names: frozenset[str] = frozenset()


class Buckets:
    """Gradients of several tensors in few arrays, summed over the ranks.

    Args:
        shapes: name and shape of every gradient, in the order in which they become ready.
        bucket_bytes: a bucket is closed once it holds as much.
        overlap: reduce beside the computation; False waits for each bucket at once.
    """

    def __init__(self, shapes: Sequence[tuple[str, tuple[int, ...]]], bucket_bytes: int, *, overlap: bool) -> None:
        self._overlap = overlap
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[str, _Bucket] = {}
        self.gradients: dict[str, torch.Tensor] = {}
        """fp32 views into the buckets, to be written before `ready`."""
        self._works: list[Any] = []
        group: list[tuple[str, tuple[int, ...], int]] = []
        filled = 0
        for i, (name, shape) in enumerate(shapes):
            size = -(-torch.Size(shape).numel() // _ALIGN) * _ALIGN
            group.append((name, shape, filled))
            filled += size
            if 4 * filled >= bucket_bytes or i == len(shapes) - 1:
                bucket = _Bucket(zeros(filled), names=frozenset(one for one, _, _ in group))
                self._buckets.append(bucket)
                for one, of_one, begin in group:
                    self.gradients[one] = bucket.flat[begin : begin + torch.Size(of_one).numel()].view(of_one)
                    self._bucket_of[one] = bucket
                group, filled = [], 0

    def begin(self) -> None:
        """A new step: nothing is ready."""
        for bucket in self._buckets:
            bucket.waiting = set(bucket.names)

    def ready(self, *names: str) -> None:
        """These gradients are written; a bucket that has all of its own goes out."""
        for name in names:
            bucket = self._bucket_of[name]
            bucket.waiting.discard(name)
            if not bucket.waiting:
                work = dist.all_reduce(bucket.flat, async_op=True)
                if self._overlap:
                    self._works.append(work)
                else:
                    work.wait()

    def wait(self) -> None:
        """Until every gradient is the sum over the ranks."""
        for work in self._works:
            work.wait()
        self._works = []

    def reduce(self, share: float = 1.0) -> None:
        """Reduce the first `share` of every bucket, with nothing beside it."""
        works = [dist.all_reduce(bucket.flat[: max(1, round(share * bucket.flat.numel()))], async_op=True) for bucket in self._buckets]
        for work in works:
            work.wait()

    def work(self, ranks: int) -> Work:
        """A reduction moves 2 (W-1)/W of the bytes through every rank, in at least 2 (W-1) messages a bucket (ring)."""
        size = 4 * sum(bucket.flat.numel() for bucket in self._buckets)
        return Work(
            flops=size // 4,
            bytes_read=size,
            bytes_written=size,
            operation="all_reduce",
            messages=2 * (ranks - 1) * len(self._buckets),
            message_bytes=2 * (ranks - 1) * size // ranks,
            parallel_regions=0,
        )
