"""Shards onto ranks so that the slowest rank is as fast as can be: longest first, then local search; exact for few shards."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

from autotune.planning.cost import Shard

_EXACT_SHARDS = 12
_EXACT_NODES = 200_000
# Where no greedy order finds room: few shards are searched this far before they are split further.
_ROOM_NODES = 20_000
_MAX_STEPS = 2000
_LEAST_GAIN = 1e-9
# Exchanges end this near the mean load, which nothing beats: predictions are not as good as that.
_CLOSE = 1e-3


def assign(shards: Sequence[Shard], free_bytes: Sequence[float], *, most_nodes: int = _EXACT_NODES) -> list[int] | None:
    """The rank of every shard, one that it may use; two parts of one table never share a rank.

    Greedy: shards bound to one rank, then longest time first to the rank with the least; where memory runs out, largest first instead,
    then those with the fewest ranks first to the rank with most room. Then shards move off, or swap with others of, the slowest rank for as
    long as that helps. Up to 12 shards are searched by branch and bound from there.

    Args:
        free_bytes: memory of each rank.
        most_nodes: of the branch and bound; 0 leaves it out where an order found room.

    Returns:
        None where no order found room.
    """
    few = len(shards) <= _EXACT_SHARDS
    ranks = _any_order(shards, free_bytes)
    if ranks is None:
        return _exact(shards, free_bytes, None, _ROOM_NODES) if few else None
    ranks = _improve(shards, free_bytes, ranks)
    return _exact(shards, free_bytes, ranks, most_nodes) if few and most_nodes else ranks


def _any_order(shards: Sequence[Shard], free_bytes: Sequence[float]) -> list[int] | None:
    def ranks_of(shard: Shard) -> int:
        return len(free_bytes) if shard.ranks is None else len(shard.ranks)

    orders: tuple[tuple[Callable[[Shard], tuple[float, ...]], bool], ...] = (
        (lambda shard: (ranks_of(shard) > 1, -shard.time_s, shard.table), False),
        (lambda shard: (ranks_of(shard) > 1, -shard.memory_bytes, shard.table), False),
        (lambda shard: (ranks_of(shard), -shard.memory_bytes, shard.table), True),
    )
    for key, roomiest in orders:
        order = sorted(range(len(shards)), key=lambda i, key=key: key(shards[i]))  # type: ignore[misc]
        ranks = _greedy(shards, free_bytes, order, roomiest=roomiest)
        if ranks is not None:
            return ranks
    return None


def _greedy(shards: Sequence[Shard], free_bytes: Sequence[float], order: Sequence[int], *, roomiest: bool) -> list[int] | None:
    """Each shard in turn to the rank with the least load, or with the most room, among those that it may use and that have room."""

    def state(rank: int) -> tuple[float, float, int]:
        return (-free[rank], loads[rank], rank) if roomiest else (loads[rank], -free[rank], rank)

    loads, free, taken = [0.0] * len(free_bytes), list(free_bytes), [set[int]() for _ in free_bytes]
    ranks, heap = [-1] * len(shards), [state(rank) for rank in range(len(free_bytes))]
    heapq.heapify(heap)
    for i in order:
        shard, passed, rank = shards[i], [], -1
        while heap:
            best = heapq.heappop(heap)
            rank = best[2]
            if free[rank] >= shard.memory_bytes and shard.table not in taken[rank] and shard.may_use(rank):
                break
            passed.append(best)
        else:
            return None
        ranks[i] = rank
        loads[rank] += shard.time_s
        free[rank] -= shard.memory_bytes
        taken[rank].add(shard.table)
        for entry in (*passed, state(rank)):
            heapq.heappush(heap, entry)
    return ranks


def _improve(shards: Sequence[Shard], free_bytes: Sequence[float], ranks: list[int]) -> list[int]:
    ranks, count = list(ranks), len(free_bytes)
    loads, free = [0.0] * count, list(free_bytes)
    held: list[set[int]] = [set() for _ in range(count)]
    tables: list[set[int]] = [set() for _ in range(count)]
    for i, rank in enumerate(ranks):
        loads[rank] += shards[i].time_s
        free[rank] -= shards[i].memory_bytes
        held[rank].add(i)
        tables[rank].add(shards[i].table)

    def move(i: int, rank: int) -> None:
        before, shard = ranks[i], shards[i]
        loads[before] -= shard.time_s
        free[before] += shard.memory_bytes
        held[before].discard(i)
        tables[before].discard(shard.table)
        loads[rank] += shard.time_s
        free[rank] -= shard.memory_bytes
        held[rank].add(i)
        tables[rank].add(shard.table)
        ranks[i] = rank

    mean = sum(loads) / count
    for _ in range(_MAX_STEPS):
        by_load = sorted(range(count), key=loads.__getitem__)
        slow = by_load.pop()
        if loads[slow] <= mean * (1.0 + _CLOSE):
            break
        best: tuple[float, int, int, int] | None = None
        for i in sorted(held[slow]):
            for rank in by_load:
                # At best the two ranks end even.
                if best is not None and loads[slow] + loads[rank] >= 2 * best[0]:
                    break
                if shards[i].table in tables[rank] or not shards[i].may_use(rank):
                    continue
                for j in (-1, *sorted(held[rank])):
                    gone = shards[j] if j >= 0 else None
                    if gone is not None and (gone.table in tables[slow] or gone.time_s >= shards[i].time_s or not gone.may_use(slow)):
                        continue
                    back_s, back_bytes = (gone.time_s, gone.memory_bytes) if gone else (0.0, 0)
                    change = shards[i].memory_bytes - back_bytes
                    if change > free[rank] or -change > free[slow]:
                        continue
                    after = max(loads[slow] - shards[i].time_s + back_s, loads[rank] + shards[i].time_s - back_s)
                    if best is None or after < best[0]:
                        best = (after, i, rank, j)
        if best is None or best[0] >= loads[slow] * (1.0 - _LEAST_GAIN):
            break
        _, i, rank, j = best
        if j >= 0:
            move(j, slow)
        move(i, rank)
    return ranks


def _exact(shards: Sequence[Shard], free_bytes: Sequence[float], start: list[int] | None, most_nodes: int) -> list[int] | None:
    """Branch and bound, longest first, empty equal ranks tried once; keeps the best found within its nodes, None where there is none."""
    count = len(free_bytes)
    order = sorted(range(len(shards)), key=lambda i: -shards[i].time_s)
    total = sum(shard.time_s for shard in shards)
    bound = [shard.ranks for shard in shards if shard.ranks is not None]
    # Ranks are equal only if the same shards may use them.
    users = [tuple(rank in among for among in bound) for rank in range(count)]
    loads = [0.0] * count
    for i, rank in enumerate(start or ()):
        loads[rank] += shards[i].time_s
    best, best_s, nodes = start, max(loads) if start is not None else math.inf, 0
    ranks, loads, free = [-1] * len(shards), [0.0] * count, list(free_bytes)
    tables: list[set[int]] = [set() for _ in range(count)]

    def descend(depth: int) -> None:
        nonlocal best, best_s, nodes
        nodes += 1
        if nodes > most_nodes or best_s <= total / count * (1.0 + _LEAST_GAIN):
            return
        if depth == len(order):
            best, best_s = list(ranks), max(loads)
            return
        i = order[depth]
        shard, seen = shards[i], set()
        for rank in sorted(range(count), key=loads.__getitem__):
            state = (loads[rank], free[rank], users[rank])
            full = shard.table in tables[rank] or free[rank] < shard.memory_bytes or not shard.may_use(rank)
            if full or loads[rank] + shard.time_s >= best_s * (1.0 - _LEAST_GAIN) or (state in seen and not tables[rank]):
                continue
            seen.add(state)
            ranks[i] = rank
            loads[rank] += shard.time_s
            free[rank] -= shard.memory_bytes
            tables[rank].add(shard.table)
            descend(depth + 1)
            loads[rank] = state[0]
            free[rank] = state[1]
            tables[rank].discard(shard.table)

    descend(0)
    return best
