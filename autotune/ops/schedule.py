"""The step as a value: its passes in order, each with the buffers it reads and writes. Everything else is a walk over it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from autotune.config.model import Model
from autotune.ops.base import Operator, Work, heaviest

Lane = Literal["compute", "network"]

ROWS = "rows"
"""Name of the buffer that stands for the table rows of a batch: which of them a cache still holds depends on their popularity."""


@dataclass(frozen=True)
class Buffer:
    """An array that passes share, by name."""

    name: str
    size_bytes: float
    shape: tuple[int, ...] = ()
    """fp32 shape, for a buffer that the executor allocates; empty for one that belongs to a module or a batch."""
    inside: Buffer | None = None
    """The buffer of which it is a view."""
    first: int = 0
    """First column of the view, counting the elements of one sample."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One operator at its place in the step."""

    key: str
    """Name by which knobs and times are kept; several passes may share one."""
    operator: Operator
    lane: Lane = "compute"
    reads: tuple[Buffer, ...] = ()
    writes: tuple[Buffer, ...] = ()
    after: tuple[str, ...] = ()
    """Names of buffers whose pending transfer must end before this pass, though it does not read them."""

    @property
    def touches(self) -> tuple[Buffer, ...]:
        """Everything that it reads or writes, once each, in that order."""
        return tuple({buffer.name: buffer for buffer in (*self.reads, *self.writes)}.values())


@dataclass(frozen=True, eq=False)
class Schedule:
    """One rank's step.

    The passes run in their order. A network pass is started at its place and waited for before the first pass that reads what it writes, or
    writes what it reads.
    """

    passes: tuple[Pass, ...]
    model: Model
    """With the minibatch of this rank."""
    forward_passes: int
    """How many of the passes, from the first on, give the predictions."""
    samples: tuple[int, int]
    """The samples [begin, end) of the global minibatch that this rank works on."""
    global_minibatch: int
    overlap: bool = True
    """Whether transfers run beside passes; without, each is waited for at once."""

    @cached_property
    def _by_key(self) -> Mapping[str, Sequence[Operator]]:
        groups: dict[str, list[Operator]] = {}
        for each in self.passes:
            groups.setdefault(each.key, []).append(each.operator)
        return groups

    @cached_property
    def operators(self) -> Mapping[str, Operator]:
        """The operator of every key, in the order of the first pass of each; the heaviest where several passes share one."""
        return {key: heaviest(group) for key, group in self._by_key.items()}

    @cached_property
    def works(self) -> Mapping[str, Work]:
        """What all passes of every key do together."""
        return {key: functools.reduce(operator.add, (each.work() for each in group)) for key, group in self._by_key.items()}

    @property
    def output(self) -> str:
        """Name of the buffer of the predictions, [N, 1]."""
        return self.passes[self.forward_passes - 1].writes[0].name

    @cached_property
    def collectives(self) -> tuple[str, ...]:
        """Keys of the passes on the network lane."""
        return tuple(dict.fromkeys(each.key for each in self.passes if each.lane == "network"))

    @cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """The order of execution: passes run or started, and transfers waited for where a later pass depends on them."""
        pending: list[int] = []
        order: list[Instruction] = []

        def settle(number: int) -> None:
            pending.remove(number)
            order.append(Instruction("wait", number))

        for number, each in enumerate(self.passes):
            for transfer in list(pending):
                if _depends(each, self.passes[transfer]):
                    settle(transfer)
            if each.lane == "compute":
                order.append(Instruction("run", number))
                continue
            order.append(Instruction("start", number))
            pending.append(number)
            if not self.overlap:
                settle(number)
        for transfer in list(pending):
            settle(transfer)
        return tuple(order)


@dataclass(frozen=True)
class Instruction:
    """One thing that the executor does."""

    what: Literal["run", "start", "wait"]
    number: int
    """Index of the pass in the schedule."""


def _depends(later: Pass, transfer: Pass) -> bool:
    written, read = {buffer.name for buffer in transfer.writes}, {buffer.name for buffer in transfer.reads}
    touched = {buffer.name for buffer in later.touches} | set(later.after)
    return bool(written & touched) or bool(read & {buffer.name for buffer in later.writes})
