"""What all collectives share: they run on the network lane, and their time is what the step waits for them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.config.model import FLOAT_BYTES
from autotune.config.partition import CommunicationKnobs
from autotune.ops.base import Family, Operator
from autotune.ops.memory import Memory

WAITING = Family("waiting", "#d9dce1")


def wire_bytes(knobs: CommunicationKnobs) -> int:
    """Bytes of an element of pooled rows and their gradients on the network."""
    return 2 if knobs.wire_dtype == "bf16" else FLOAT_BYTES


@dataclass(eq=False)
class Collective(Operator):
    """A transfer among all ranks, begun at its place in the step and waited for before what depends on it."""

    family: ClassVar[Family] = WAITING
    runs_alone: ClassVar[bool] = False
    waits_for_others: ClassVar[bool] = True

    @abstractmethod
    def start(self, memory: Memory) -> None:
        """Begin; neither side may be touched until `wait`."""

    @abstractmethod
    def wait(self, memory: Memory) -> None:
        """Until this rank has what it is sent, and what it sends may be written again."""

    @abstractmethod
    def alone(self, memory: Memory, share: float) -> None:
        """The transfer with nothing beside it, of a share of its bytes. Overwrites buffers of the step, which every step fills anew."""

    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        self.start(memory)
        self.wait(memory)
