"""Fewer tables than fill the ranks evenly: what the slowest rank holds is split, as long as that makes the slowest rank faster.

A split costs all ranks together more (row-wise parts send whole pooled rows, column-wise parts repeat the look-ups), so it is tried, not
assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from autotune.plan.constraints import Freedom
from autotune.plan.cost import Item
from autotune.plan.parts import SPLITS, Division, Parts
from autotune.plan.search import assign

# Predictions are not as good as this: ranks that are so near to their mean are even.
_EVEN = 1.02
_LEAST_GAIN = 1e-6
# Work of all trials from one start, a second or two: items assigned, and swaps tried, which grow with their square. A thousand items are
# tried a few times, but so many are even from the start.
_TRIED_ITEMS = 40_000
_SWAPS = 200
# Tables of the slowest rank that are tried, the longest first.
_TABLES = 4

Divisions = dict[int, Division]


def assigned(
    parts: Parts, free_of: Mapping[int, Freedom], divisions: Divisions, room: float, **search: int
) -> list[tuple[Item, int]] | None:
    """Every item with its rank; None where no order found room. `search`: see `plan.search.assign`."""
    items = [item for t, division in divisions.items() for item in parts.of(free_of[t], division)]
    chosen = assign(items, [room] * parts.costs.ranks, **search)
    return None if chosen is None else list(zip(items, chosen, strict=True))


def even_out(parts: Parts, free_of: Mapping[int, Freedom], starts: Sequence[Divisions], room: float) -> Divisions:
    """Divisions, one of `starts` or a finer one, under which the slowest rank is fastest; the last start finds room.

    Steepest descent on the ranks' times, slowest first: where two ranks are equally slow, splitting what one of them holds is progress,
    although the slowest time stays.
    """
    best: _Trial | None = None
    for start in starts:
        found = _descend(parts, free_of, start, room)
        if found is not None and (best is None or found.loads[0] < best.loads[0] * (1.0 - _LEAST_GAIN)):
            best = found
    return starts[-1] if best is None else best.divisions


def _descend(parts: Parts, free_of: Mapping[int, Freedom], start: Divisions, room: float) -> _Trial | None:
    left = _TRIED_ITEMS
    best = now = _Trial.of(parts, free_of, start, room)
    while now is not None and best is not None and now.uneven:
        found: _Trial | None = None
        for finer in _finer_divisions(parts, free_of, now):
            items = sum(division.parts for division in finer.values())
            left -= items + items * items // _SWAPS
            if left < 0:
                return best
            trial = _Trial.of(parts, free_of, finer, room)
            if trial is not None and trial.faster(found or now):
                found = trial
        now = found
        if now is not None and now.loads[0] < best.loads[0] * (1.0 - _LEAST_GAIN):
            best = now
    return best


class _Trial:
    """Divisions with the times that they give."""

    def __init__(self, divisions: Divisions, placed: list[tuple[Item, int]], ranks: int) -> None:
        self.divisions, self.placed = divisions, placed
        self.times = [0.0] * ranks
        for item, rank in placed:
            self.times[rank] += item.time_s
        self.loads = sorted(self.times, reverse=True)

    @staticmethod
    def of(parts: Parts, free_of: Mapping[int, Freedom], divisions: Divisions, room: float) -> _Trial | None:
        placed = assigned(parts, free_of, divisions, room, most_nodes=0)
        return None if placed is None else _Trial(divisions, placed, parts.costs.ranks)

    @property
    def uneven(self) -> bool:
        return self.loads[0] > _EVEN * sum(self.loads) / len(self.loads)

    def faster(self, other: _Trial) -> bool:
        for mine, its in zip(self.loads, other.loads, strict=True):
            if abs(mine - its) > _LEAST_GAIN * other.loads[0]:
                return mine < its
        return False


def _finer_divisions(parts: Parts, free_of: Mapping[int, Freedom], trial: _Trial) -> Iterator[Divisions]:
    """One table of the slowest rank in more parts: 2, 3, 4, 6, 8, 12 ... and as many as can be."""
    slowest = trial.times.index(trial.loads[0])
    held = sorted((item for item, rank in trial.placed if rank == slowest), key=lambda item: -item.time_s)
    for item in held[:_TABLES]:
        freedom, now = free_of[item.table], trial.divisions[item.table]
        for kind in SPLITS:
            most = freedom.most[kind] if kind in freedom.kinds else 0
            counts = {count for i in range(most.bit_length()) for count in (2 << i, 3 << i) if count < most}
            for count in sorted(counts | {most}):
                if count > 1 and Division(kind, count) != now and count >= now.parts:
                    yield {**trial.divisions, item.table: Division(kind, count)}
