"""What a user demands of a plan, and what it leaves every table to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.config.model import Model
from autotune.config.partition import KINDS, Kind
from autotune.errors import InputError
from autotune.units import format_bytes

SPLIT_COLUMNS = 16
"""A column-wise part begins at a multiple of it: a cache line of fp32, and one vector of the widest ISA."""


@dataclass(frozen=True)
class Constraints:
    """Demands on where tables go; the default makes none. Messages name the options of `autotune plan`.

    Raises:
        InputError: an unknown or no kind, a negative size, a group of fewer than two tables.
    """

    pin: Mapping[int, int] = field(default_factory=dict)
    """Table -> the rank that holds it whole."""
    forbid: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Table -> ranks that hold no part of it; it is not replicated either."""
    together: tuple[tuple[int, ...], ...] = ()
    """Groups of tables that lie whole on one rank, whichever it is; groups that share a table are one."""
    kinds: tuple[Kind, ...] = KINDS
    """What a table may be."""
    split_above_bytes: int = 0
    """Tables up to this size are never split."""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise InputError(f"kinds must be of {', '.join(KINDS)}, got {str(kind)!r} (--kinds); correct it")
        if not self.kinds:
            raise InputError(f"kinds must name at least one of {', '.join(KINDS)}, got none (--kinds); name one or leave the option out")
        if self.split_above_bytes < 0:
            got = f"{self.split_above_bytes} (--split-above)"
            raise InputError(f"the split boundary must not be negative, got {got}; write for example 1GB")
        for group in self.together:
            if len(set(group)) < 2:
                rule = "tables that lie together must be two or more"
                raise InputError(f"{rule}, got {_numbers(group) or 'none'} (--together {_numbers(group)}); name another one")

    @property
    def words(self) -> tuple[str, ...]:
        """What is demanded, briefly; empty where nothing is."""
        words = {
            f"{len(self.pin)} pinned": self.pin,
            f"{len(self.forbid)} with forbidden ranks": self.forbid,
            f"{len(self.together)} {'group' if len(self.together) == 1 else 'groups'} together": self.together,
            f"{', '.join(self.kinds)} only": set(self.kinds) != set(KINDS),
            f"tables up to {format_bytes(self.split_above_bytes)} not split": self.split_above_bytes,
        }
        return tuple(text for text, demanded in words.items() if demanded)


@dataclass(frozen=True)
class AllowedSharding:
    """The ways in which one table, or tables that stay together, may still be sharded."""

    tables: tuple[int, ...]
    kinds: tuple[Kind, ...]
    ranks: frozenset[int] | None
    """Ranks that may hold them; None: all."""
    most: Mapping[Kind, int]
    """Most shards by each kind of split."""
    place: str
    """The options that speak of these tables."""
    whole_by: str
    """The options that keep a table from being split; empty where none does."""

    @property
    def name(self) -> str:
        return _named(self.tables)


def resolve(constraints: Constraints, model: Model, ranks: int) -> list[AllowedSharding]:
    """What every table may choose, each table in one of them, in the order of their first tables.

    Raises:
        InputError: a table or rank that there is not, demands that contradict each other, or that leave a table nothing.
    """
    _check_numbers(constraints, model.num_tables, ranks)
    group_of = {t: group for group in _merged(constraints.together) for t in group}
    groups = [group_of.get(t, (t,)) for t in range(model.num_tables)]
    return [_allowed(constraints, model, ranks, group) for t, group in enumerate(groups) if group[0] == t]


def _allowed(constraints: Constraints, model: Model, ranks: int, group: tuple[int, ...]) -> AllowedSharding:
    place = _options(constraints, group)
    pins = {t: constraints.pin[t] for t in group if t in constraints.pin}
    if len(set(pins.values())) > 1:
        got = " and ".join(f"rank {rank} for table {t}" for t, rank in pins.items())
        raise InputError(f"tables that lie together must be pinned to one rank, got {got} ({place}); pin them to the same rank")
    forbidden = {rank for t in group for rank in constraints.forbid.get(t, ())}
    pinned = next(iter(pins.values()), None)
    if pinned in forbidden:
        got = f"rank {pinned} for {_named(group)}"
        raise InputError(f"a table must not be pinned to a rank that is forbidden, got {got} ({place}); drop one of the two")
    free = frozenset(range(ranks)) - forbidden if pinned is None else frozenset((pinned,))
    if not free:
        raise InputError(f"a table must be left a rank, got all {ranks} forbidden for {_named(group)} ({place}); allow one")
    table = model.tables[group[0]]
    whole = len(group) > 1 or pinned is not None
    if whole and "table_wise" not in constraints.kinds:
        rule = "tables that are pinned or lie together are placed whole"
        raise InputError(f"{rule}, got kinds {', '.join(constraints.kinds)} for {_named(group)} ({place}); add table_wise to --kinds")
    short = table.size_bytes <= constraints.split_above_bytes
    most: dict[Kind, int] = {"row_wise": min(len(free), table.rows), "column_wise": min(len(free), table.dim // SPLIT_COLUMNS)}
    possible: dict[Kind, bool] = {
        "table_wise": True,
        "row_wise": not whole and not short and most["row_wise"] > 1,
        "column_wise": not whole and not short and most["column_wise"] > 1,
        "replicated": not whole and not forbidden,
    }
    kinds = tuple(kind for kind in KINDS if kind in constraints.kinds and possible[kind])
    splits = {"row_wise", "column_wise"}
    by = [place] if whole else []
    by += [f"--split-above {format_bytes(constraints.split_above_bytes)}"] if short and not whole else []
    by += [] if splits & set(constraints.kinds) else [f"--kinds {','.join(constraints.kinds)}"]
    if not kinds:
        shape = f"{table.rows} rows and {table.dim} columns on {len(free)} of {ranks} ranks"
        got = f"{', '.join(constraints.kinds)} for table {group[0]} of {shape}"
        demanded = ", ".join(["--kinds", *(option for option in (*by, place) if option and not option.startswith("--kinds"))])
        raise InputError(f"every table must be able to take an allowed kind, got {got} ({demanded}); add table_wise to --kinds")
    stuck = not splits & set(kinds)
    return AllowedSharding(group, kinds, None if len(free) == ranks else free, most, place, ", ".join(by) if stuck else "")


def _check_numbers(constraints: Constraints, tables: int, ranks: int) -> None:
    named = [(f"--pin {t}={rank}", [t], [rank]) for t, rank in constraints.pin.items()]
    named += [(f"--forbid {t}={_numbers(of)}", [t], list(of)) for t, of in constraints.forbid.items()]
    named += [(f"--together {_numbers(group)}", list(group), []) for group in constraints.together]
    for place, of_tables, of_ranks in named:
        for t in of_tables:
            if not 0 <= t < tables:
                raise InputError(f"tables are numbered 0 to {tables - 1}, got {t} ({place}); name one of these")
        for rank in of_ranks:
            if not 0 <= rank < ranks:
                raise InputError(f"ranks are numbered 0 to {ranks - 1}, got {rank} ({place}); name one of these, or raise --sockets")


def _merged(groups: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """Groups that share a table become one; sorted."""
    merged: list[set[int]] = []
    for group in groups:
        touched = [other for other in merged if other & set(group)]
        merged = [other for other in merged if other not in touched] + [set(group).union(*touched)]
    return [tuple(sorted(other)) for other in merged]


def _options(constraints: Constraints, group: tuple[int, ...]) -> str:
    """The options that speak of these tables, as they are written."""
    options = [f"--pin {t}={constraints.pin[t]}" for t in group if t in constraints.pin]
    options += [f"--forbid {t}={_numbers(constraints.forbid[t])}" for t in group if t in constraints.forbid]
    options += [f"--together {_numbers(other)}" for other in constraints.together if set(other) & set(group)]
    return ", ".join(options)


def _named(group: tuple[int, ...]) -> str:
    return f"table {group[0]}" if len(group) == 1 else f"tables {_numbers(group)}"


def _numbers(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
