"""What one rank needs to talk to the others under one choice of the communication knobs: exchanges, buckets, and their buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from autotune.config.partition import CommunicationKnobs
from autotune.dlrm.sharding import Part, Shard
from autotune.ops import all_reduce, all_to_all, embedding_bag
from autotune.ops.all_to_all import Direction, Exchange
from autotune.ops.layer import Layer

LOSS = "loss"
"""Place of the loss in the first bucket."""


class Connection:
    """Buffers and transfers of a `ParallelDLRM`.

    Args:
        parts: what every rank owns.
        sparse: copies whose gradients travel as pooled gradients.
        dense: copies whose gradients are reduced densely.
        layers: by name, in the order they go forward.
        bounds: of the ranks' samples.
        rank: this one.
        knobs: form, wire dtype, bucket size, overlap.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[Part]],
        sparse: Shard,
        dense: Shard,
        layers: Mapping[str, Layer],
        bounds: Sequence[int],
        rank: int,
        knobs: CommunicationKnobs,
    ) -> None:
        self._bounds, self._rank, self._knobs = bounds, rank, knobs
        samples = bounds[rank + 1] - bounds[rank]
        owned = [[part.width for part in of_rank] for of_rank in parts]
        extra = [part.width for part in sparse.parts]
        self._widths: dict[Direction, list[list[int]]] = {"forward": owned, "backward": [[*widths, *extra] for widths in owned]}
        self.out = Exchange("forward", bounds, self._widths["forward"], rank, knobs)
        self.back = Exchange("backward", bounds, self._widths["backward"], rank, knobs)
        self.pooled_sparse = torch.zeros(samples, sparse.width)
        """fp32 [n, width]: of copies, for this rank's samples."""
        self.pooled_dense = torch.zeros(samples, dense.width)
        tables = [(f"table.{part.table}", (part.rows[1], part.width)) for part in dense.parts]
        ordered = sorted(reversed(list(layers.items())), key=lambda pair: pair[0].startswith("bottom"))
        gradients = [(f"{name}.{kind}", tuple(of.shape)) for name, one in ordered for kind, of in (("w", one.d_weight), ("b", one.d_bias))]
        shapes: list[tuple[str, tuple[int, ...]]] = [(LOSS, (1,)), *tables, *gradients]
        self.buckets = all_reduce.Buckets(shapes, knobs.bucket_bytes, overlap=knobs.overlap)
        of_tables = [self.buckets.gradients[name] for name, _ in tables]
        self.table_gradients = embedding_bag.EmbeddingBags.of(of_tables) if of_tables else None
        """Dense gradients of copies, as tables to add to."""

    def attach(self, layers: Mapping[str, Layer]) -> None:
        """Let the layers write their gradients into these buckets."""
        for name, layer in layers.items():
            layer.d_weight, layer.d_bias = self.buckets.gradients[f"{name}.w"], self.buckets.gradients[f"{name}.b"]

    def talk(self, key: str, share: float) -> Callable[[], None]:
        """The transfer `key` alone, with a share of its bytes."""
        if key == all_reduce.KEY:

            def reduce() -> None:
                self.buckets.reduce(share)

            return reduce
        direction: Direction = "forward" if key == all_to_all.FORWARD else "backward"
        exchange = self.out if direction == "forward" else self.back
        if share != 1.0:
            narrow = [[max(1, round(share * width)) for width in of_rank] for of_rank in self._widths[direction]]
            exchange = Exchange(direction, self._bounds, narrow, self._rank, self._knobs)

        def call() -> None:
            exchange.start()
            exchange.wait()

        return call
