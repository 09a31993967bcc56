"""What a rank does around the exchanges: choosing its look-ups, copying pooled rows into place, and collecting gradients to send."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.config.model import FLOAT_BYTES
from autotune.ops.base import Copying, Family, Work
from autotune.ops.embedding_bag import EMBEDDING_FORWARD, EmbeddingUpdate
from autotune.ops.embedding_tables import EmbeddingBags, EmbeddingUpdateKnobs
from autotune.ops.memory import Memory
from autotune.ops.native import torch
from autotune.ops.shards import Part, Shard


@dataclass(eq=False)
class Select(Copying):
    """The look-ups of a batch that each shard needs.

    Args:
        choices: name in `Memory.lookups`, the shard, and the samples [begin, end) or None for all.
        lookups: expected number, of all choices.
        index_bytes: of one index.
    """

    choices: tuple[tuple[str, str, tuple[int, int] | None], ...]
    lookups: float
    index_bytes: int = 8

    kind: ClassVar[str] = "embedding_bag.select"
    family: ClassVar[Family] = EMBEDDING_FORWARD
    runs_alone: ClassVar[bool] = False
    selects: ClassVar[bool] = True

    def work(self) -> Work:
        """Every chosen index is read and written."""
        size = 2 * self.index_bytes * round(self.lookups)
        return Work(0, size // 2, size // 2)

    def size(self) -> Mapping[str, float]:
        return {"lookups": self.lookups}

    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        for name, shard, samples in self.choices:
            memory.lookups[name] = memory.modules[f"shard.{shard}"].select(memory.batch, samples)


@dataclass(frozen=True)
class Block:
    """Pooled rows of some parts side by side."""

    buffer: str
    """fp32 [samples, width of the parts]."""
    parts: tuple[Part, ...]


@dataclass(eq=False)
class _Columns(Copying):
    """A copy between blocks and the vectors that the interaction reads, or their gradients.

    Args:
        blocks: in the order in which they are met.
        samples: of this rank.
        vectors: name of the buffer [samples, 1 + tables, E].
    """

    blocks: tuple[Block, ...]
    samples: int
    vectors: str = "vectors"

    family: ClassVar[Family] = EMBEDDING_FORWARD
    runs_alone: ClassVar[bool] = False

    def work(self) -> Work:
        """Every pooled column of this rank's samples is read and written."""
        size = FLOAT_BYTES * self.samples * sum(part.width for block in self.blocks for part in block.parts)
        return Work(0, size, size)

    def _pairs(self, memory: Memory) -> Iterator[tuple[Part, torch.Tensor, torch.Tensor]]:
        """Each part with its columns of a block and of the vectors, fp32 [samples, width of the part]."""
        vectors = memory.buffers[self.vectors]
        for block in self.blocks:
            matrix, first = memory.buffers[block.buffer], 0
            for part in block.parts:
                yield part, matrix[:, first : first + part.width], vectors[:, 1 + part.table, slice(*part.columns)]
                first += part.width


@dataclass(eq=False)
class Place(_Columns):
    """What came from the owners, and what this rank pooled itself, to where the interaction reads it; partial sums are added."""

    kind: ClassVar[str] = "embedding_bag.place"

    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        begun = set()
        for part, pooled, vectors in self._pairs(memory):
            if part.sums and part.table in begun:
                vectors.add_(pooled)
            else:
                vectors.copy_(pooled)
            begun.add(part.table)


@dataclass(eq=False)
class Collect(_Columns):
    """The gradients of each owner's parts side by side, as they are sent."""

    vectors: str = "d_vectors"

    kind: ClassVar[str] = "embedding_bag.collect"

    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        for _, gradients, vectors in self._pairs(memory):
            gradients.copy_(vectors)


@dataclass(eq=False)
class ReplicaGradient(EmbeddingUpdate):
    """The dense gradient of small tables that every rank holds, from this rank's samples: the buffers ``table.<number>``, to be reduced."""

    kind: ClassVar[str] = "embedding_bag.replica_gradient"
    prior: ClassVar[Mapping[str, float]] = EmbeddingUpdate.prior

    def run(self, memory: Memory, knobs: EmbeddingUpdateKnobs, threads: int) -> None:
        (source,) = self.sources
        shard: Shard = memory.modules[f"shard.{source.shard}"]
        tables = [memory.buffers[f"table.{part.table}"] for part in source.parts]
        for table in tables:
            table.zero_()
        key = tuple(table.data_ptr() for table in tables)
        gradients = memory.variant("replica gradients", key, lambda: EmbeddingBags.of(tables))
        # An update of zeros at learning rate -1 adds up the gradient. Replicated tables have all columns, so one group holds them.
        (lookups,) = memory.lookups[source.lookups]
        pooled = memory.buffers[source.buffer].view(-1, len(source.parts), shard.parts[0].width)
        gradients.update(lookups, pooled, -1.0, knobs.repeatable(), threads)
