"""One iteration in time: what every rank computes, what it waits for, and what travels meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from autotune.config.measured import TimedSpan
from autotune.config.tuned import TunedConfig
from autotune.explaining.terms import OTHER, is_transfer_key

if TYPE_CHECKING:
    from autotune.perf.estimate import Estimate

Lane = Literal["compute", "network"]


@dataclass(frozen=True)
class Bar:
    """A stretch of time on one lane of one rank."""

    rank: int
    lane: Lane
    operator: str
    begin_s: float
    end_s: float
    waiting: bool = False
    """On the compute lane: the rank waits for a transfer, or hands one over."""


@dataclass(frozen=True)
class Timeline:
    """One iteration."""

    source: Literal["measured", "predicted"]
    ranks: int
    end_s: float
    bars: tuple[Bar, ...]
    """By rank, then lane, then time."""
    note: str
    """How to read it."""


def measured(config: TunedConfig) -> Timeline | None:
    """The iteration that the config holds; on one socket, an older config's passes end to end; None where neither is known.

    A transfer is on its way from the first call that concerns it to the end of its last wait: on the network lane it is drawn as one bar,
    so that it may look longer than its bytes take.
    """
    if config.timeline:
        bars = tuple(bar for rank, spans in groupby(config.timeline, key=lambda span: span.rank) for bar in _of_rank(rank, list(spans)))
        shown = len({bar.rank for bar in bars})
        note = "one iteration near the median, as it ran; each rank's clock begins with its first pass"
        if config.sockets > 1:
            note += ". A transfer is drawn from its first call to the end of its last wait"
        return _timeline("measured", shown, bars, note)
    if config.sockets > 1 or not config.verdicts:
        return None
    end_to_end, at = [], 0.0
    for verdict in config.verdicts:
        if verdict.operator != OTHER:
            end_to_end.append(Bar(0, "compute", verdict.operator, at, at := at + verdict.time_s.median))
    return _timeline("measured", 1, tuple(end_to_end), "medians of the passes end to end: this config holds no single iteration")


def predicted(estimate: Estimate) -> Timeline | None:
    """The simulated iteration; None where nothing is in it."""
    bars = tuple(
        Bar(span.rank, span.lane, span.key, span.begin_s, span.end_s, span.lane == "compute" and is_transfer_key(span.key))
        for span in estimate.timeline
    )
    note = f"simulated from the profile {estimate.profile}"
    return _timeline("predicted", len({bar.rank for bar in bars}), bars, note) if bars else None


def _timeline(source: Literal["measured", "predicted"], ranks: int, bars: tuple[Bar, ...], note: str) -> Timeline:
    ordered = sorted(bars, key=lambda bar: (bar.rank, bar.lane, bar.begin_s))
    return Timeline(source, ranks, max(bar.end_s for bar in bars), tuple(ordered), note)


def _of_rank(rank: int, spans: list[TimedSpan]) -> Iterator[Bar]:
    for span in spans:
        yield Bar(rank, "compute", span.operator, span.begin_s, span.end_s, is_transfer_key(span.operator))
    for operator in dict.fromkeys(span.operator for span in spans if is_transfer_key(span.operator)):
        pieces = [span for span in spans if span.operator == operator]
        yield Bar(rank, "network", operator, min(span.begin_s for span in pieces), max(span.end_s for span in pieces))
