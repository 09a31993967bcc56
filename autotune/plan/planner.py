"""Where every table of a model goes on a number of sockets: the slowest rank as fast as can be, within every rank's memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autotune.config.model import Model
from autotune.config.partition import Partition, Placement
from autotune.config.profile import Ceilings
from autotune.errors import InputError, MachineError
from autotune.plan.cost import Costs, Item
from autotune.plan.search import assign
from autotune.units import format_bytes

# A table heavier than what a rank does on average is split, or it would rule the iteration; but every part sends whole pooled rows. Parts
# that together cost more than this against the whole table would slow the other ranks for little.
_SPLIT_COST = 1.5
# Copies of replicated tables may take this share of a rank's memory.
_COPIES_SHARE = 0.1


@dataclass(frozen=True)
class RankLoad:
    """What one rank holds and is predicted to take for the tables, per iteration."""

    rank: int
    tables: tuple[int, ...]
    """Whole tables and parts, replicated ones left out."""
    memory_bytes: int
    """Of tables and copies."""
    time_s: float


@dataclass(frozen=True)
class Plan:
    """A partition with what it is predicted to give."""

    model: str
    minibatch: int
    """Global."""
    partition: Partition
    ranks: tuple[RankLoad, ...]
    memory_per_rank_bytes: float | None
    """The limit that was kept."""
    notes: tuple[str, ...]

    @property
    def slowest_s(self) -> float:
        return max(rank.time_s for rank in self.ranks)

    @property
    def imbalance(self) -> float:
        """Slowest rank over the mean of all, 1 at best."""
        mean = sum(rank.time_s for rank in self.ranks) / len(self.ranks)
        return self.slowest_s / mean if mean else 1.0


def plan(
    model: Model,
    ranks: int,
    *,
    ceilings: Ceilings | None = None,
    threads: int = 1,
    memory_per_rank_bytes: float | None = None,
    network_bytes_per_s: float | None = None,
) -> Plan:
    """Place every table.

    Replicated where that costs all ranks together less than one owner; split by rows where a table exceeds a rank's memory or its fair
    share of the time; whole otherwise.

    Args:
        model: with the global minibatch.
        ranks: one a socket.
        ceilings: measured gather and scatter bandwidths of a socket; None assumes one bandwidth.
        threads: of a rank.
        memory_per_rank_bytes: for tables; None sets no limit.
        network_bytes_per_s: that one rank sends; None assumes one.

    Raises:
        InputError: ranks below 1.
        MachineError: the tables do not fit; says by how much.
    """
    if ranks < 1:
        raise InputError(f"sockets must be 1 or more, got {ranks}; write --sockets 1")
    costs = Costs(model, ranks, ceilings, threads, network_bytes_per_s)
    limit = math.inf if memory_per_rank_bytes is None else memory_per_rank_bytes
    _check_total(model, ranks, limit)
    whole = [costs.item(t, (0, table.rows)) for t, table in enumerate(model.tables)]
    copies = _copies(costs, whole, ranks, limit)
    copied_bytes = sum(whole[t].memory_bytes for t in copies)
    free = [limit - copied_bytes] * ranks
    placed = [item for item in whole if item.table not in copies]
    fair_s = sum(item.time_s for item in placed) / ranks
    parts = {item.table: _parts(costs, item, fair_s, free[0]) for item in placed}
    while True:
        items = [part for t, count in parts.items() for part in _split(costs, t, count)]
        chosen = assign(items, free)
        if chosen is not None:
            break
        # Smaller parts find room: the largest part left is halved.
        splittable = [item for item in items if parts[item.table] < min(ranks, model.tables[item.table].rows)]
        if not splittable:
            raise _no_room(model, ranks, limit, copied_bytes, sum(item.memory_bytes for item in items))
        largest = max(splittable, key=lambda item: item.memory_bytes)
        parts[largest.table] = min(ranks, model.tables[largest.table].rows, 2 * parts[largest.table])
    return _result(costs, items, chosen, copies, memory_per_rank_bytes)


def _check_total(model: Model, ranks: int, limit: float) -> None:
    total = sum(table.size_bytes for table in model.tables)
    if total > ranks * limit:
        raise _no_room(model, ranks, limit, 0, total)


def _no_room(model: Model, ranks: int, limit: float, copied_bytes: int, needed: int) -> MachineError:
    room = ranks * (limit - copied_bytes)
    shortfall = max(needed - room, 0)
    missing = f"{format_bytes(shortfall)} short" if shortfall else "no order of the parts fits"
    least = math.ceil(sum(table.size_bytes for table in model.tables) / limit)
    return MachineError(
        f"the tables of model {model.name} must fit the sockets' memory, got {format_bytes(needed)} for {ranks} x {format_bytes(limit)}: "
        f"{missing}; take {max(least, ranks + 1)} sockets or more, or raise --memory-per-socket"
    )


def _copies(costs: Costs, whole: list[Item], ranks: int, limit: float) -> set[int]:
    """Tables that are cheaper in copies, the smallest first, while they take little memory."""
    chosen: set[int] = set()
    used = 0
    for item in sorted(whole, key=lambda item: item.memory_bytes):
        if used + item.memory_bytes > _COPIES_SHARE * limit:
            break
        if ranks > 1 and costs.replicated_s(item.table) * ranks < item.time_s:
            chosen.add(item.table)
            used += item.memory_bytes
    total = sum(item.memory_bytes for item in whole if item.table not in chosen)
    return chosen if total <= ranks * (limit - used) else set()


def _parts(costs: Costs, item: Item, fair_s: float, free_bytes: float) -> int:
    """As many as memory asks for; more for the time, as long as what all parts exchange does not eat up the gain."""
    most = min(costs.ranks, item.rows[1])
    by_memory = math.ceil(item.memory_bytes / free_bytes) if math.isfinite(free_bytes) and free_bytes > 0 else 1
    by_time = min(most, math.ceil(item.time_s / fair_s)) if fair_s else 1
    while by_time > 1 and sum(part.time_s for part in _split(costs, item.table, by_time)) > _SPLIT_COST * item.time_s:
        by_time //= 2
    return max(1, min(most, max(by_time, by_memory)))


def _split(costs: Costs, t: int, count: int) -> list[Item]:
    rows = costs.model.tables[t].rows
    return [costs.item(t, (rows * i // count, rows * (i + 1) // count)) for i in range(count)]


def _result(costs: Costs, items: list[Item], chosen: list[int], copies: set[int], memory: float | None) -> Plan:
    model, ranks = costs.model, costs.ranks
    owners: dict[int, list[tuple[Item, int]]] = {}
    for item, rank in zip(items, chosen, strict=True):
        owners.setdefault(item.table, []).append((item, rank))
    placements = []
    for t in range(model.num_tables):
        if t in copies:
            placements.append(Placement(kind="replicated"))
            continue
        held = sorted(owners[t], key=lambda pair: pair[0].rows)
        of_rank = tuple(rank for _, rank in held)
        bounds = (0, *(item.rows[1] for item, _ in held)) if len(held) > 1 else ()
        placements.append(Placement(kind="row_wise" if bounds else "table_wise", ranks=of_rank, bounds=bounds))
    copied_s = sum(costs.replicated_s(t) for t in copies)
    copied_bytes = sum(model.tables[t].size_bytes for t in copies)
    loads = []
    for rank in range(ranks):
        mine = [item for item, owner in zip(items, chosen, strict=True) if owner == rank]
        loads.append(
            RankLoad(
                rank=rank,
                tables=tuple(sorted(item.table for item in mine)),
                memory_bytes=copied_bytes + sum(item.memory_bytes for item in mine),
                time_s=copied_s + sum(item.time_s for item in mine),
            )
        )
    notes: tuple[str, ...] = () if costs.ceilings else ("no profile given: bandwidths are assumed, so times compare with each other only",)
    if costs.network_bytes_per_s is None:
        notes += ("the network's bandwidth is assumed",)
    return Plan(model.name, model.minibatch, Partition(ranks=ranks, tables=tuple(placements)), tuple(loads), memory, notes)
