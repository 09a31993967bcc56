"""Timelines as a Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from autotune.explaining.terms import family
from autotune.explaining.timeline import Timeline

_LANES = {"compute": 0, "network": 1}
_PREDICTED = 100_000
"""Process ids of predicted ranks begin here, so that they stand below the measured ones."""


def trace(model: str, timelines: Sequence[Timeline]) -> str:
    """JSON text: a process a rank, a thread a lane, complete events in microseconds.

    Source: Trace Event Format, "complete events" (ph X) and "metadata events" (ph M).
    """
    events = [event for timeline in timelines for event in _events(timeline, 0 if timeline is timelines[0] else _PREDICTED)]
    whole = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"model": model}}
    return json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n"


def _events(timeline: Timeline, first: int) -> Iterator[dict[str, Any]]:
    for rank in sorted({bar.rank for bar in timeline.bars}):
        yield _named("process_name", first + rank, 0, name=f"rank {rank}, {timeline.source}")
        yield _named("process_sort_index", first + rank, 0, sort_index=first + rank)
        for lane in sorted({bar.lane for bar in timeline.bars if bar.rank == rank}):
            yield _named("thread_name", first + rank, _LANES[lane], name=lane)
    for bar in timeline.bars:
        yield {
            "name": bar.operator,
            "cat": "waiting" if bar.waiting else family(bar.operator) if bar.lane == "compute" else "network",
            "ph": "X",
            "pid": first + bar.rank,
            "tid": _LANES[bar.lane],
            "ts": round(bar.begin_s * 1e6, 3),
            "dur": round((bar.end_s - bar.begin_s) * 1e6, 3),
        }


def _named(what: str, process: int, thread: int, **arguments: object) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": arguments}
