"""The optimizer's step on dense weights whose gradients come from all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.config.model import FLOAT_BYTES
from autotune.ops.base import OUTSIDE, Copying, Family, Work
from autotune.ops.layer import Layer
from autotune.ops.memory import Memory
from autotune.ops.shards import Shard

KEY = "optimizer"


@dataclass(eq=False)
class DenseOptimizer(Copying):
    """One step of every layer, and of the tables whose gradients are reduced densely.

    Args:
        layers: their names; gradients are the buffers ``<layer>.w`` and ``<layer>.b``.
        weights: parameters of all layers.
        shard: of the tables; their gradients are the buffers ``table.<number>``. Empty without such tables.
    """

    layers: tuple[str, ...]
    weights: int
    shard: str = ""
    copied: int = 0
    """Parameters of those tables."""
    weight_bytes: int = FLOAT_BYTES
    """Of one of them in memory."""

    kind: ClassVar[str] = KEY
    family: ClassVar[Family] = OUTSIDE
    runs_alone: ClassVar[bool] = False

    def work(self) -> Work:
        """Weights step once all gradients are in, and are packed then: a layer's gradient and weight are read, weight and two packed copies
        written; a table's gradient and weight are read, the weight is written."""
        size, copied = FLOAT_BYTES * self.weights, self.weight_bytes * self.copied
        return Work(2 * (self.weights + self.copied), 3 * size + FLOAT_BYTES * self.copied + copied, 3 * size + copied)

    def size(self) -> Mapping[str, float]:
        return {"weights": float(FLOAT_BYTES * self.weights)}

    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        rate = memory.model.learning_rate
        for name in self.layers:
            layer: Layer = memory.modules[name]
            layer.d_weight, layer.d_bias = memory.buffers[f"{name}.w"], memory.buffers[f"{name}.b"]
            layer.descend(rate, threads)
        if self.shard:
            shard: Shard = memory.modules[f"shard.{self.shard}"]
            for parts, bags in shard.groups:
                bags.descend([memory.buffers[f"table.{part.table}"] for part in parts], rate, threads)
