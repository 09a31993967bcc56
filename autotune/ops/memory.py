"""What a step runs on: buffers that stay from step to step, modules with weights, and the batch at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from autotune.config.model import Model
from autotune.config.partition import Partition
from autotune.ops.native import empty_rows, torch, zeros

if TYPE_CHECKING:
    from autotune.ops.schedule import Buffer

T = TypeVar("T")

_KEPT_VARIANTS = 3
"""Two communication choices that are compared, and one to go back to."""


@dataclass(frozen=True)
class World:
    """This rank among all ranks. The default is a world of one."""

    rank: int = 0
    ranks: int = 1
    partition: Partition | None = None
    place_network: Callable[[int], object] = lambda cores: None
    """Called with the number of cores that are left to the network's threads."""
    waiting: Callable[[str], AbstractContextManager[object]] = lambda key: nullcontext()
    """Entered while a rank waits for the others in the pass named."""


@dataclass(eq=False)
class Memory:
    """The state of one rank.

    Args:
        model: with the minibatch of this rank.
        world: this rank among all.
        seed: of the initial weights.
        threads: team that touches fresh pages first.
    """

    model: Model
    world: World
    seed: int
    threads: int
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    """By the name that passes read and write."""
    modules: dict[str, Any] = field(default_factory=dict)
    """What keeps weights or workspace: layers, table shards, exchanges."""
    lookups: dict[str, Any] = field(default_factory=dict)
    """Look-ups of the batch by the shard that they are for."""
    batch: Any = None

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        """Draws the initial weights of the layers, in the order in which the schedule first uses them."""

    def module(self, name: str, make: Callable[[], T]) -> T:
        """The module `name`, made at its first use."""
        if name not in self.modules:
            self.modules[name] = make()
        made: T = self.modules[name]
        return made

    def variant(self, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """The module `name` in the variant `key`; the last three variants are kept."""
        variants: dict[Hashable, T] = self.module(f"{name} (variants)", dict)
        made = variants.pop(key) if key in variants else make()
        variants[key] = made
        while len(variants) > _KEPT_VARIANTS:
            variants.pop(next(iter(variants)))
        self.modules[name] = made
        return made

    def allocate(self, buffer: Buffer) -> None:
        """Make a buffer that is not there: rows with a padded leading dimension for [N, K], a view for one that lies inside another."""
        if not buffer.shape or buffer.name in self.buffers:
            return
        if buffer.inside is not None:
            self.allocate(buffer.inside)
            root = self.buffers[buffer.inside.name]
            width = math.prod(buffer.shape[1:])
            columns = root.view(root.shape[0], -1)[:, buffer.first : buffer.first + width]
            self.buffers[buffer.name] = columns.view(buffer.shape)
        elif len(buffer.shape) == 2:
            self.buffers[buffer.name] = empty_rows(*buffer.shape, self.threads)
        else:
            self.buffers[buffer.name] = zeros(*buffer.shape, threads=self.threads)
