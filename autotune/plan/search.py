"""Items onto ranks so that the slowest rank is as fast as can be: longest first, then local search; exact for few items."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.plan.cost import Item

_EXACT_ITEMS = 12
_EXACT_NODES = 200_000
_MAX_STEPS = 2000
_LEAST_GAIN = 1e-9


def assign(items: Sequence[Item], free_bytes: Sequence[float]) -> list[int] | None:
    """The rank of every item; two parts of one table never share a rank.

    Greedy: longest time first to the rank with the least; where memory runs out, largest first instead. Then items move off, or swap
    with others of, the slowest rank for as long as that helps. Up to 12 items are searched by branch and bound from there.

    Args:
        free_bytes: memory of each rank.

    Returns:
        None where no order found room.
    """
    by_time = sorted(range(len(items)), key=lambda i: (-items[i].time_s, items[i].table))
    found = _greedy(items, free_bytes, by_time)
    if found is None:
        by_memory = sorted(range(len(items)), key=lambda i: (-items[i].memory_bytes, items[i].table))
        found = _greedy(items, free_bytes, by_memory)
    if found is None:
        return None
    found = _improve(items, free_bytes, found)
    return _exact(items, free_bytes, found) if len(items) <= _EXACT_ITEMS else found


def _greedy(items: Sequence[Item], free_bytes: Sequence[float], order: Sequence[int]) -> list[int] | None:
    loads, free, taken = [0.0] * len(free_bytes), list(free_bytes), [set[int]() for _ in free_bytes]
    ranks = [-1] * len(items)
    for i in order:
        item = items[i]
        fits = [r for r in range(len(free)) if free[r] >= item.memory_bytes and item.table not in taken[r]]
        if not fits:
            return None
        rank = min(fits, key=lambda r: (loads[r], -free[r]))
        ranks[i] = rank
        loads[rank] += item.time_s
        free[rank] -= item.memory_bytes
        taken[rank].add(item.table)
    return ranks


def _improve(items: Sequence[Item], free_bytes: Sequence[float], ranks: list[int]) -> list[int]:
    ranks, count = list(ranks), len(free_bytes)
    loads, free = [0.0] * count, list(free_bytes)
    held: list[set[int]] = [set() for _ in range(count)]
    tables: list[set[int]] = [set() for _ in range(count)]
    for i, rank in enumerate(ranks):
        loads[rank] += items[i].time_s
        free[rank] -= items[i].memory_bytes
        held[rank].add(i)
        tables[rank].add(items[i].table)

    def move(i: int, rank: int) -> None:
        before, item = ranks[i], items[i]
        loads[before] -= item.time_s
        free[before] += item.memory_bytes
        held[before].discard(i)
        tables[before].discard(item.table)
        loads[rank] += item.time_s
        free[rank] -= item.memory_bytes
        held[rank].add(i)
        tables[rank].add(item.table)
        ranks[i] = rank

    for _ in range(_MAX_STEPS):
        slow = max(range(count), key=loads.__getitem__)
        best: tuple[float, int, int, int] | None = None
        for i in sorted(held[slow]):
            for rank in range(count):
                if rank == slow or items[i].table in tables[rank]:
                    continue
                for j in (-1, *sorted(held[rank])):
                    gone = items[j] if j >= 0 else None
                    if gone is not None and (gone.table in tables[slow] or gone.time_s >= items[i].time_s):
                        continue
                    back_s, back_bytes = (gone.time_s, gone.memory_bytes) if gone else (0.0, 0)
                    change = items[i].memory_bytes - back_bytes
                    if change > free[rank] or -change > free[slow]:
                        continue
                    after = max(loads[slow] - items[i].time_s + back_s, loads[rank] + items[i].time_s - back_s)
                    if best is None or after < best[0]:
                        best = (after, i, rank, j)
        if best is None or best[0] >= loads[slow] * (1.0 - _LEAST_GAIN):
            break
        _, i, rank, j = best
        if j >= 0:
            move(j, slow)
        move(i, rank)
    return ranks


def _exact(items: Sequence[Item], free_bytes: Sequence[float], start: list[int]) -> list[int]:
    """Branch and bound, longest first, empty equal ranks tried once; keeps the best found within its nodes."""
    count = len(free_bytes)
    order = sorted(range(len(items)), key=lambda i: -items[i].time_s)
    total = sum(item.time_s for item in items)
    loads = [0.0] * count
    for i, rank in enumerate(start):
        loads[rank] += items[i].time_s
    best, best_s, nodes = list(start), max(loads), 0
    ranks, loads, free = [-1] * len(items), [0.0] * count, list(free_bytes)
    tables: list[set[int]] = [set() for _ in range(count)]

    def descend(depth: int) -> None:
        nonlocal best, best_s, nodes
        nodes += 1
        if nodes > _EXACT_NODES or best_s <= total / count * (1.0 + _LEAST_GAIN):
            return
        if depth == len(order):
            best, best_s = list(ranks), max(loads)
            return
        i = order[depth]
        item, seen = items[i], set()
        for rank in sorted(range(count), key=loads.__getitem__):
            state = (loads[rank], free[rank])
            full = item.table in tables[rank] or free[rank] < item.memory_bytes
            if full or loads[rank] + item.time_s >= best_s * (1.0 - _LEAST_GAIN) or (state in seen and not tables[rank]):
                continue
            seen.add(state)
            ranks[i] = rank
            loads[rank] += item.time_s
            free[rank] -= item.memory_bytes
            tables[rank].add(item.table)
            descend(depth + 1)
            loads[rank] = state[0]
            free[rank] = state[1]
            tables[rank].discard(item.table)

    descend(0)
    return best
