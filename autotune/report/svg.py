"""SVG as text: elements with everything escaped, marks that carry their numbers, and the axes that figures share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH = 760
"""Width of every figure, in the units of its viewBox: the page scales it."""
CHAR = 6.2
"""Width of a character of the figures' small text, in the same units."""


def element(tag: str, *children: str, **attributes: object) -> str:
    """``element("text", escape("a"), x=1, class_="axis", text_anchor="end")``; children are markup, attributes are escaped."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_value(value), quote=True)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = "".join(children)
    return f"<{tag}{named}>{inside}</{tag}>" if inside else f"<{tag}{named}/>"


def text(content: str, x: float, y: float, **attributes: object) -> str:
    return element("text", escape(content), x=x, y=y, **attributes)


def mark(shape: str, tip: str) -> str:
    """A shape with its numbers: a native tooltip without script, hover and keyboard focus with it."""
    return element("g", element("title", escape(tip)), shape, class_="mark", aria_label=tip)


def figure(label: str, height: float, *children: str, keys: Sequence[Key] = ()) -> Markup:
    """The root element of one figure, `height` without its legend, which is below."""
    legend, legend_height = _legend(keys, height)
    view = f"0 0 {WIDTH} {_value(height + legend_height)}"
    return Markup(element("svg", *children, *legend, viewBox=view, role="group", aria_label=label))


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    shape: str
    """Markup within a box of `width` x 14."""
    label: str
    width: float = 14


def _legend(keys: Sequence[Key], top: float) -> tuple[list[str], float]:
    """Entries in as many lines as they need, and the height of all."""
    x, y, entries = 14.0, top + 2, []
    for key in keys:
        wide = key.width + 6 + CHAR * len(key.label)
        if x + wide > WIDTH and x > 14:
            x, y = 14.0, y + 20
        shape = element("g", key.shape, transform=f"translate({_value(x)} {_value(y)})")
        entries.append(shape + text(key.label, x + key.width + 6, y + 11, class_="axis"))
        x += wide + 18
    return entries, y + 24 - top if keys else 0.0


def _value(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Scale:
    """From values to positions along an axis."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        at, low, high = (math.log(v) if self.log else v for v in (max(value, 1e-300) if self.log else value, self.low, self.high))
        return self.begin + (at - low) / (high - low) * (self.end - self.begin)

    def ticks(self, wanted: int = 6) -> list[float]:
        """Round values within the range: decades, with 2 and 5 between them where there are few."""
        if self.log:
            steps = (1.0,) if math.log10(self.high / self.low) > 3 else (1.0, 2.0, 5.0)
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return [step * 10.0**d for d in decades for step in steps if self.low <= step * 10.0**d * 1.0000001 <= self.high * 1.0000002]
        rough = (self.high - self.low) / wanted
        base = 10.0 ** math.floor(math.log10(rough))
        step = next(step * base for step in (1, 2, 5, 10) if step * base >= rough)
        return [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step * 1.0000001) + 1)]


def tick_label(value: float) -> str:
    """``0.5``, ``20``, ``1000``: no exponent, no needless zeros."""
    return f"{value:.6g}" if value < 1e6 else f"{value:.0e}".replace("e+0", "e")


def x_axis(scale: Scale, y: float, title: str, top: float) -> str:
    """Grid lines from `top` down to the axis at `y`, tick labels below, the title under them."""
    parts = []
    for tick in scale.ticks():
        at = scale(tick)
        parts.append(element("line", x1=at, x2=at, y1=top, y2=y, class_="grid"))
        parts.append(text(tick_label(tick), at, y + 16, class_="axis", text_anchor="middle"))
    middle = (scale.begin + scale.end) / 2
    return "".join(parts) + text(title, middle, y + 34, class_="axis title", text_anchor="middle")


def y_axis(scale: Scale, x: float, title: str, right: float) -> str:
    """Grid lines from the axis at `x` to `right`, tick labels to the left, the title along them."""
    parts = []
    for tick in scale.ticks():
        at = scale(tick)
        parts.append(element("line", x1=x, x2=right, y1=at, y2=at, class_="grid"))
        parts.append(text(tick_label(tick), x - 6, at + 4, class_="axis", text_anchor="end"))
    middle = (scale.begin + scale.end) / 2
    return "".join(parts) + text(title, 14, middle, class_="axis title", text_anchor="middle", transform=f"rotate(-90 14 {middle:.1f})")


def binder_shape(binder: str, x: float, y: float, size: float = 5.0) -> str:
    """A shape of its own for every binder, so that colour is not needed to tell them apart."""
    kind = f"point b-{binder}"
    if binder == "memory":
        return element("circle", cx=x, cy=y, r=size, class_=kind)
    if binder == "compute":
        return element("rect", x=x - size, y=y - size, width=2 * size, height=2 * size, class_=kind)
    if binder == "network":
        return _polygon([(x, y - 1.2 * size), (x + 1.2 * size, y + size), (x - 1.2 * size, y + size)], kind)
    return _polygon([(x, y - 1.3 * size), (x + 1.3 * size, y), (x, y + 1.3 * size), (x - 1.3 * size, y)], kind)


def _polygon(points: Sequence[tuple[float, float]], kind: str) -> str:
    return element("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=kind)
