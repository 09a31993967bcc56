"""Ceilings of a profile between and beside the measured points: by threads, row width and working set, and a rank's share of them.

Rates between measured points are interpolated; outside them the nearest point counts, and the result says so.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from autotune.config.profile import Ceilings, RowPoint
from autotune.errors import InputError
from autotune.units import format_bytes

StreamKind = Literal["read", "copy", "triad", "copy_nt", "update"]


@dataclass(frozen=True)
class RowRate:
    """A bandwidth for random rows."""

    bandwidth_bytes_per_s: float
    extrapolated: str
    """What lies outside the measured points, in words; empty when nothing does."""


def gemm_ceiling(ceilings: Ceilings, threads: int) -> float:
    """Best rate of a GEMM in the probe, flops per second; the multiply-add peak where a profile has no GEMM.

    Between measured thread counts linear; below the least in proportion, above the most as there.

    Raises:
        InputError: the profile holds neither, or `threads` is below 1.
    """
    rates = _by_threads((p.threads, p.flops_per_s) for p in ceilings.gemm) or _by_threads((p.threads, p.flops_per_s) for p in ceilings.fma)
    return _proportional(rates, threads, "multiply-add")


def peak_ceiling(ceilings: Ceilings, threads: int) -> float:
    """Multiply-add peak of the cores, flops per second in fp32: the bound of arithmetic. Never less than a GEMM reached.

    Raises:
        InputError: as `gemm_ceiling`.
    """
    gemm = gemm_ceiling(ceilings, threads)
    return max(gemm, _proportional(_by_threads((p.threads, p.flops_per_s) for p in ceilings.fma) or {threads: gemm}, threads, "fma"))


def stream_ceiling(ceilings: Ceilings, kind: StreamKind, threads: int) -> float:
    """Sequential bandwidth, bytes per second, read-for-ownership not counted; linear between thread counts, clamped outside.

    Raises:
        InputError: the profile has no such stream, or `threads` is below 1.
    """
    rates = _by_threads((p.threads, p.bandwidth_bytes_per_s) for p in ceilings.stream if p.kind == kind)
    return _clamped(rates, threads, f"stream {kind}")


def row_ceiling(
    ceilings: Ceilings, access: Literal["gather", "scatter"], row_bytes: int, working_set_bytes: float, threads: int
) -> RowRate:
    """Best bandwidth of random whole rows, row bytes per second; a scattered row counts twice.

    Linear in the logarithm of row width and working set, linear in threads; clamped to the measured range of each. Wider rows, a smaller
    working set and more threads allow at least what narrower rows, a larger one and fewer threads were seen to reach: a point measured
    while the machine was slow does not lower the ceiling.

    Raises:
        InputError: the profile has no such points, or a size or `threads` is below 1.
    """
    if row_bytes < 1 or working_set_bytes <= 0:
        got = f"{row_bytes} and {working_set_bytes:g}"
        raise InputError(f"row_bytes and working_set_bytes must be positive, got {got}; see the operator's work")
    grid = _row_grid(ceilings.gather if access == "gather" else ceilings.scatter)
    asked = (row_bytes, working_set_bytes, threads)
    if asked not in grid.known:
        grid.known[asked] = _row_rate(grid, access, *asked)
    return grid.known[asked]


def _row_rate(grid: _RowGrid, access: str, row_bytes: int, working_set_bytes: float, threads: int) -> RowRate:
    width, size = math.log2(row_bytes), math.log2(working_set_bytes)
    by_threads: dict[int, float] = {}
    best = 0.0
    for count, by_width in grid.rates.items():
        at: dict[float, float] = {}
        highest = 0.0
        for known_width, sizes in by_width.items():
            at[known_width] = highest = max(highest, _interpolate(sizes, size))
        by_threads[count] = best = max(best, _interpolate(at, width))
    rate = _clamped(by_threads, threads, access)
    outside = []
    least, most = grid.widths
    if not least <= row_bytes <= most:
        outside.append(f"rows of {format_bytes(row_bytes)}, measured {format_bytes(least)} to {format_bytes(most)}")
    # Below the smallest working set nothing changes: it lies inside L2 already.
    if working_set_bytes > grid.largest_bytes:
        outside.append(f"working set of {format_bytes(working_set_bytes)}, measured up to {format_bytes(grid.largest_bytes)}")
    return RowRate(rate, "; ".join(outside))


def fork_join_s(ceilings: Ceilings, threads: int) -> float:
    """Seconds that starting and ending one parallel region takes; 0 where a profile does not tell."""
    return _clamped(_by_threads((p.threads, p.time_s) for p in ceilings.fork_join) or {threads: 0.0}, threads, "fork_join")


class _Point(Protocol):
    @property
    def threads(self) -> int: ...


P = TypeVar("P", bound=_Point)


def per_rank(ceilings: Ceilings, ranks: int) -> Ceilings:
    """Of one of `ranks` ranks: what t threads of each reach together on the machine is a figure of t * ranks threads, in equal parts.

    Working sets are parted likewise, since the ranks share the last cache. Where no measured number of threads divides, the largest stands
    for its share.

    Args:
        ceilings: Of the whole machine.
        ranks: On this machine.
    """
    if ranks == 1:
        return ceilings

    def of(points: Sequence[P], parted: Callable[[P, int], P]) -> tuple[P, ...]:
        fitting = [point for point in points if point.threads % ranks == 0]
        most = max((point.threads for point in points), default=0)
        chosen = fitting or [point for point in points if point.threads == most]
        return tuple(parted(point, max(1, point.threads // ranks)) for point in chosen)

    return Ceilings(
        fma=of(ceilings.fma, lambda p, t: p.model_copy(update={"threads": t, "flops_per_s": p.flops_per_s / ranks})),
        gemm=of(ceilings.gemm, lambda p, t: p.model_copy(update={"threads": t, "flops_per_s": p.flops_per_s / ranks})),
        stream=of(ceilings.stream, lambda p, t: p.model_copy(update=_bandwidth(p.bandwidth_bytes_per_s, t, ranks))),
        gather=of(ceilings.gather, lambda p, t: p.model_copy(update=_rows(p.bandwidth_bytes_per_s, p.working_set_bytes, t, ranks))),
        scatter=of(ceilings.scatter, lambda p, t: p.model_copy(update=_rows(p.bandwidth_bytes_per_s, p.working_set_bytes, t, ranks))),
        fork_join=of(ceilings.fork_join, lambda p, t: p.model_copy(update={"threads": t})),
    )


def _bandwidth(bytes_per_s: float, threads: int, ranks: int) -> dict[str, float | int]:
    return {"threads": threads, "bandwidth_bytes_per_s": bytes_per_s / ranks}


def _rows(bytes_per_s: float, working_set_bytes: int, threads: int, ranks: int) -> dict[str, float | int]:
    return _bandwidth(bytes_per_s, threads, ranks) | {"working_set_bytes": max(1, working_set_bytes // ranks)}


def _by_threads(points: Iterable[tuple[int, float]]) -> dict[int, float]:
    """The best of each thread count."""
    best: dict[int, float] = {}
    for threads, value in points:
        best[threads] = max(value, best.get(threads, value))
    return best


@dataclass(frozen=True)
class _RowGrid:
    """Measured bandwidths of random rows, made to be looked up often."""

    rates: dict[int, dict[float, dict[float, float]]]
    """Bytes per second by threads, by log2 of the row width, by log2 of the working set, each rising; a smaller working set has at least
    the bandwidth of a larger one."""
    widths: tuple[int, int]
    """Least and largest row bytes."""
    largest_bytes: int
    """Largest working set."""
    known: dict[tuple[int, float, int], RowRate] = field(default_factory=dict)
    """Rates that were asked for: by row bytes, working set and threads."""

    @staticmethod
    def of(points: Sequence[RowPoint]) -> _RowGrid:
        rates: dict[int, dict[float, dict[float, float]]] = {}
        for point in sorted(points, key=lambda point: (point.threads, point.row_bytes, point.working_set_bytes)):
            sizes, size = rates.setdefault(point.threads, {}).setdefault(math.log2(point.row_bytes), {}), math.log2(point.working_set_bytes)
            sizes[size] = max(point.bandwidth_bytes_per_s, sizes.get(size, 0.0))
        for sizes in (sizes for by_width in rates.values() for sizes in by_width.values()):
            best = 0.0
            for size in reversed(sizes):
                sizes[size] = best = max(best, sizes[size])
        widths = [point.row_bytes for point in points] or [0]
        return _RowGrid(rates, (min(widths), max(widths)), max((point.working_set_bytes for point in points), default=0))


_GRIDS: dict[int, tuple[Sequence[RowPoint], _RowGrid]] = {}
"""Grids of the last profiles by the identity of their points, which are held so that no others get it."""
_KEPT_GRIDS = 16


def _row_grid(points: Sequence[RowPoint]) -> _RowGrid:
    if id(points) not in _GRIDS:
        while len(_GRIDS) >= _KEPT_GRIDS:
            _GRIDS.pop(next(iter(_GRIDS)))
        _GRIDS[id(points)] = (points, _RowGrid.of(points))
    return _GRIDS[id(points)][1]


def _clamped(values: Mapping[int, float], threads: int, name: str) -> float:
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    if not values:
        raise InputError(f"the profile must hold {name} ceilings, got none; probe this machine, or add them to the profile")
    return _interpolate(values, threads)


def _proportional(values: Mapping[int, float], threads: int, name: str) -> float:
    """As `_clamped`, but below the least thread count in proportion: cores add up."""
    return _clamped(values, threads, name) * min(1.0, threads / min(values))


def _interpolate(values: Mapping[int, float] | Mapping[float, float], x: float) -> float:
    """Linear between the nearest known points, the nearest one outside. Keys rise."""
    at: list[float] = list(values)
    above = bisect.bisect_left(at, x)
    if above == len(at):
        return values[at[-1]]  # type: ignore[index]
    if above == 0 or at[above] == x:
        return values[at[above]]  # type: ignore[index]
    x0, x1 = at[above - 1], at[above]
    y0, y1 = values[x0], values[x1]  # type: ignore[index]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
