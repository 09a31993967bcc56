"""Fewer tables than fill the ranks evenly: what the slowest rank holds is split, as long as that makes the slowest rank faster.

A split costs all ranks together more (row-wise parts send whole pooled rows, column-wise parts repeat the look-ups), so it is tried, not
assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autotune.planning.constraints import AllowedSharding
from autotune.planning.cost import Shard
from autotune.planning.options import SPLITS, ShardingOption, Shards
from autotune.planning.search import assign

# Predictions are not as good as this: ranks that are so near to their mean are even.
_EVEN = 1.02
_LEAST_GAIN = 1e-6
# Work of all trials from one start, a second or two: shards assigned, and swaps tried, which grow with their square. A thousand shards are
# tried a few times, but so many are even from the start.
_TRIED_SHARDS = 40_000
_SWAPS = 200
# Tables of the slowest rank that are tried, the longest first.
_TABLES = 4

Options = dict[int, ShardingOption]
"""The option of every table, by the first of those that stay together."""


@dataclass(frozen=True)
class Balancer:
    """Places tables on ranks that each have room for `room` bytes of them."""

    shards: Shards
    allowed: Mapping[int, AllowedSharding]
    """By first table."""
    room: float

    def assigned(self, options: Options, **search: int) -> list[tuple[Shard, int]] | None:
        """Every shard with its rank; None where no order found room. `search`: see `planning.search.assign`."""
        shards = [shard for t, option in options.items() for shard in self.shards.of(self.allowed[t], option)]
        ranks = assign(shards, [self.room] * self.shards.costs.ranks, **search)
        return None if ranks is None else list(zip(shards, ranks, strict=True))

    def even_out(self, starts: Sequence[Options]) -> Options:
        """Options, those of `starts` or finer ones, under which the slowest rank is fastest; the last start finds room.

        Steepest descent on the ranks' times, slowest first: where two ranks are equally slow, splitting what one of them holds is
        progress, although the slowest time stays.
        """
        best: _Trial | None = None
        for start in starts:
            trial = self._descend(start)
            if trial is not None and (best is None or trial.loads[0] < best.loads[0] * (1.0 - _LEAST_GAIN)):
                best = trial
        return starts[-1] if best is None else best.options

    def _descend(self, start: Options) -> _Trial | None:
        left = _TRIED_SHARDS
        best = now = self._trial(start)
        while now is not None and best is not None and now.uneven:
            fastest: _Trial | None = None
            for options in self._finer(now):
                count = sum(option.shards for option in options.values())
                left -= count + count * count // _SWAPS
                if left < 0:
                    return best
                trial = self._trial(options)
                if trial is not None and trial.faster(fastest or now):
                    fastest = trial
            now = fastest
            if now is not None and now.loads[0] < best.loads[0] * (1.0 - _LEAST_GAIN):
                best = now
        return best

    def _trial(self, options: Options) -> _Trial | None:
        placed = self.assigned(options, most_nodes=0)
        return None if placed is None else _Trial(options, placed, self.shards.costs.ranks)

    def _finer(self, trial: _Trial) -> Iterator[Options]:
        """One table of the slowest rank in more shards: 2, 3, 4, 6, 8, 12 ... and as many as can be."""
        slowest = trial.times.index(trial.loads[0])
        held = sorted((shard for shard, rank in trial.placed if rank == slowest), key=lambda shard: -shard.time_s)
        for shard in held[:_TABLES]:
            allowed, now = self.allowed[shard.table], trial.options[shard.table]
            for kind in SPLITS:
                most = allowed.most[kind] if kind in allowed.kinds else 0
                counts = {count for i in range(most.bit_length()) for count in (2 << i, 3 << i) if count < most}
                for count in sorted(counts | {most}):
                    if count > 1 and ShardingOption(kind, count) != now and count >= now.shards:
                        yield {**trial.options, shard.table: ShardingOption(kind, count)}


class _Trial:
    """Options with the times that they give."""

    def __init__(self, options: Options, placed: list[tuple[Shard, int]], ranks: int) -> None:
        self.options, self.placed = options, placed
        self.times = [0.0] * ranks
        for shard, rank in placed:
            self.times[rank] += shard.time_s
        self.loads = sorted(self.times, reverse=True)

    @property
    def uneven(self) -> bool:
        return self.loads[0] > _EVEN * sum(self.loads) / len(self.loads)

    def faster(self, other: _Trial) -> bool:
        for load, before in zip(self.loads, other.loads, strict=True):
            if abs(load - before) > _LEAST_GAIN * other.loads[0]:
                return load < before
        return False
