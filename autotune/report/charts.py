"""The figures of the page as SVG. Each takes what the explainer found and lays it out; nothing is computed but positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from autotune.explain.loads import Load, Part, family
from autotune.explain.roofline import Ceiling, Point, Roofline
from autotune.explain.timeline import Bar, Timeline
from autotune.report.layout import operator_names
from autotune.report.numbers import ms, percent
from autotune.report.svg import WIDTH, Scale, binder_shape, element, figure, mark, text, x_axis, y_axis
from autotune.units import format_rate, format_time

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 44
_CHAR = 6.2
"""Width of a character of the figures' small text, in units of the viewBox."""
SHOWN_RANKS = 16
"""Rows of a timeline and of stacked bars: more are told, not drawn."""


def _css(name: str) -> str:
    """``embedding forward`` -> ``f-embedding-forward``."""
    return "f-" + name.lower().replace(" ", "-")


def roofline(result: Roofline) -> str:
    """Points under lines, both axes logarithmic."""
    height = 460
    rates = [point.flops_per_s for point in result.points] + [line.rate_per_s for line in result.ceilings if line.kind == "compute"]
    xs = [point.intensity for point in result.points]
    x = Scale(min(xs) / 2, max([*xs, 10 * min(xs)]) * 2, _LEFT, WIDTH - _RIGHT, log=True)
    y = Scale(min(rates) / 2e9, max(rates) * 1.6e-9, height - _BOTTOM, _TOP, log=True)
    axes = x_axis(x, height - _BOTTOM, "arithmetic intensity, flops per byte", _TOP) + y_axis(y, _LEFT, "GF/s", WIDTH - _RIGHT)
    lines = "".join(_line(line, i, result, x, y) for i, line in enumerate(result.ceilings))
    at = [(x(point.intensity), y(point.flops_per_s / 1e9)) for point in result.points]
    points = "".join(mark(binder_shape(p.binder, px, py), _point_tip(p)) for p, (px, py) in zip(result.points, at, strict=True))
    names = operator_names([point.operator for point in result.points], 0)
    return figure("Roofline of every operator pass", height, axes, lines, points, _labels(names, at))


def _line(line: Ceiling, i: int, result: Roofline, x: Scale, y: Scale) -> str:
    told = f"{line.name}: {format_rate(line.rate_per_s, 'flops' if line.kind == 'compute' else 'bytes')}"
    if line.kind == "compute":
        at = y(line.rate_per_s / 1e9)
        drawn = element("line", x1=x.begin, x2=x.end, y1=at, y2=at, class_=f"ceiling c{i % 6}")
        first = all(other.kind != "compute" or other is line for other in result.ceilings[: i + 1])
        return mark(drawn, told) + text(told, x.begin + 8, at - 5 if first else at + 14, class_="axis line-label")
    top = max([c.rate_per_s for c in result.ceilings if c.kind == "compute"], default=y.high * 1e9)
    left, right = max(x.low, y.low * 1e9 / line.rate_per_s), min(x.high, min(top, y.high * 1e9) / line.rate_per_s)
    if left >= right:
        return ""
    ends = [(x(at), y(at * line.rate_per_s / 1e9)) for at in (left, right)]
    drawn = element("line", x1=ends[0][0], y1=ends[0][1], x2=ends[1][0], y2=ends[1][1], class_=f"ceiling c{i % 6}")
    return mark(drawn, told)


def _point_tip(point: Point) -> str:
    reached = ", ".join(f"{percent(value)} of {name}" for name, value in sorted(point.fractions.items(), key=lambda one: -one[1]))
    return "\n".join(
        [
            point.operator,
            f"{format_rate(point.flops_per_s, 'flops')} at {point.intensity:.3g} flops a byte",
            f"{format_time(point.time_s)}, bound by {point.binder}",
            f"reached: {reached}" if reached else "no ceiling to hold it against",
        ]
    )


def _labels(names: Sequence[str], at: Sequence[tuple[float, float]]) -> str:
    places = place_labels(names, at, (_LEFT, _TOP, WIDTH - 2, at[0][1] + WIDTH), _CHAR)
    return "".join(text(names[i], x, y, class_="axis point-label", aria_hidden="true") for i, (x, y) in places.items())


def place_labels(
    names: Sequence[str], at: Sequence[tuple[float, float]], bounds: tuple[float, float, float, float], char: float
) -> dict[int, tuple[float, float]]:
    """Where names fit beside their points without covering a point or another name; those that fit nowhere are told on hover only.

    Args:
        at: points, y downwards.
        bounds: left, top, right, bottom.
        char: width of a character; the rest of the text is in proportion to it.

    Returns:
        Left end of the base line of each name that fits, by its number.
    """
    unit = char / 6.2
    taken = [(x - 6 * unit, y - 6 * unit, x + 6 * unit, y + 6 * unit) for x, y in at]
    places = {}
    for i in sorted(range(len(names)), key=lambda i: at[i][1]):
        (px, py), wide = at[i], char * len(names[i])
        left = -9 * unit - wide
        around = ((9, 4), (None, 4), (0, -10), (0, 18), (9, -9), (9, 17), (None, -9), (None, 17))
        for right_of, below in around:
            dx = left if right_of is None else -wide / 2 if right_of == 0 else right_of * unit
            x, y = px + dx, py + below * unit
            box = (x, y - 10 * unit, x + wide, y + 2 * unit)
            inside = box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]
            if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                places[i] = (x, y)
                break
    return places


def timeline(result: Timeline) -> str:
    """Ranks as rows; in each a lane of what it computes and waits for, and one of what travels."""
    network = any(bar.lane == "network" for bar in result.bars)
    ranks = sorted({bar.rank for bar in result.bars})[:SHOWN_RANKS]
    high, thin = 26, 12
    row = high + (thin + 3 if network else 0) + 12
    bottom = _TOP + row * len(ranks)
    x = Scale(0.0, result.end_s * 1e3, _LEFT, WIDTH - _RIGHT)
    parts = [x_axis(x, bottom, "ms since the iteration began", _TOP)]
    for i, rank in enumerate(ranks):
        top = _TOP + i * row
        parts.append(text(f"rank {rank}", _LEFT - 8, top + high / 2 + 4, class_="axis", text_anchor="end"))
        if network:
            parts.append(text("network", _LEFT - 8, top + high + thin + 1, class_="axis small", text_anchor="end"))
        for bar in (bar for bar in result.bars if bar.rank == rank):
            at, tall = (top, high) if bar.lane == "compute" else (top + high + 3, thin)
            parts.append(_bar(bar, x, at, tall))
    return figure(f"Timeline of one iteration, {result.source}", bottom + _BOTTOM, *parts)


def _bar(bar: Bar, x: Scale, top: float, tall: float) -> str:
    left, right = x(bar.begin_s * 1e3), x(bar.end_s * 1e3)
    kind = "network" if bar.lane == "network" else "waiting" if bar.waiting else family(bar.operator)
    what = "in flight" if bar.lane == "network" else "waits" if bar.waiting else "computes"
    tip = (
        f"{bar.operator}\nrank {bar.rank} {what} {format_time(bar.end_s - bar.begin_s)}\n"
        f"from {ms(bar.begin_s)} to {ms(bar.end_s)} ms"
    )
    shape = element("rect", x=left, y=top, width=max(right - left, 0.6), height=tall, class_=f"bar {_css(kind)}")
    (short,) = operator_names([bar.operator], 0)
    if tall > 14 and right - left > _CHAR * len(short) + 6:
        shape += text(short, (left + right) / 2, top + tall / 2 + 4, class_="in-bar", text_anchor="middle")
    return mark(shape, tip)


@dataclass(frozen=True)
class RatioRow:
    """A ratio with its interval, one line of a figure."""

    name: str
    low: float
    median: float
    high: float
    tip: str
    strong: bool = True


def ratios(label: str, rows: Sequence[RatioRow], axis: str) -> str:
    """Intervals on a logarithmic axis around a line at 1."""
    left, row = 176, 19
    bottom = _TOP + row * len(rows) + 4
    low, high = min([row.low for row in rows] + [0.8]) / 1.05, max([row.high for row in rows] + [1.25]) * 1.05
    x = Scale(max(low, 0.02), min(high, 50.0), left, WIDTH - _RIGHT, log=True)
    parts = [x_axis(x, bottom, axis, _TOP), element("line", x1=x(1), x2=x(1), y1=_TOP - 4, y2=bottom, class_="reference")]
    names = operator_names([one.name for one in rows], 80)
    for i, (one, name) in enumerate(zip(rows, names, strict=True)):
        at = _TOP + row * i + row / 2
        ends = [x(min(max(value, x.low), x.high)) for value in (one.low, one.high)]
        weak = "" if one.strong else " weak"
        shape = element("line", x1=ends[0], x2=max(ends[1], ends[0] + 1), y1=at, y2=at, class_=f"interval{weak}")
        shape += element("circle", cx=x(min(max(one.median, x.low), x.high)), cy=at, r=4, class_=f"median{weak}")
        shape += element("rect", x=left, y=at - row / 2, width=WIDTH - _RIGHT - left, height=row, class_="hit")
        parts.append(text(name, left - 8, at + 4, class_="axis", text_anchor="end") + mark(shape, one.tip))
    return figure(label, bottom + _BOTTOM, *parts)


def stacked(
    label: str, loads: Sequence[Load], parts_of: Callable[[Load], Sequence[Part]], scale: float, axis: str, tell: Callable[[float], str]
) -> str:
    """A bar a rank, of parts side by side.

    Args:
        parts_of: Memory or time of a rank.
        scale: Of a value in the axis' unit.
        tell: A value with its unit.
    """
    shown = loads[:SHOWN_RANKS]
    row, tall = 34, 24
    bottom = _TOP + row * len(shown)
    most = max(sum(part.value for part in parts_of(load)) for load in shown) or 1.0
    x = Scale(0.0, most / scale, _LEFT, WIDTH - _RIGHT)
    drawn = [x_axis(x, bottom, axis, _TOP)]
    for i, load in enumerate(shown):
        top, at = _TOP + row * i, 0.0
        drawn.append(text(f"rank {load.rank}", _LEFT - 8, top + tall / 2 + 4, class_="axis", text_anchor="end"))
        for part in parts_of(load):
            left, right = x(at / scale), x((at + part.value) / scale)
            at += part.value
            shape = element("rect", x=left, y=top, width=max(right - left, 0.3), height=tall, class_=f"bar {_css(part.family)}")
            if right - left > _CHAR * len(part.name) + 6:
                shape += text(part.name, (left + right) / 2, top + tall / 2 + 4, class_="in-bar", text_anchor="middle")
            drawn.append(mark(shape, f"rank {load.rank}: {part.name}\n{tell(part.value)}"))
    return figure(label, bottom + _BOTTOM, *drawn)


def legend(names: Sequence[str]) -> str:
    """Colours of families of passes, or of kinds of tables."""
    keys = [f'<li><svg viewBox="0 0 14 14" aria-hidden="true">{_swatch(name)}</svg>{escape(name)}</li>' for name in names]
    return f'<ul class="legend">{"".join(keys)}</ul>'


def binder_legend(binders: Sequence[str]) -> str:
    words = {"none": "none: below 60 % of every ceiling"}
    keys = [
        f'<li><svg viewBox="0 0 14 14" aria-hidden="true">{binder_shape(name, 7, 7, 4.5)}</svg>{escape(words.get(name, name))}</li>'
        for name in binders
    ]
    return f'<ul class="legend">{"".join(keys)}</ul>'


def line_legend(lines: Sequence[Ceiling]) -> str:
    keys = []
    for i, line in enumerate(lines):
        drawn = element("line", x1=0, x2=30, y1=7, y2=7, class_=f"ceiling c{i % 6}")
        rate = format_rate(line.rate_per_s, "flops" if line.kind == "compute" else "bytes")
        keys.append(f'<li><svg class="long" viewBox="0 0 30 14" aria-hidden="true">{drawn}</svg>{escape(f"{line.name}, {rate}")}</li>')
    return f'<ul class="legend">{"".join(keys)}</ul>'


def _swatch(name: str) -> str:
    return element("rect", x=1, y=1, width=12, height=12, class_=f"bar {_css(name)}")


