"""The roofline of a tuned config: every pass with arithmetic and bytes as a point, what the machine reaches as lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from autotune.config.profile import Ceilings
from autotune.config.tuned import MeasuredPass, TunedConfig
from autotune.explaining.terms import OTHER, ranks_on_host
from autotune.perf.ceilings import gemm_ceiling, peak_ceiling, per_rank, row_ceiling, stream_ceiling
from autotune.units import format_bytes


@dataclass(frozen=True)
class Ceiling:
    """A line that nothing passes."""

    name: str
    kind: Literal["compute", "memory"]
    """Flat, flops per second; or a slope, bytes per second."""
    rate_per_s: float


@dataclass(frozen=True)
class Point:
    """One operator pass."""

    operator: str
    intensity: float
    """Flops per byte: compulsory bytes; of gather and scatter the row bytes that pass, as their ceilings count them."""
    flops_per_s: float
    time_s: float
    binder: str
    fractions: dict[str, float]
    """Share of each ceiling reached; of re-used rows part is held against a cache, which no line shows."""


@dataclass(frozen=True)
class Roofline:
    """Points under lines, both axes logarithmic."""

    threads: int
    """Of a rank."""
    points: tuple[Point, ...]
    ceilings: tuple[Ceiling, ...]
    without: tuple[str, ...]
    """Passes without arithmetic: they have no place here."""


def roofline(config: TunedConfig) -> Roofline | None:
    """The roofline of one rank; None without a record, and where it holds no work, as beside configs of version 1."""
    counted = [verdict for verdict in config.verdicts if verdict.flops and verdict.bytes]
    if not counted:
        return None
    known = {verdict.operator for verdict in counted}
    return Roofline(
        threads=config.config.threads,
        points=tuple(map(_point, counted)),
        ceilings=tuple(_lines(config)),
        without=tuple(v.operator for v in config.verdicts if v.operator not in known and v.operator != OTHER),
    )


def _point(verdict: MeasuredPass) -> Point:
    # Only passes with counted work get here.
    assert verdict.intensity is not None
    assert verdict.flops_per_s is not None
    return Point(
        operator=verdict.operator,
        intensity=verdict.intensity,
        flops_per_s=verdict.flops_per_s,
        time_s=verdict.time_s.median,
        binder=verdict.binder,
        fractions=dict(verdict.fractions),
    )


def _lines(config: TunedConfig) -> Iterator[Ceiling]:
    if config.profile is None:
        return
    ceilings, threads = per_rank(config.profile.ceilings, ranks_on_host(config)), config.config.threads
    if ceilings.fma:
        yield Ceiling("multiply-add peak", "compute", peak_ceiling(ceilings, threads))
    if ceilings.gemm:
        yield Ceiling("best GEMM seen", "compute", gemm_ceiling(ceilings, threads))
    for kind in dict.fromkeys(point.kind for point in ceilings.stream):
        if kind in ("read", "copy"):
            yield Ceiling(f"stream {kind}", "memory", stream_ceiling(ceilings, kind, threads))
    yield from _row_lines(config, ceilings, threads)


def _row_lines(config: TunedConfig, ceilings: Ceilings, threads: int) -> Iterator[Ceiling]:
    """At the row width and the size of the largest table."""
    if config.workload is None:
        return
    largest = max(config.workload.tables, key=lambda table: table.size_bytes)
    row_bytes = largest.size_bytes // largest.rows
    for access in ("gather", "scatter"):
        if ceilings.gather if access == "gather" else ceilings.scatter:
            rate = row_ceiling(ceilings, access, row_bytes, largest.size_bytes, threads).bandwidth_bytes_per_s
            yield Ceiling(f"{access} {format_bytes(row_bytes)} rows of {format_bytes(largest.size_bytes)}", "memory", rate)
