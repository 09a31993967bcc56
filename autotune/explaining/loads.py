"""What every rank holds and does: its memory and its time in parts, for stacked bars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from autotune.config.model import Model
from autotune.config.partition import Placement
from autotune.config.tuned import TunedConfig
from autotune.explaining.terms import family
from autotune.ops.base import families

# More parts than these are not told apart by eye: then the tables of one kind are one part.
_SHOWN_TABLES = 64


@dataclass(frozen=True)
class Part:
    """A part of a bar."""

    name: str
    family: str
    """What gives it its colour."""
    value: float
    """Bytes or seconds."""


@dataclass(frozen=True)
class Load:
    """One rank."""

    rank: int
    memory: tuple[Part, ...]
    """Bytes: tables by placement, then the dense layers; empty where the model is not known."""
    time: tuple[Part, ...]
    """Seconds per iteration by family of passes."""
    tables: int
    """Whole tables and parts; copies of replicated tables left out."""
    lookups: int | None
    """Per iteration; None where they are not known."""

    @property
    def memory_bytes(self) -> float:
        return sum(part.value for part in self.memory)

    @property
    def time_s(self) -> float:
        return sum(part.value for part in self.time)


def loads(config: TunedConfig) -> tuple[Load, ...]:
    """Every rank; one on one socket."""
    if config.sockets == 1:
        times = {verdict.operator: verdict.time_s.median for verdict in config.verdicts}
        memory = tuple(_memory(config.workload, None, 0)) if config.workload else ()
        tables = config.workload.num_tables if config.workload else 0
        lookups = config.workload.lookups_per_iteration if config.workload else None
        return (Load(0, memory, _by_family(times), tables, lookups),)
    placements = config.config.partition.tables if config.config.partition else None
    return tuple(
        Load(
            row.rank,
            tuple(_memory(config.workload, placements, row.rank)) if config.workload else (),
            _by_family(row.passes_s),
            row.tables,
            row.lookups,
        )
        for row in config.ranks
    )


def _by_family(times_s: Mapping[str, float]) -> tuple[Part, ...]:
    sums = dict.fromkeys((each.name for each in families()), 0.0)
    for operator, time_s in times_s.items():
        sums[family(operator)] += time_s
    return tuple(Part(name, name, time_s) for name, time_s in sums.items() if time_s > 0)


def _memory(model: Model, placements: tuple[Placement, ...] | None, rank: int) -> Iterator[Part]:
    parts = [part for t in range(model.num_tables) if (part := _table(model, placements, t, rank)) is not None]
    if len(parts) > _SHOWN_TABLES:
        sizes: dict[str, list[float]] = {}
        for part in parts:
            sizes.setdefault(part.family, []).append(part.value)
        parts = [Part(f"{len(values)} tables {kind}", kind, sum(values)) for kind, values in sizes.items()]
    yield from sorted(parts, key=lambda part: (part.family, -part.value))
    yield Part("dense layers", "dense layers", model.dense_bytes)


def _table(model: Model, placements: tuple[Placement, ...] | None, t: int, rank: int) -> Part | None:
    """What a rank holds of one table."""
    size = model.stored_bytes(model.tables[t])
    if placements is None:
        return Part(f"table {t}", "table-wise", size)
    placement = placements[t]
    kind = placement.kind.replace("_", "-")
    if placement.kind == "replicated":
        return Part(f"table {t}, copy", kind, size)
    if rank not in placement.ranks:
        return None
    if not placement.bounds:
        return Part(f"table {t}", kind, size)
    low, high = list(pairwise(placement.bounds))[placement.ranks.index(rank)]
    what = "rows" if placement.kind == "row_wise" else "columns"
    return Part(f"table {t}, {what} {low} to {high - 1}", kind, size * (high - low) / placement.bounds[-1])
