"""The figures of an explanation: drawn once, for the page and as SVG files of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from autotune.explaining.diagnosis import Explanation
from autotune.explaining.terms import OTHER
from autotune.report import charts
from autotune.report.numbers import ms, ms_range, prediction_range, speedup, speedup_range
from autotune.units import format_bytes, format_time, plural

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption."""

    name: str
    """Name of its file, without the ending."""
    svg: Markup
    caption: str


def figures(result: Explanation) -> Iterator[Figure]:
    """Every figure that the result has data for."""
    yield from _roofline(result)
    for timeline in result.timelines:
        name = "timeline" if timeline.source == "measured" else "timeline-predicted"
        note = f"{timeline.note[:1].upper()}{timeline.note[1:]}."
        yield Figure(name, charts.timeline(timeline), note + _not_drawn(timeline.ranks))
    yield from _gains(result)
    yield from _predicted(result)
    loads = result.loads
    if any(load.memory for load in loads):
        svg = charts.stacked("Memory of each rank", loads, lambda load: load.memory, 2.0**20, "MiB", format_bytes)
        yield Figure("memory", svg, f"Memory of tables and dense layers by rank.{_not_drawn(len(loads))}")
    if loads:
        svg = charts.stacked("Time of each rank", loads, lambda load: load.time, 1e-3, "ms per iteration", format_time)
        yield Figure("load", svg, f"Time of an iteration by rank.{_not_drawn(len(loads))}")


def as_file(figure: Figure) -> str:
    """An SVG file that stands alone: namespace, size, and the page's light colours in place of its variables."""
    palette = dict(re.findall(r"--([\w-]+): (#\w+)", (ASSETS / "page.css").read_text(encoding="utf-8").split("@media")[0]))
    rules = (ASSETS / "figure.css").read_text(encoding="utf-8")
    style = re.sub(r"var\(--([\w-]+)\)", lambda match: palette[match[1]], rules)
    opening, drawing = figure.svg.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>svg {{ background: #fff; }}\n{style}</style>{drawing}\n'


def _not_drawn(ranks: int) -> str:
    return f" Only the first {charts.SHOWN_RANKS} of {ranks} ranks are drawn." if ranks > charts.SHOWN_RANKS else ""


def _roofline(result: Explanation) -> Iterator[Figure]:
    roofline = result.roofline
    if roofline is None:
        return
    caption = (
        "Every pass with arithmetic; the lines are ceilings measured on this machine"
        f"{' and shared among its ranks' if result.sockets > 1 else ''} with {plural(roofline.threads, 'thread')}. "
        "Embedding passes count each row that passes; rows met again may come from a cache, so they can lie above their line."
    )
    if roofline.without:
        caption += f" Without arithmetic, so not here: {', '.join(roofline.without)}."
    yield Figure("roofline", charts.roofline(roofline), caption)


def _gains(result: Explanation) -> Iterator[Figure]:
    rows = [
        charts.RatioRow(
            choice.operator,
            choice.speedup.low,
            choice.speedup.median,
            choice.speedup.high,
            f"{choice.operator}\n{speedup(choice.speedup)} ({speedup_range(choice.speedup)}), {choice.candidates} raced\n"
            f"{choice.chosen or 'the default stands'}",
            strong=bool(choice.chosen),
        )
        for choice in result.choices
        if choice.candidates > 1 and choice.speedup is not None
    ]
    caption = (
        "Default over chosen, each pass alone, side by side. Grey: the default stands, and its best rival is shown; it stands where "
        "the whole iteration did not gain significantly."
    )
    if rows:
        yield Figure("gains", charts.ratios("Gain of every choice", rows, "times as fast as the default"), caption)


def _predicted(result: Explanation) -> Iterator[Figure]:
    rows = [
        charts.RatioRow(
            row.operator,
            row.predicted.low_s / row.time_s.median,
            row.predicted.time_s / row.time_s.median,
            row.predicted.high_s / row.time_s.median,
            f"{row.operator}\npredicted {prediction_range(row.predicted)} ms\nmeasured {ms(row.time_s.median)} ({ms_range(row.time_s)}) ms",
            strong=not row.predicted.extrapolated,
        )
        for row in result.operators
        if row.predicted is not None and row.time_s.median and row.operator != OTHER
    ]
    caption = "Predicted over measured, from the profile alone; right of 1 the prediction is too slow. Grey: outside what was calibrated."
    if rows:
        yield Figure("predicted", charts.ratios("Predicted over measured time", rows, "predicted / measured"), caption)
