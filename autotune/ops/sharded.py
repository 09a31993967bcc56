"""What a rank does around the exchanges: choosing its look-ups, copying pooled rows into place, and collecting gradients to send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.config.knobs import Knobs
from autotune.config.model import FLOAT_BYTES
from autotune.ops.base import Family, Features, Operator, Rates, Residence, Work
from autotune.ops.embedding_bag import EMBEDDING_FORWARD, EmbeddingUpdate
from autotune.ops.embedding_tables import EmbeddingBags, EmbeddingUpdateKnobs
from autotune.ops.memory import Memory
from autotune.ops.native import torch
from autotune.ops.shards import Part, Shard


@dataclass(eq=False)
class _Copy(Operator):
    """A pass that only moves bytes, within a step."""

    family: ClassVar[Family] = EMBEDDING_FORWARD
    runs_alone: ClassVar[bool] = False

    def features(self, knobs: Knobs | None, residence: Residence, rates: Rates) -> Features:
        return {"moved": self.work().bytes / rates.stream_bytes_per_s}


@dataclass(eq=False)
class Select(_Copy):
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
class Place(_Copy):
    """What came from the owners, and what this rank pooled itself, to where the interaction reads it; partial sums are added.

    Args:
        blocks: in the order in which they are added.
        samples: of this rank.
        vectors: name of the buffer [samples, 1 + tables, E].
    """

    blocks: tuple[Block, ...]
    samples: int
    vectors: str = "vectors"

    kind: ClassVar[str] = "embedding_bag.place"

    def work(self) -> Work:
        return _copied(self.blocks, self.samples)

    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        begun, vectors = set(), memory.buffers[self.vectors]
        for block in self.blocks:
            for part, source in _columns(memory.buffers[block.buffer], block.parts):
                to = vectors[:, 1 + part.table, slice(*part.columns)]
                if part.sums and part.table in begun:
                    to.add_(source)
                else:
                    to.copy_(source)
                begun.add(part.table)


@dataclass(eq=False)
class Collect(_Copy):
    """The gradients of each owner's parts side by side, as they are sent. Fields are those of `Place`, of gradients."""

    blocks: tuple[Block, ...]
    samples: int
    vectors: str = "d_vectors"

    kind: ClassVar[str] = "embedding_bag.collect"

    def work(self) -> Work:
        return _copied(self.blocks, self.samples)

    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        vectors = memory.buffers[self.vectors]
        for block in self.blocks:
            for part, to in _columns(memory.buffers[block.buffer], block.parts):
                to.copy_(vectors[:, 1 + part.table, slice(*part.columns)])


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


def _copied(blocks: Sequence[Block], samples: int) -> Work:
    """Every pooled column of this rank's samples is read and written."""
    size = FLOAT_BYTES * samples * sum(part.width for block in blocks for part in block.parts)
    return Work(0, size, size)


def _columns(matrix: torch.Tensor, parts: Sequence[Part]) -> list[tuple[Part, torch.Tensor]]:
    """Each part with its columns of fp32 [samples, width of all]."""
    columns, first = [], 0
    for part in parts:
        columns.append((part, matrix[:, first : first + part.width]))
        first += part.width
    return columns
