"""A step in time: every rank computes, collectives run beside it on the network lane, and each waits for the last rank to begin it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from autotune.dlrm.parallel import OPTIMIZER, SELECT
from autotune.ops import all_reduce, all_to_all, embedding_bag, interaction, loss
from autotune.perf.rank_steps import PLACE

Lane = Literal["compute", "network"]


@dataclass(frozen=True)
class Span:
    """A pass in time, on one rank."""

    rank: int
    lane: Lane
    key: str
    begin_s: float
    """From the iteration's start."""
    end_s: float


@dataclass(frozen=True)
class Transfers:
    """Seconds of each collective alone, and what talking costs computing."""

    forward_s: float
    backward_s: float
    reduced: tuple[tuple[str, float], ...]
    """Buckets: the pass after which each goes out, and its time."""
    overlap: bool = True
    slowdown: float = 1.0
    """How much longer computing takes beside a transfer."""


@dataclass
class Simulation:
    """Ranks side by side.

    Args:
        times_s: Of every rank, seconds by pass, in the order of `step_passes` with the passes of a rank beside them.
        transfers: The same for all.
    """

    times_s: Sequence[Mapping[str, float]]
    transfers: Transfers
    spans: list[Span] = field(default_factory=list)
    exposed_s: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.times_s)
        self._now = [0.0] * count
        self.exposed_s = [{} for _ in range(count)]
        self._lane: list[tuple[float, float]] = []
        """When the network is busy, in order."""

    def run(self) -> float:
        """The seconds of the step, of the slowest rank."""
        keys = list(self.times_s[0])
        bottom = [key for key in keys if key.startswith("bottom") and key.endswith(".forward")]
        middle = [key for key in keys if key.startswith("top") and key.endswith(".forward")]
        data = [key for key in keys if key.startswith("top") and key.endswith(".backward_data")]
        weights = [key for key in keys if key.startswith("top") and key.endswith(".backward_weights")]
        last = [key for key in keys if key.startswith("bottom") and not key.endswith(".forward")]
        transfers = self.transfers
        self._compute([SELECT, embedding_bag.FORWARD])
        forward = self._send(all_to_all.FORWARD, transfers.forward_s)
        self._compute(bottom)
        self._wait(all_to_all.FORWARD, forward)
        self._compute([PLACE, interaction.FORWARD, *middle, loss.KEY, *data, interaction.BACKWARD])
        backward = self._send(all_to_all.BACKWARD, transfers.backward_s)
        reductions = self._reduce(interaction.BACKWARD)
        for key in (*weights, *last):
            self._compute([key])
            reductions += self._reduce(key)
        self._wait(all_to_all.BACKWARD, backward)
        self._compute([embedding_bag.UPDATE])
        self._wait(all_reduce.KEY, max(reductions, default=0.0))
        self._compute([OPTIMIZER, "other"])
        return max(self._now)

    def _compute(self, keys: Sequence[str]) -> None:
        for rank, times_s in enumerate(self.times_s):
            for key in keys:
                if key in times_s and times_s[key] > 0:
                    begin_s = self._now[rank]
                    self._now[rank] = self._end(begin_s, times_s[key])
                    self.spans.append(Span(rank, "compute", key, begin_s, self._now[rank]))

    def _end(self, begin_s: float, time_s: float) -> float:
        """Where computing ends that is slower beside a transfer."""
        now_s, left_s = begin_s, time_s
        for low, high in self._lane:
            if high <= now_s or low >= now_s + left_s:
                continue
            if low > now_s:
                left_s -= low - now_s
                now_s = low
            beside_s = min(left_s * self.transfers.slowdown, high - now_s)
            now_s += beside_s
            left_s -= beside_s / self.transfers.slowdown
        return now_s + left_s

    def _send(self, key: str, time_s: float) -> float:
        """A collective begins when the last rank is there and the network is free; returns its end."""
        if time_s <= 0:
            return 0.0
        begin_s = max(max(self._now), self._lane[-1][1] if self._lane else 0.0)
        end_s = begin_s + time_s
        self._lane.append((begin_s, end_s))
        self.spans += [Span(rank, "network", key, begin_s, end_s) for rank in range(len(self._now))]
        if not self.transfers.overlap:
            self._wait(key, end_s)
        return end_s

    def _reduce(self, key: str) -> list[float]:
        return [self._send(all_reduce.KEY, time_s) for after, time_s in self.transfers.reduced if after == key]

    def _wait(self, key: str, end_s: float) -> None:
        for rank, now_s in enumerate(self._now):
            waited_s = max(0.0, end_s - now_s)
            self._now[rank] = now_s + waited_s
            self.exposed_s[rank][key] = self.exposed_s[rank].get(key, 0.0) + waited_s


def in_a_row(rank: int, times_s: Mapping[str, float], include: Callable[[str], bool] = lambda key: True) -> list[Span]:
    """Passes one after another, as on one socket."""
    spans, now_s = [], 0.0
    for key, time_s in times_s.items():
        if include(key):
            spans.append(Span(rank, "compute", key, now_s, now_s + time_s))
            now_s += time_s
    return spans
