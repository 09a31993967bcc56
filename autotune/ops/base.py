"""What an operator tells about itself. The profiler, the roofline, the tuner and the explainer are loops over `Operator`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autotune.config.knobs import Knobs
from autotune.config.profile import Topology

Access = Literal["stream", "gather", "scatter"]


@dataclass(frozen=True)
class RowAccess:
    """Whole rows of one table, met in random order."""

    row_bytes: int
    touched: int
    """Rows touched, a row counted again each time."""
    unique: int
    """Distinct rows among them."""
    table_bytes: int
    """What the accesses range over."""


@dataclass(frozen=True)
class Work:
    """What one call of one operator pass must do, whatever the implementation: pure arithmetic from the shape."""

    flops: int
    """Floating-point operations; a multiply-add counts two."""
    bytes_read: int
    """Compulsory bytes from memory: every distinct row or element once."""
    bytes_written: int
    """Compulsory bytes to memory, without read-for-ownership."""
    access: Access = "stream"
    """The pattern that rules the traffic, and so the ceiling it is held against."""
    rows: tuple[RowAccess, ...] = ()
    """For gather and scatter: the tables, in the order in which they are walked."""
    operation: str = ""
    """On the network: all_to_all, all_reduce; empty where nothing is sent."""
    form: str = ""
    """Of the all-to-all."""
    messages: int = 0
    """Messages sent by one rank."""
    message_bytes: int = 0
    """Bytes sent by one rank."""
    parallel_regions: int = 1
    """Forks and joins of the team that the pass cannot do without."""

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written

    @property
    def row_traffic_bytes(self) -> int:
        """Row bytes that pass, re-used rows counted again each time; scatter reads and writes them."""
        return sum(rows.touched * rows.row_bytes for rows in self.rows) * (2 if self.access == "scatter" else 1)

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, flops per byte of compulsory traffic."""
        return self.flops / self.bytes if self.bytes else float("inf")


@dataclass(frozen=True)
class Check:
    """A candidate held against the plain reference."""

    worst: float
    """Largest absolute error over the output."""
    tolerance: float
    """What rounding allows at the worst element: reduction length x epsilon x norms."""
    where: str = ""

    @property
    def passed(self) -> bool:
        return self.worst <= self.tolerance


class Case(ABC):
    """One operator pass with inputs of its own, to be timed alone.

    Unless the case is warm, activations rotate through more than the last-level cache as far as 64 sets go, and look-ups through a few
    batches, so calls in a row do not find large inputs cached; weights stay, as in training.
    """

    @abstractmethod
    def run(self, knobs: Any, threads: int) -> None:
        """One call on the next set of inputs. This is what is timed."""

    @abstractmethod
    def check(self, knobs: Any, threads: int) -> Check:
        """Compare this candidate's result with the reference; nothing is timed before it passes."""


class Operator(ABC):
    """One pass of one operator at one shape."""

    key: str
    """Its name in a `RunConfig`: ``bottom_mlp.0.forward``."""

    runs_alone: bool = True
    """Whether `case` can time it outside a step."""

    @abstractmethod
    def work(self) -> Work:
        """Flops and bytes of one call. Source and formula stand in the implementation."""

    @abstractmethod
    def default(self, machine: Topology) -> Knobs:
        """The choice without tuning."""

    @abstractmethod
    def candidates(self, machine: Topology, threads: int) -> Sequence[Knobs]:
        """Values worth racing, derived from caches, registers, divisors and cores; the default is among them."""

    @abstractmethod
    def case(self, seed: int, warm: bool = False) -> Case:
        """Inputs to time this pass alone. Allocates; drop it when done."""
