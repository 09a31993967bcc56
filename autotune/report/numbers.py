"""Numbers as they stand in a table: three significant digits, no exponent, the unit in the column's title."""

from __future__ import annotations

import math
from collections.abc import Mapping

from autotune.config.tuned import Interval, Prediction
from autotune.units import format_time

NONE = "-"


def number(value: float | None) -> str:
    """Three significant digits: ``0.0123``, ``1.23``, ``123``; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size >= 99.95:
        return f"{value:.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.9995 else f"{value:.3f}"


def ms(time_s: float) -> str:
    return number(time_s * 1e3)


def ms_range(interval: Interval) -> str:
    """``11.9-12.8``: the 95 % interval in milliseconds."""
    return f"{ms(interval.low)}-{ms(interval.high)}"


def giga(rate_per_s: float | None) -> str:
    return number(None if rate_per_s is None else rate_per_s / 1e9)


def percent(share: float | None) -> str:
    """``12%``, ``0.4%``; a dash where there is none."""
    if share is None or not math.isfinite(share):
        return NONE
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}"


def time_interval(interval: Interval) -> str:
    """``12.3 ms (11.9 ms .. 12.8 ms, 30 samples)``"""
    return f"{format_time(interval.median)} ({format_time(interval.low)} .. {format_time(interval.high)}, {interval.samples} samples)"


def speedup(interval: Interval) -> str:
    """``1.21x``"""
    return f"{interval.median:.2f}x"


def speedup_range(interval: Interval) -> str:
    return f"{interval.low:.2f}-{interval.high:.2f}"


def prediction_range(prediction: Prediction) -> str:
    """``12.3 (11.0-13.9)``, milliseconds."""
    return f"{ms(prediction.time_s)} ({ms(prediction.low_s)}-{ms(prediction.high_s)})"


def bound(binder: str, fractions: Mapping[str, float]) -> str:
    """``memory 91%``: the binder and the highest fraction reached."""
    return f"{binder} {percent(max(fractions.values()))}" if fractions else binder


def one_knob_a_line(knobs: str) -> str:
    return "\n".join(knob.replace(" -> ", "->") for knob in knobs.split(", "))
