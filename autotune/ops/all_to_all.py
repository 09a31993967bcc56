"""All-to-all between tables that are model-parallel and samples that are data-parallel.

A rank that owns table parts has, for all N samples, one matrix [N, width] of the parts' pooled columns side by side. Its rows of rank
d's samples are one contiguous block, so a block goes out as it lies. A rank that works on n samples meets one block [n, width of r] from
every rank r. `Exchange` moves owners' matrices to blocks (forward), or blocks to owners' matrices (backward).

Forms, after arXiv 2005.04680, section IV: one scatter for every table part, one fused scatter for every rank, one native all-to-all.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Literal

from autotune.config.knobs import RunConfig
from autotune.config.model import FLOAT_BYTES
from autotune.config.partition import CommunicationKnobs
from autotune.ops.base import Work
from autotune.ops.collective import Collective, wire_bytes
from autotune.ops.memory import Memory
from autotune.ops.native import dist, torch

FORWARD = "all_to_all.forward"
BACKWARD = "all_to_all.backward"
Direction = Literal["forward", "backward"]


def sample_bounds(samples: int, ranks: int) -> tuple[int, ...]:
    """Rank r works on samples ``bounds[r]`` up to ``bounds[r + 1]``: parts differ by one sample at most."""
    return tuple(samples * r // ranks for r in range(ranks + 1))


class Exchange:
    """Buffers and transfers of one direction.

    Args:
        direction: forward sends `owned` and fills `blocks`; backward the other way.
        bounds: see `sample_bounds`; every rank needs a sample.
        slots: for every rank, the columns of each part it owns.
        rank: this one.
        knobs: form and wire dtype.
        group: of torch.distributed, in which ranks are counted as in the whole; None takes the whole.
    """

    def __init__(
        self,
        direction: Direction,
        bounds: Sequence[int],
        slots: Sequence[Sequence[int]],
        rank: int,
        knobs: CommunicationKnobs,
        group: Any = None,
    ) -> None:
        self._group, self._form = group, knobs.all_to_all
        self._forward, self._bounds, self._slots, self._rank = direction == "forward", tuple(bounds), slots, rank
        self._counts = [high - low for low, high in pairwise(bounds)]
        self._widths = [sum(widths) for widths in slots]
        self.owned = torch.zeros(bounds[-1], self._widths[rank])
        """fp32 [N, own width]."""
        flat = torch.zeros(self._counts[rank] * sum(self._widths))
        self.blocks = self._blocks_of(flat)
        """fp32 [n, width of r] of every rank r; views into one array."""
        self._works: list[Any] = []
        self._after: list[tuple[torch.Tensor, torch.Tensor]] = []
        wire = torch.bfloat16 if knobs.wire_dtype == "bf16" else torch.float32
        self._owned_wire, self._flat_wire = self.owned.to(wire), flat.to(wire)  # fp32 gives the arrays themselves
        sides = (self.owned, self._owned_wire), (flat, self._flat_wire)
        self._sent, self._received = sides if self._forward else sides[::-1]

    def start(self) -> None:
        """Begin the transfer; neither side may be touched until `wait`."""
        sent, wire = self._sent
        if wire is not sent:
            wire.copy_(sent)
        if self._form == "native":
            self._native()
        else:
            self._rooted()

    def wait(self) -> None:
        """Until this rank has what it is sent, and what it sends may be written again."""
        for work in self._works:
            work.wait()
        for to, source in self._after:
            to.copy_(source)
        received, wire = self._received
        if wire is not received:
            received.copy_(wire)
        self._works, self._after = [], []

    def _blocks_of(self, flat: torch.Tensor) -> list[torch.Tensor]:
        samples = self._counts[self._rank]
        ends = [0, *accumulate(samples * width for width in self._widths)]
        return [flat[low:high].view(samples, width) for (low, high), width in zip(pairwise(ends), self._widths, strict=True)]

    def _native(self) -> None:
        samples, width, size = self._counts[self._rank], self._widths[self._rank], self._owned_wire.element_size()
        # As bytes: backends differ in the dtypes they know.
        owned = _bytes(self._owned_wire), [count * width * size for count in self._counts]
        flat = _bytes(self._flat_wire), [samples * width * size for width in self._widths]
        (sent, sent_sizes), (received, received_sizes) = (owned, flat) if self._forward else (flat, owned)
        self._works.append(dist.all_to_all_single(received, sent, received_sizes, sent_sizes, group=self._group, async_op=True))

    def _rooted(self) -> None:
        """A scatter from, or a gather to, every owner in turn, of all its columns or part by part.

        These take blocks of one size only: where samples do not divide, or columns do not lie side by side, they go through padded copies.
        """
        most, even = max(self._counts), len(set(self._counts)) == 1
        blocks = self._blocks_of(self._flat_wire)
        for root, slots in enumerate(self._slots):
            ends = [0, *accumulate(slots)] if self._form == "scatter_list" else [0, self._widths[root]]
            for left, right in pairwise(ends):
                if left == right:
                    continue
                whole = even and right - left == self._widths[root]
                block = blocks[root][:, left:right]
                local = block if whole else block.new_zeros(most, right - left)
                pieces = None
                if root == self._rank:
                    rank_rows = [self._owned_wire[low:high, left:right] for low, high in pairwise(self._bounds)]
                    pieces = rank_rows if whole else [block.new_zeros(most, right - left) for _ in rank_rows]
                    if not whole:
                        self._through_copies(pieces, rank_rows, out=self._forward)
                if not whole:
                    self._through_copies([local], [block], out=not self._forward)
                as_bytes = None if pieces is None else [_bytes(piece) for piece in pieces]
                if self._forward:
                    self._works.append(dist.scatter(_bytes(local), as_bytes, src=root, group=self._group, async_op=True))
                else:
                    self._works.append(dist.gather(_bytes(local), as_bytes, dst=root, group=self._group, async_op=True))

    def _through_copies(self, padded: Sequence[torch.Tensor], plain: Sequence[torch.Tensor], *, out: bool) -> None:
        """Fill `padded` now where it goes out; else remember to empty it when the transfer is over."""
        for wide, narrow in zip(padded, plain, strict=True):
            rows = wide[: narrow.shape[0]]
            if out:
                rows.copy_(narrow)
            else:
                self._after.append((narrow, rows))


@dataclass(eq=False)
class AllToAll(Collective):
    """The exchange of one direction as a pass.

    Args:
        direction: forward sends pooled rows to the samples' ranks, backward their gradients to the owners.
        bounds: see `sample_bounds`.
        slots: for every rank, the columns of each part it owns.
        rank: this one.
        knobs: form and wire dtype.
    """

    direction: Direction
    bounds: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]
    rank: int
    knobs: CommunicationKnobs

    kind: ClassVar[str] = "all_to_all"
    shortest_words: ClassVar[Mapping[str, str]] = {"all_to_all": "a2a", "forward": "fwd", "backward": "bwd"}

    @classmethod
    def is_key(cls, key: str) -> bool:
        return key in (FORWARD, BACKWARD)

    def work(self) -> Work:
        """Bytes that this rank sends to others, and messages of the native form or of the scatters.

        Scatters and gathers take blocks of one size: where samples do not divide by the ranks, each is padded to the largest share.
        """
        form, widths = self.knobs.all_to_all, [sum(slots) for slots in self.slots]
        counts = [high - low for low, high in pairwise(self.bounds)]
        rows = counts if form == "native" else [max(counts)] * len(counts)
        others = [r for r in range(len(self.slots)) if r != self.rank]
        messages = [(len(slots) if form == "scatter_list" else 1) if sum(slots) else 0 for slots in self.slots]
        owned, blocks = FLOAT_BYTES * self.bounds[-1] * widths[self.rank], FLOAT_BYTES * counts[self.rank] * sum(widths)
        if self.direction == "forward":
            sent, count, read, written = widths[self.rank] * sum(rows[r] for r in others), messages[self.rank] * len(others), owned, blocks
        else:
            sent, count, read, written = rows[self.rank] * sum(widths[r] for r in others), sum(messages[r] for r in others), blocks, owned
        return Work(
            flops=0,
            bytes_read=read,
            bytes_written=written,
            operation="all_to_all",
            form=form,
            messages=count,
            message_bytes=wire_bytes(self.knobs) * sent,
            parallel_regions=0,
        )

    @property
    def _name(self) -> str:
        return f"exchange.{self.direction}"

    def prepare(self, memory: Memory, knobs: Any, config: RunConfig) -> None:
        """Buffers under the communication knobs in force: ``exchange.forward.owned`` and, of every rank, ``exchange.forward.from.0`` ..."""
        exchange = memory.variant(self._name, (self.knobs.all_to_all, self.knobs.wire_dtype), functools.partial(self._exchange, 1.0))
        memory.buffers[f"{self._name}.owned"] = exchange.owned
        memory.buffers |= {f"{self._name}.from.{rank}": block for rank, block in enumerate(exchange.blocks)}

    def _exchange(self, share: float) -> Exchange:
        """The exchange of a share of the columns."""
        slots = [[max(1, round(share * width)) for width in widths] for widths in self.slots]
        return Exchange(self.direction, self.bounds, slots, self.rank, self.knobs)

    def start(self, memory: Memory) -> None:
        memory.modules[self._name].start()

    def wait(self, memory: Memory) -> None:
        memory.modules[self._name].wait()

    def alone(self, memory: Memory, share: float) -> None:
        exchange: Exchange = memory.modules[self._name]
        if share != 1.0:
            key = (self.knobs.all_to_all, self.knobs.wire_dtype, share)
            exchange = memory.variant(f"{self._name}.part", key, functools.partial(self._exchange, share))
        exchange.start()
        exchange.wait()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)
