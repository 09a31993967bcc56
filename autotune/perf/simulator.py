"""A step in time: every rank walks its schedule, collectives run on a network lane beside it and begin with the last rank to reach them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autotune.ops.schedule import Instruction, Lane, Schedule


@dataclass(frozen=True)
class Span:
    """A pass in time, on one rank."""

    rank: int
    lane: Lane
    key: str
    begin_s: float
    """From the iteration's start."""
    end_s: float


@dataclass
class Simulation:
    """Ranks side by side.

    Args:
        schedules: of every rank. The collectives of all are the same, in the same order.
        times_s: of every rank, seconds by the number of the pass in its schedule; of a compute pass alone.
        transfers_s: seconds of each collective, in their order, with nothing beside it.
        slowdown: how much longer computing takes beside a transfer.
        rest_s: of every rank, seconds between the passes, at the end.
    """

    schedules: Sequence[Schedule]
    times_s: Sequence[Mapping[int, float]]
    transfers_s: Sequence[float]
    slowdown: float = 1.0
    rest_s: Sequence[float] = ()
    spans: list[Span] = field(default_factory=list)
    exposed_s: list[dict[str, float]] = field(default_factory=list)
    """Of every rank, seconds by key that it waits for a collective."""

    def run(self) -> float:
        """The seconds of the step, of the slowest rank."""
        ranks = range(len(self.schedules))
        self._now = [0.0 for _ in ranks]
        self.exposed_s = [{} for _ in ranks]
        self._busy: list[tuple[float, float]] = []
        """When the network is busy, in order."""
        self._ends: list[float] = []
        walks = [iter(steps.instructions) for steps in self.schedules]
        begun = [0 for _ in ranks]
        for transfer_s in self.transfers_s:
            for rank in ranks:
                begun[rank] = self._walk(rank, walks[rank])
            self._transfer(begun, transfer_s)
        for rank in ranks:
            self._walk(rank, walks[rank])
            if self.rest_s and self.rest_s[rank] > 0:
                self._compute(rank, "other", self.rest_s[rank])
        return max(self._now)

    def _walk(self, rank: int, instructions: object) -> int:
        """Run a rank up to its next collective; the number of that pass, -1 at the end of the step."""
        steps = self.schedules[rank]
        transfers = [number for number, each in enumerate(steps.passes) if each.lane == "network"]
        for instruction in instructions:  # type: ignore[attr-defined]
            assert isinstance(instruction, Instruction)
            if instruction.what == "start":
                return instruction.number
            key = steps.passes[instruction.number].key
            if instruction.what == "wait":
                self._wait(rank, key, self._ends[transfers.index(instruction.number)])
            else:
                self._compute(rank, key, self.times_s[rank].get(instruction.number, 0.0))
        return -1

    def _compute(self, rank: int, key: str, time_s: float) -> None:
        if time_s > 0:
            begin_s = self._now[rank]
            self._now[rank] = self._end(begin_s, time_s)
            self.spans.append(Span(rank, "compute", key, begin_s, self._now[rank]))

    def _end(self, begin_s: float, time_s: float) -> float:
        """Where computing ends that is slower beside a transfer."""
        now_s, left_s = begin_s, time_s
        for low, high in self._busy:
            if high <= now_s or low >= now_s + left_s:
                continue
            if low > now_s:
                left_s -= low - now_s
                now_s = low
            beside_s = min(left_s * self.slowdown, high - now_s)
            now_s += beside_s
            left_s -= beside_s / self.slowdown
        return now_s + left_s

    def _transfer(self, numbers: Sequence[int], time_s: float) -> None:
        """A collective begins when the last rank is there and the network is free."""
        begin_s = max(max(self._now), self._busy[-1][1] if self._busy else 0.0)
        end_s = begin_s + time_s
        self._ends.append(end_s)
        if time_s > 0:
            self._busy.append((begin_s, end_s))
            self.spans += [
                Span(rank, "network", self.schedules[rank].passes[number].key, begin_s, end_s) for rank, number in enumerate(numbers)
            ]

    def _wait(self, rank: int, key: str, end_s: float) -> None:
        waited_s = max(0.0, end_s - self._now[rank])
        self._now[rank] += waited_s
        self.exposed_s[rank][key] = self.exposed_s[rank].get(key, 0.0) + waited_s
