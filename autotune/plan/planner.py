"""Where every table of a model goes on a number of sockets: the slowest rank as fast as can be, within every rank's memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from autotune.config.model import Model
from autotune.config.partition import Kind, Partition, Placement
from autotune.config.profile import Ceilings
from autotune.errors import InputError, MachineError
from autotune.plan.balance import assigned, even_out
from autotune.plan.constraints import Constraints, Freedom, resolve
from autotune.plan.cost import Costs, Item
from autotune.plan.parts import SPLITS, Division, Parts
from autotune.plan.reuse import Reuse
from autotune.units import format_bytes

# A table heavier than what a rank does on average is split, or it would rule the iteration; but row-wise parts send whole pooled rows, and
# column-wise parts repeat the look-ups. Parts that cost more together than this against the whole would slow the other ranks for little.
_SPLIT_COST = 1.5
# Copies of replicated tables may take this share of a rank's memory.
_COPIES_SHARE = 0.1
# Options named in one message.
_NAMED_OPTIONS = 3


@dataclass(frozen=True)
class RankLoad:
    """What one rank holds and is predicted to take for the tables, per iteration."""

    rank: int
    tables: tuple[int, ...]
    """Whole tables and parts, replicated ones left out."""
    memory_bytes: int
    """Of tables, copies, and their optimizer state."""
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
    constraints: Constraints = field(default_factory=Constraints)
    """What was demanded, and is kept."""

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
    optimizer_state_bytes_per_row: int = 0,
    constraints: Constraints | None = None,
    reuse: tuple[Reuse, ...] | None = None,
) -> Plan:
    """Place every table.

    Replicated where that costs all ranks together less than one owner; split by rows or by columns, whichever leaves the slowest rank
    faster, where a table exceeds a rank's memory or its fair share of the time; whole otherwise.

    Args:
        model: with the global minibatch.
        ranks: one a socket.
        ceilings: measured gather and scatter bandwidths of a socket; None assumes one bandwidth.
        threads: of a rank.
        memory_per_rank_bytes: for tables; None sets no limit.
        network_bytes_per_s: that one rank sends; None assumes one.
        optimizer_state_bytes_per_row: kept beside every row of a table; plain SGD keeps none.
        constraints: what the plan must keep; None demands nothing.
        reuse: of the model's data (`plan.reuse.observed`); None takes what only a file knows as uniform.

    Raises:
        InputError: ranks below 1; constraints that contradict each other or that the memory cannot keep.
        MachineError: the tables do not fit; says by how much.
    """
    if ranks < 1:
        raise InputError(f"sockets must be 1 or more, got {ranks}; write --sockets 1")
    if optimizer_state_bytes_per_row < 0:
        raise InputError(f"optimizer state per row must not be negative, got {optimizer_state_bytes_per_row}; give bytes, 0 for SGD")
    constraints = constraints or Constraints()
    freedoms = resolve(constraints, model, ranks)
    parts = Parts(Costs(model, ranks, ceilings, threads, network_bytes_per_s, optimizer_state_bytes_per_row, reuse))
    limit = math.inf if memory_per_rank_bytes is None else memory_per_rank_bytes
    needed = sum(parts.whole(freedom).memory_bytes for freedom in freedoms)
    if needed > ranks * limit:
        raise _no_room(model, ranks, limit, needed, constraints)
    forced = {freedom.tables[0] for freedom in freedoms if freedom.kinds == ("replicated",)}
    _check_constrained(parts, freedoms, forced, limit, constraints)
    for copies in (_copies(parts, freedoms, forced, limit), forced):
        copied = sum(parts.whole(freedom).memory_bytes for freedom in freedoms if freedom.tables[0] in copies)
        placed = _place(parts, [freedom for freedom in freedoms if freedom.tables[0] not in copies], limit - copied)
        if placed is not None:
            return _result(parts, placed, copies, copied, memory_per_rank_bytes, constraints)
    copied = sum(model.tables[t].size_bytes for t in forced)
    raise _no_room(model, ranks, limit, needed + (ranks - 1) * copied, constraints)


def _no_room(model: Model, ranks: int, limit: float, needed: int, constraints: Constraints) -> MachineError:
    shortfall = max(needed - ranks * limit, 0)
    missing = f"{format_bytes(shortfall)} short" if shortfall else "no order of the parts fits"
    under = f" with {', '.join(constraints.words)}" if constraints.words and not shortfall else ""
    least = math.ceil(needed / limit) if limit else 0
    return MachineError(
        f"the tables of model {model.name} must fit the sockets' memory, got {format_bytes(needed)} for {ranks} x {format_bytes(limit)}: "
        f"{missing}{under}; take {max(least, ranks + 1)} sockets or more, or raise --memory-per-socket{', or demand less' if under else ''}"
    )


def _check_constrained(parts: Parts, freedoms: Sequence[Freedom], forced: set[int], limit: float, constraints: Constraints) -> None:
    """Raises: InputError: copies, pinned tables or a table that may not be split ask for more than a rank has."""
    copied = sum(parts.whole(freedom).memory_bytes for freedom in freedoms if freedom.tables[0] in forced)
    room = limit - copied
    if room < 0:
        rule = "tables that may only be replicated must fit every socket's memory"
        got = f"{format_bytes(copied)} for {format_bytes(limit)} (--kinds {','.join(constraints.kinds)})"
        raise InputError(f"{rule}, got {got}; add table_wise to --kinds, or raise --memory-per-socket")
    bound: dict[int, list[Freedom]] = {}
    for freedom in freedoms:
        if freedom.tables[0] in forced:
            continue
        size = parts.whole(freedom).memory_bytes
        if freedom.whole_by and size > room:
            got = f"{format_bytes(size)} for {format_bytes(room)} ({freedom.name}: {freedom.whole_by})"
            rule = "tables that must stay whole must fit a socket's memory"
            raise InputError(f"{rule}, got {got}; let them be split, or raise --memory-per-socket")
        if freedom.ranks is not None and len(freedom.ranks) == 1:
            bound.setdefault(min(freedom.ranks), []).append(freedom)
    for rank, held in bound.items():
        size = sum(parts.whole(freedom).memory_bytes for freedom in held)
        if size > room:
            told = [freedom.place for freedom in held]
            place = ", ".join([*told[:_NAMED_OPTIONS], *(["..."] if len(told) > _NAMED_OPTIONS else [])])
            got = f"{format_bytes(size)} on rank {rank} for {format_bytes(room)} ({place})"
            raise InputError(f"tables bound to one rank must fit its memory, got {got}; bind fewer to it, or raise --memory-per-socket")


def _copies(parts: Parts, freedoms: Sequence[Freedom], forced: set[int], limit: float) -> set[int]:
    """Tables that are cheaper in copies, the smallest first, while they take little memory; with those that can be nothing else."""
    costs, chosen = parts.costs, set(forced)
    whole = [(freedom, parts.whole(freedom)) for freedom in freedoms]
    used = sum(item.memory_bytes for _, item in whole if item.table in forced)
    able = [item for freedom, item in whole if "replicated" in freedom.kinds and item.table not in forced]
    for item in sorted(able, key=lambda item: item.memory_bytes):
        if used + item.memory_bytes > _COPIES_SHARE * limit:
            break
        if costs.ranks > 1 and costs.replicated_s(item.table) * costs.ranks < item.time_s:
            chosen.add(item.table)
            used += item.memory_bytes
    total = sum(item.memory_bytes for _, item in whole if item.table not in chosen)
    return chosen if total <= costs.ranks * (limit - used) else forced


def _place(parts: Parts, freedoms: Sequence[Freedom], room: float) -> list[tuple[Division, Item, int]] | None:
    """Items with how their table is divided and their rank; None where they do not fit."""
    total_s = sum(parts.whole(freedom).time_s for freedom in freedoms)
    free_of = {freedom.tables[0]: freedom for freedom in freedoms}
    divisions = {t: _divide(parts, freedom, total_s, room) for t, freedom in free_of.items()}
    while True:
        chosen = assigned(parts, free_of, divisions, room)
        if chosen is not None:
            break
        # Smaller parts find room: the largest part that can be is halved.
        for t in sorted(divisions, key=lambda t: -_largest(parts.of(free_of[t], divisions[t]))):
            finer = _finer(parts, free_of[t], divisions[t])
            if finer is not None:
                divisions[t] = finer
                break
        else:
            return None
    # Few light tables may be best left whole: both ends are tried.
    whole = {t: Division("table_wise", 1) if _may_be_whole(parts, freedom, room) else divisions[t] for t, freedom in free_of.items()}
    divisions = even_out(parts, free_of, [whole, divisions], room)
    placed = assigned(parts, free_of, divisions, room)
    assert placed is not None
    return [(divisions[item.table], item, rank) for item, rank in placed]


def _may_be_whole(parts: Parts, freedom: Freedom, room: float) -> bool:
    return "table_wise" in freedom.kinds and parts.whole(freedom).memory_bytes <= room


def _largest(items: Iterable[Item]) -> int:
    return max(item.memory_bytes for item in items)


def _divide(parts: Parts, freedom: Freedom, total_s: float, room: float) -> Division:
    """What leaves the slowest rank fastest: ruled by the largest part, or by the mean with all that a split adds.

    A split is into as many parts as the fair share of the time asks for, or half of them and so on, or as memory asks for.
    """
    whole, ranks = parts.whole(freedom), parts.costs.ranks
    may_be_whole = "table_wise" in freedom.kinds
    options = [Division("table_wise", 1)] if may_be_whole else []
    for kind in SPLITS:
        if kind not in freedom.kinds:
            continue
        most = freedom.most[kind]
        count = min(most, math.ceil(whole.time_s * ranks / total_s)) if total_s else 1
        while count > 1:
            division = Division(kind, count)
            if sum(part.time_s for part in parts.of(freedom, division)) <= _SPLIT_COST * whole.time_s:
                options.append(division)
            count //= 2
        if whole.memory_bytes > room:
            options.append(Division(kind, _count_for(parts, freedom, kind, room)))
        elif not may_be_whole:
            options.append(Division(kind, 2))

    def rank_of(division: Division) -> tuple[bool, float, float]:
        items = parts.of(freedom, division)
        sum_s = sum(item.time_s for item in items)
        slowest_s = max(max(item.time_s for item in items), (total_s - whole.time_s + sum_s) / ranks)
        return _largest(items) > room, slowest_s, sum_s

    return min(options, key=rank_of)


def _count_for(parts: Parts, freedom: Freedom, kind: Kind, room: float) -> int:
    """The fewest parts, two at least, that fit a rank each; the most there can be where none do."""
    most = freedom.most[kind]
    if room <= 0:
        return most
    counts = range(min(most, max(2, math.floor(parts.whole(freedom).memory_bytes / room))), most)
    return next((count for count in counts if _largest(parts.of(freedom, Division(kind, count))) <= room), most)


def _finer(parts: Parts, freedom: Freedom, division: Division) -> Division | None:
    """Half the parts' size by the cheaper kind, or as near to it as can be; None where parts cannot be smaller."""
    now = _largest(parts.of(freedom, division))
    options = [Division(kind, min(freedom.most[kind], 2 * division.parts)) for kind in SPLITS if kind in freedom.kinds]
    smaller = [option for option in options if option.parts > 1 and _largest(parts.of(freedom, option)) < now]
    return min(smaller, key=lambda option: sum(part.time_s for part in parts.of(freedom, option)), default=None)


def _result(
    parts: Parts,
    placed: Sequence[tuple[Division, Item, int]],
    copies: set[int],
    copied_bytes: int,
    memory: float | None,
    constraints: Constraints,
) -> Plan:
    costs, model, ranks = parts.costs, parts.costs.model, parts.costs.ranks
    placements = [Placement(kind="replicated")] * model.num_tables
    by_table: dict[int, list[tuple[Division, Item, int]]] = {}
    for one in placed:
        by_table.setdefault(one[1].table, []).append(one)
    for t, held in by_table.items():
        held.sort(key=lambda one: (one[1].rows, one[1].columns or (0, 0)))
        kind, owners = held[0][0].kind, tuple(rank for _, _, rank in held)
        if kind == "table_wise":
            for whole in (t, *held[0][1].beside):
                placements[whole] = Placement(kind=kind, ranks=owners)
            continue
        ends = [item.rows[1] if item.columns is None else item.columns[1] for _, item, _ in held]
        placements[t] = Placement(kind=kind, ranks=owners, bounds=(0, *ends))
    copied_s = sum(costs.replicated_s(t) for t in copies)
    loads = []
    for rank in range(ranks):
        mine = [item for _, item, owner in placed if owner == rank]
        loads.append(
            RankLoad(
                rank=rank,
                tables=tuple(sorted(t for item in mine for t in (item.table, *item.beside))),
                memory_bytes=copied_bytes + sum(item.memory_bytes for item in mine),
                time_s=copied_s + sum(item.time_s for item in mine),
            )
        )
    partition = Partition(ranks=ranks, tables=tuple(placements))
    return Plan(model.name, model.minibatch, partition, tuple(loads), memory, _notes(costs, partition), constraints)


def _notes(costs: Costs, partition: Partition) -> tuple[str, ...]:
    """What the prediction assumes."""
    data = costs.model.data.distribution
    told = {
        "no profile given: bandwidths are assumed, so times compare with each other only": costs.ceilings is None,
        "the network's bandwidth is assumed": costs.network_bytes_per_s is None,
        f"look-ups of {data} data are taken as uniform: their file was not read": data in ("histogram", "criteo") and costs.reuse is None,
        f"how often rows of {data} data are met again was counted in their first minibatch": costs.reuse is not None,
        "which row-wise part holds a table's hottest rows is not known; each is predicted its share": data == "zipf"
        and any(placement.kind == "row_wise" for placement in partition.tables),
    }
    return tuple(note for note, holds in told.items() if holds)
