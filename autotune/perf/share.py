"""A machine's ceilings as one of several ranks on it meets them: all of them draw on the same memory at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from autotune.config.profile import Ceilings


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
