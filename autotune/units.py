"""Numbers with units, at the edge only: inside the package everything is SI (seconds, bytes, flops per second)."""

from __future__ import annotations

import math
import re
from typing import Literal

from autotune.errors import InputError

_TIME_UNITS = ((1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h"))
_BINARY_UNITS = tuple((1024.0**i, unit) for i, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB")))
_DECIMAL_PREFIXES = tuple((1000.0**i, prefix) for i, prefix in enumerate(("", "k", "M", "G", "T", "P")))

_DURATION_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|min|m|h)\s*", re.ASCII)
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_BYTES_OF: dict[str, int] = {unit.lower(): 1024**i for i, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))} | {
    unit.lower(): 1000**i for i, unit in enumerate(("B", "kB", "MB", "GB", "TB", "PB"))
}
_SIZE = re.compile(r"(\d{1,18})(?:\.(\d{0,18}))?\s*([A-Za-z]*)", re.ASCII)


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent below a million."""
    if value >= 1e6:
        return f"{value:.3g}"
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """`value` in the largest unit of which it holds at least one, after rounding."""
    if not math.isfinite(value):
        return f"{value} {units[0][1]}".rstrip()
    sign, size = ("-" if value < 0 else ""), abs(value)
    chosen = units[0]
    for scale, unit in units[1:]:
        if float(f"{size / scale:.3g}") >= 1:
            chosen = (scale, unit)
    return f"{sign}{_three_digits(size / chosen[0])} {chosen[1]}".rstrip()


def format_bytes(size_bytes: float) -> str:
    """A size in binary units, three significant digits: ``1536 -> '1.50 KiB'``, ``512 -> '512 B'``."""
    if abs(size_bytes) < 1024 and float(size_bytes).is_integer():
        return f"{int(size_bytes)} B"
    return _scaled(size_bytes, _BINARY_UNITS)


def format_time(time_s: float) -> str:
    """A duration, three significant digits, from ns to h: ``0.0123 -> '12.3 ms'``."""
    if time_s == 0:
        return "0 s"
    if not math.isfinite(time_s):
        return f"{time_s} s"
    # Minutes and hours begin late: "90.0 s" reads better than "1.50 min".
    return _scaled(time_s, _TIME_UNITS[:4] if abs(time_s) < 600 else _TIME_UNITS)


def format_rate(rate_per_s: float, unit: Literal["flops", "bytes"]) -> str:
    """Flops per second or bytes per second in decimal units: ``2.03e11, 'flops' -> '203 GF/s'``; ``3.1e10, 'bytes' -> '31.0 GB/s'``."""
    suffix = "F/s" if unit == "flops" else "B/s"
    return _scaled(rate_per_s, tuple((scale, prefix + suffix) for scale, prefix in _DECIMAL_PREFIXES))


def parse_duration(text: str | float) -> float:
    """Seconds, from ``120s``, ``2m``, ``1h30m``, ``500ms``, ``236us`` or a plain number of seconds.

    Raises:
        InputError: it is no duration, or not positive and finite.
    """
    if isinstance(text, str):
        stripped, time_s = text.strip(), None
        if _NUMBER.fullmatch(stripped):
            time_s = float(stripped)
        else:
            parts = _DURATION_PART.findall(stripped)
            if parts and not _DURATION_PART.sub("", stripped):
                time_s = sum(float(number) * _DURATION_S[unit] for number, unit in parts)
        if time_s is None:
            raise InputError(f"a duration is a number with us, ms, s, m or h, got {text!r}; write for example 120s, 2m or 1h30m")
    else:
        time_s = float(text)
    if not (math.isfinite(time_s) and time_s > 0):
        raise InputError(f"a duration must be positive and finite, got {text!r}; write for example 120s, 2m or 1h30m")
    return time_s


def parse_bytes(text: str | int) -> int:
    """Bytes, from ``24GiB`` (binary), ``2GB`` (decimal), ``1.5 MiB`` or a plain count; fractions of a byte are cut off.

    Raises:
        InputError: it is no size, or is negative.
    """
    hint = "write for example 24GiB (1024-based), 2GB (1000-based) or a number of bytes"
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise InputError(f"a size must not be negative, got {text}; {hint}")
        return text
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    unit_bytes = _BYTES_OF.get(match[3].lower() or "b") if match else None
    if match is None or unit_bytes is None:
        raise InputError(f"a size is a number with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, got {text!r}; {hint}")
    fraction = match[2] or ""
    return int(match[1] + fraction) * unit_bytes // int(10 ** len(fraction))


def plural(count: int, what: str) -> str:
    """``1 thread``, ``2 threads``"""
    return f"{count} {what}{'' if count == 1 else 's'}"
