"""The figures of the page as PNG and SVG files, for papers and slides."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from autotune.explain.diagnosis import Explanation
from autotune.explain.loads import FAMILIES, Load, Part, family
from autotune.explain.roofline import Roofline
from autotune.explain.terms import OTHER
from autotune.explain.timeline import Timeline
from autotune.report.charts import SHOWN_RANKS, place_labels
from autotune.report.layout import operator_names

_BINDERS = {"memory": ("o", "#0b62a8"), "compute": ("s", "#b6461a"), "network": ("^", "#a34c80"), "none": ("D", "#6b7078")}
_COLOURS = {
    "embedding forward": "#0b5394", "embedding update": "#3189bd", "bottom MLP": "#a66300", "top MLP": "#b6461a", "interaction": "#00805c",
    "waiting": "#8a9098", "other": "#6a5d86", "network": "#a34c80", "table-wise": "#0b5394", "row-wise": "#3189bd",
    "column-wise": "#a66300", "replicated": "#00805c", "dense layers": "#b6461a",
}  # fmt: skip
_STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (8, 3)))
# What differs between two runs on the same input would make every diff noisy: a date, and random ids.
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "autotune", "svg.fonttype": "none", "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False,
    "text.parse_math": False,
}  # fmt: skip
_Ratio = tuple[str, float, float, float, bool]


def figures(result: Explanation) -> Iterator[tuple[str, bytes]]:
    """File name and content of every figure that the result has data for: ``roofline.png``, ``roofline.svg``, ``timeline.png`` ..."""
    for name, draw in _drawn(result):
        with plt.rc_context(_STYLE):
            drawn = draw()
            try:
                for kind in ("png", "svg"):
                    out = io.BytesIO()
                    drawn.savefig(out, format=kind, dpi=150, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None)
                    yield f"{name}.{kind}", out.getvalue()
            finally:
                plt.close(drawn)


def _drawn(result: Explanation) -> Iterator[tuple[str, Callable[[], Figure]]]:
    found = result.roofline
    if found is not None:
        yield "roofline", lambda: _roofline(found, result.model)
    for shown in result.timelines:
        yield ("timeline" if shown.source == "measured" else "timeline-predicted"), partial(_timeline, shown, result.model)
    gains: list[_Ratio] = [
        (choice.operator, choice.speedup.low, choice.speedup.median, choice.speedup.high, bool(choice.chosen))
        for choice in result.choices
        if choice.speedup is not None and choice.candidates > 1
    ]
    if gains:
        yield "gains", lambda: _ratios(gains, f"{result.model}: default over chosen, each pass alone")
    predicted: list[_Ratio] = [
        (row.operator, one.low_s / row.time_s.median, one.time_s / row.time_s.median, one.high_s / row.time_s.median, not one.extrapolated)
        for row in result.operators
        if (one := row.predicted) is not None and row.time_s.median and row.operator != OTHER
    ]
    if predicted:
        yield "predicted", lambda: _ratios(predicted, f"{result.model}: predicted over measured")
    if any(load.memory for load in result.loads):
        yield "memory", lambda: _stacked(result.loads, lambda load: load.memory, 2.0**20, "MiB", f"{result.model}: memory by rank")
    if result.loads:
        yield "load", lambda: _stacked(result.loads, lambda load: load.time, 1e-3, "ms per iteration", f"{result.model}: time by rank")


def _axes(height: float, title: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(8.0, height))
    axes.set_title(title, loc="left", fontsize=10)
    return figure, axes


def _roofline(found: Roofline, model: str) -> Figure:
    figure, axes = _axes(4.8, f"{model}: roofline")
    xs = [point.intensity for point in found.points]
    left, right = min(xs) / 2, max([*xs, 10 * min(xs)]) * 2
    top = max([line.rate_per_s for line in found.ceilings if line.kind == "compute"], default=max(p.flops_per_s for p in found.points))
    for i, line in enumerate(found.ceilings):
        of_compute = line.kind == "compute"
        ends = (left, right) if of_compute else (left, min(right, top / line.rate_per_s))
        heights = [line.rate_per_s / 1e9] * 2 if of_compute else [at * line.rate_per_s / 1e9 for at in ends]
        told = f"{line.name}, {line.rate_per_s / 1e9:.3g} {'GF/s' if of_compute else 'GB/s'}"
        axes.plot(ends, heights, color="#333", linewidth=1.2, linestyle=_STYLES[i % len(_STYLES)], label=told)
    names = operator_names([point.operator for point in found.points], 0)
    for binder, (shape, colour) in _BINDERS.items():
        of_binder = [point for point in found.points if point.binder == binder]
        if of_binder:
            across, up = [point.intensity for point in of_binder], [point.flops_per_s / 1e9 for point in of_binder]
            axes.scatter(across, up, marker=shape, c=colour, s=30, label=f"bound by {binder}", zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity, flops per byte", ylabel="GF/s", xlim=(left, right))
    axes.xaxis.set_major_formatter(_plain)
    axes.yaxis.set_major_formatter(_plain)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
    # Placed in points, y downwards, as the page places them.
    scale = 72.0 / figure.dpi
    (x0, y0), (x1, y1) = axes.transAxes.transform([(0.0, 0.0), (1.0, 1.0)]) * scale
    spots = axes.transData.transform([(point.intensity, point.flops_per_s / 1e9) for point in found.points]) * scale
    places = place_labels(names, [(x, -y) for x, y in spots], (x0, -y1, x1, -y0), 3.7)
    for i, (x, y) in places.items():
        offset = (x - spots[i][0], -y - spots[i][1])
        at = (found.points[i].intensity, found.points[i].flops_per_s / 1e9)
        axes.annotate(names[i], at, offset, textcoords="offset points", fontsize=6.5)
    return figure


def _plain(value: float, _: object) -> str:
    return f"{value:g}"


def _timeline(one: Timeline, model: str) -> Figure:
    ranks = sorted({bar.rank for bar in one.bars})[:SHOWN_RANKS]
    figure, axes = _axes(1.2 + 0.7 * len(ranks), f"{model}: one iteration, {one.source}")
    kinds = set()
    for bar in one.bars:
        if bar.rank not in ranks:
            continue
        kind = "network" if bar.lane == "network" else "waiting" if bar.waiting else family(bar.operator)
        kinds.add(kind)
        at, tall = (bar.rank - 0.3, 0.5) if bar.lane == "compute" else (bar.rank + 0.24, 0.2)
        left, wide = bar.begin_s * 1e3, (bar.end_s - bar.begin_s) * 1e3
        axes.broken_barh([(left, wide)], (at, tall), facecolor=_COLOURS[kind], edgecolor="white", linewidth=0.3)
        (name,) = operator_names([bar.operator], 0)
        if tall > 0.4 and wide > 0.011 * len(name) * one.end_s * 1e3:
            axes.text(left + wide / 2, at + tall / 2, name, ha="center", va="center", fontsize=6.5, color="white")
    axes.set(yticks=ranks, yticklabels=[f"rank {rank}" for rank in ranks], xlabel="ms", xlim=(0, one.end_s * 1e3))
    axes.invert_yaxis()
    _legend(axes, [name for name in (*FAMILIES, "network") if name in kinds])
    return figure


def _ratios(rows: Sequence[_Ratio], title: str) -> Figure:
    figure, axes = _axes(0.9 + 0.2 * len(rows), title)
    for i, (_, low, median, high, strong) in enumerate(rows):
        colour = "#0b5394" if strong else "#6b7078"
        axes.plot([low, high], [i, i], color=colour, linewidth=3, alpha=0.5, solid_capstyle="round")
        axes.plot([median], [i], "o", color=colour, markersize=4)
    axes.axvline(1.0, color="#333", linewidth=1)
    axes.set(yticks=range(len(rows)), yticklabels=operator_names([row[0] for row in rows], 80), xscale="log", xlabel="ratio")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(_plain)
    axes.xaxis.set_minor_formatter(_plain)
    axes.tick_params(axis="x", which="minor", labelsize=7)
    return figure


def _stacked(loads: Sequence[Load], parts_of: Callable[[Load], Sequence[Part]], scale: float, unit: str, title: str) -> Figure:
    shown = loads[:SHOWN_RANKS]
    figure, axes = _axes(1.1 + 0.4 * len(shown), title)
    kinds: dict[str, None] = {}
    for load in shown:
        at = 0.0
        for part in parts_of(load):
            kinds[part.family] = None
            axes.barh(load.rank, part.value / scale, left=at, height=0.7, color=_COLOURS[part.family], edgecolor="white", linewidth=0.4)
            at += part.value / scale
    axes.set(yticks=[load.rank for load in shown], yticklabels=[f"rank {load.rank}" for load in shown], xlabel=unit)
    axes.invert_yaxis()
    _legend(axes, list(kinds))
    return figure


def _legend(axes: Axes, names: Sequence[str]) -> None:
    handles = [Patch(color=_COLOURS[name], label=name) for name in names]
    axes.legend(handles=handles, fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False)
