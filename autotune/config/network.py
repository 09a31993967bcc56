"""What the network between ranks reaches: measured transfers, and the latency and bandwidth fitted to them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from autotune.config.base import Frozen

Operation = Literal["all_to_all", "all_reduce", "reduce_scatter", "point_to_point"]


class NetworkPoint(Frozen):
    """One transfer, timed."""

    operation: Operation
    form: str = ""
    """Form of the all-to-all: native, fused_scatter or scatter_list; empty for other operations."""
    ranks: int = Field(ge=2)
    message_bytes: int = Field(ge=0)
    """Bytes sent by one rank to all others."""
    messages: int = Field(ge=1)
    """Messages sent by one rank."""
    time_s: float = Field(gt=0)
    """Time until the slowest rank has all; median of the rounds."""


class NetworkFit(Frozen):
    """``time = latency * messages + bytes / bandwidth`` of one operation and form among so many ranks.

    Source: R. Hockney, The communication challenge for MPP, Parallel Computing 20(3), 1994.
    """

    operation: Operation
    form: str = ""
    ranks: int = Field(ge=2)
    latency_s: float = Field(ge=0)
    """Latency of one message."""
    bandwidth_bytes_per_s: float = Field(gt=0)
    """Bandwidth of one sending rank, while all ranks send."""
    residual: float = Field(ge=0)
    """Median of |fitted / measured - 1| over the points."""
    worst: float = Field(ge=0)
    """Largest |fitted / measured - 1| of the points."""


class InterfaceRate(Frozen):
    """A candidate for the ranks' traffic."""

    name: str
    bandwidth_bytes_per_s: float | None = Field(gt=0)
    """Bandwidth of a transfer of 1 MiB; None where the ranks do not reach each other through it."""
    used: bool


class Together(Frozen):
    """What talking and computing at the same time cost each other, on one rank."""

    compute_s: float = Field(gt=0)
    """A fixed piece of computation alone."""
    transfer_s: float = Field(gt=0)
    """A fixed all-to-all alone."""
    both_s: float = Field(gt=0)
    """Both started together, until both are done."""
    compute_while_talking_s: float = Field(gt=0)
    """The computation, with the transfer under way."""

    @property
    def compute_slowdown(self) -> float:
        """How much longer computing takes with a transfer under way, above 1."""
        return self.compute_while_talking_s / self.compute_s

    @property
    def hidden(self) -> float:
        """Share of the shorter of the two that disappears behind the other: 1 where overlap is perfect, 0 where it gives nothing."""
        gained = self.compute_s + self.transfer_s - self.both_s
        return max(0.0, min(1.0, gained / min(self.compute_s, self.transfer_s)))


class Network(Frozen):
    """The network among the ranks of one launch."""

    backend: str
    interface: str
    """Network interface that the ranks talk through."""
    ranks: int = Field(ge=2)
    hosts: int = Field(ge=1)
    interfaces: tuple[InterfaceRate, ...]
    """Every candidate interface, with its rate."""
    points: tuple[NetworkPoint, ...]
    fits: tuple[NetworkFit, ...]
    together: Together
    notes: tuple[str, ...] = ()
