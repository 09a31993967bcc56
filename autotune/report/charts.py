"""Charts as SVG: each takes a part of the explanation and lays it out; nothing is computed but positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from autotune.explaining.loads import Load, Part
from autotune.explaining.roofline import Ceiling, Point, Roofline
from autotune.explaining.terms import family
from autotune.explaining.timeline import Bar, Timeline
from autotune.ops.base import families
from autotune.report.layout import operator_names
from autotune.report.numbers import ms, percent
from autotune.report.svg import CHAR, WIDTH, Key, Scale, binder_shape, element, figure, mark, text, x_axis, y_axis
from autotune.units import format_rate, format_time

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 44
SHOWN_RANKS = 16
"""Ranks that a timeline and stacked bars draw at most; the caption counts the others."""


def _css(name: str) -> str:
    """``embedding forward`` -> ``f-embedding-forward``."""
    return "f-" + name.lower().replace(" ", "-")


def _look(family: str) -> dict[str, str]:
    """Attributes of a bar: its class, and the family's own colour for one that the style sheet does not know."""
    colours = {each.name: each.colour for each in families()}
    return {"class_": f"bar {_css(family)}", "fill": colours.get(family, colours["other"])}


def roofline(result: Roofline) -> Markup:
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
    keys = [*_binders(dict.fromkeys(point.binder for point in result.points)), *_ceilings(result.ceilings)]
    return figure("Roofline of every operator pass", height, axes, lines, points, _labels(names, at), keys=keys)


def _line(line: Ceiling, i: int, result: Roofline, x: Scale, y: Scale) -> str:
    label = f"{line.name}: {format_rate(line.rate_per_s, 'flops' if line.kind == 'compute' else 'bytes')}"
    if line.kind == "compute":
        at = y(line.rate_per_s / 1e9)
        drawn = element("line", x1=x.begin, x2=x.end, y1=at, y2=at, class_=f"ceiling c{i % 6}")
        first = all(other.kind != "compute" or other is line for other in result.ceilings[: i + 1])
        return mark(drawn, label) + text(label, x.begin + 8, at - 5 if first else at + 14, class_="axis line-label")
    top = max([c.rate_per_s for c in result.ceilings if c.kind == "compute"], default=y.high * 1e9)
    left, right = max(x.low, y.low * 1e9 / line.rate_per_s), min(x.high, min(top, y.high * 1e9) / line.rate_per_s)
    if left >= right:
        return ""
    ends = [(x(at), y(at * line.rate_per_s / 1e9)) for at in (left, right)]
    drawn = element("line", x1=ends[0][0], y1=ends[0][1], x2=ends[1][0], y2=ends[1][1], class_=f"ceiling c{i % 6}")
    return mark(drawn, label)


def _point_tip(point: Point) -> str:
    reached = ", ".join(f"{percent(value)} of {name}" for name, value in sorted(point.fractions.items(), key=lambda entry: -entry[1]))
    return "\n".join(
        [
            point.operator,
            f"{format_rate(point.flops_per_s, 'flops')} at {point.intensity:.3g} flops a byte",
            f"{format_time(point.time_s)}, bound by {point.binder}",
            f"reached: {reached}" if reached else "no ceiling to hold it against",
        ]
    )


def _labels(names: Sequence[str], at: Sequence[tuple[float, float]]) -> str:
    places = place_labels(names, at, (_LEFT, _TOP, WIDTH - 2, at[0][1] + WIDTH), CHAR)
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


def timeline(result: Timeline) -> Markup:
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
    kinds = {_kind(bar) for bar in result.bars}
    keys = _colours(name for name in (*(each.name for each in families()), "network") if name in kinds)
    return figure(f"Timeline of one iteration, {result.source}", bottom + _BOTTOM, *parts, keys=keys)


def _kind(bar: Bar) -> str:
    """Family of a pass, ``waiting`` or ``network``: it decides the colour."""
    return "network" if bar.lane == "network" else "waiting" if bar.waiting else family(bar.operator)


def _bar(bar: Bar, x: Scale, top: float, tall: float) -> str:
    left, right = x(bar.begin_s * 1e3), x(bar.end_s * 1e3)
    what = "in flight" if bar.lane == "network" else "waits" if bar.waiting else "computes"
    tip = f"{bar.operator}\nrank {bar.rank} {what} {format_time(bar.end_s - bar.begin_s)}\nfrom {ms(bar.begin_s)} to {ms(bar.end_s)} ms"
    (short,) = operator_names([bar.operator], 0)
    return mark(_box(left, right, top, tall, _kind(bar), short if tall > 14 else "", least=0.6), tip)


def _box(left: float, right: float, top: float, tall: float, family: str, name: str, least: float) -> str:
    """A bar in the colour of its family, at least so wide that it is seen, with its name inside where that fits."""
    shape = element("rect", x=left, y=top, width=max(right - left, least), height=tall, **_look(family))
    if name and right - left > CHAR * len(name) + 6:
        shape += text(name, (left + right) / 2, top + tall / 2 + 4, class_="in-bar", text_anchor="middle")
    return shape


@dataclass(frozen=True)
class RatioRow:
    """A ratio with its interval, one line of a figure."""

    name: str
    low: float
    median: float
    high: float
    tip: str
    strong: bool = True


def ratios(label: str, rows: Sequence[RatioRow], axis: str) -> Markup:
    """Intervals on a logarithmic axis around a line at 1."""
    left, pitch = 176, 19
    bottom = _TOP + pitch * len(rows) + 4
    low, high = min([row.low for row in rows] + [0.8]) / 1.05, max([row.high for row in rows] + [1.25]) * 1.05
    x = Scale(max(low, 0.02), min(high, 50.0), left, WIDTH - _RIGHT, log=True)
    parts = [x_axis(x, bottom, axis, _TOP), element("line", x1=x(1), x2=x(1), y1=_TOP - 4, y2=bottom, class_="reference")]
    names = operator_names([row.name for row in rows], 80)
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        at = _TOP + pitch * i + pitch / 2
        ends = [x(min(max(value, x.low), x.high)) for value in (row.low, row.high)]
        weak = "" if row.strong else " weak"
        shape = element("line", x1=ends[0], x2=max(ends[1], ends[0] + 1), y1=at, y2=at, class_=f"interval{weak}")
        shape += element("circle", cx=x(min(max(row.median, x.low), x.high)), cy=at, r=4, class_=f"median{weak}")
        shape += element("rect", x=left, y=at - pitch / 2, width=WIDTH - _RIGHT - left, height=pitch, class_="hit")
        parts.append(text(name, left - 8, at + 4, class_="axis", text_anchor="end") + mark(shape, row.tip))
    return figure(label, bottom + _BOTTOM, *parts)


def stacked(
    label: str, loads: Sequence[Load], parts_of: Callable[[Load], Sequence[Part]], scale: float, axis: str, tell: Callable[[float], str]
) -> Markup:
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
            shape = _box(left, right, top, tall, part.family, part.name, least=0.3)
            drawn.append(mark(shape, f"rank {load.rank}: {part.name}\n{tell(part.value)}"))
    kinds = dict.fromkeys(part.family for load in loads for part in parts_of(load))
    return figure(label, bottom + _BOTTOM, *drawn, keys=_colours(kinds))


def _colours(families: Iterable[str]) -> list[Key]:
    """Legend of families of passes, or of kinds of tables."""
    return [Key(element("rect", x=1, y=1, width=12, height=12, **_look(name)), name) for name in families]


def _binders(binders: Iterable[str]) -> Iterator[Key]:
    for binder in binders:
        yield Key(binder_shape(binder, 7, 7, 4.5), "none: below 60 % of every ceiling" if binder == "none" else binder)


def _ceilings(ceilings: Sequence[Ceiling]) -> Iterator[Key]:
    for i, ceiling in enumerate(ceilings):
        rate = format_rate(ceiling.rate_per_s, "flops" if ceiling.kind == "compute" else "bytes")
        yield Key(element("line", x1=0, x2=30, y1=7, y2=7, class_=f"ceiling c{i % 6}"), f"{ceiling.name}, {rate}", 30)
