from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.units import format_bytes, format_rate, format_time, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (24 * 2**30, "24.0 GiB"),
        (2**20 - 1, "1.00 MiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_bytes_are_shown_in_binary_units(size_bytes: float, text: str) -> None:
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0, "0 s"),
        (0.0123, "12.3 ms"),
        (4.56e-5, "45.6 us"),
        (7e-9, "7.00 ns"),
        (0.9996e-3, "1.00 ms"),
        (90, "90.0 s"),
        (1200, "20.0 min"),
        (36000, "10.0 h"),
        (-0.002, "-2.00 ms"),
        (float("nan"), "nan s"),
        (float("inf"), "inf s"),
    ],
)
def test_times_are_shown_with_three_digits(time_s: float, text: str) -> None:
    assert format_time(time_s) == text


def test_rates_are_shown_in_decimal_units() -> None:
    assert format_rate(2.03e11, "flops") == "203 GF/s"
    assert format_rate(3.1e10, "bytes") == "31.0 GB/s"
    assert format_rate(0, "bytes") == "0.00 B/s"


@pytest.mark.parametrize(
    ("text", "time_s"),
    [
        ("120s", 120),
        ("2m", 120),
        ("2 min", 120),
        ("1h", 3600),
        ("90", 90),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("236us", 236e-6),
        ("1.5h", 5400),
        (" 3s ", 3),
        (7, 7),
    ],
)
def test_a_duration_is_seconds(text: str | float, time_s: float) -> None:
    assert parse_duration(text) == pytest.approx(time_s)


@pytest.mark.parametrize("text", ["", "s", "12x", "1 2", "-5s", "0", "0s", "1e999", "nan", "inf", "2m!", float("nan"), -1])
def test_a_bad_duration_is_refused_with_an_example(text: str | float) -> None:
    with pytest.raises(InputError, match="write for example 120s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("24GiB", 24 * 2**30),
        ("2GB", 2 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        ("512", 512),
        ("1kB", 1000),
        (" 7b ", 7),
        (123, 123),
        ("0.1kB", 100),
    ],
)
def test_a_size_is_bytes(text: str | int, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "24G", "-1", -1, "1e3", "2 XB", True, "9" * 5000])
def test_a_bad_size_is_refused_with_an_example(text: str | int) -> None:
    with pytest.raises(InputError, match="write for example 24GiB"):
        parse_bytes(text)


@given(st.floats(min_value=1e-9, max_value=1e7))
def test_a_shown_time_is_right_within_its_digits(time_s: float) -> None:
    number, unit = format_time(time_s).split()
    scale = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}[unit]
    assert float(number) * scale == pytest.approx(time_s, rel=0.006)


@given(st.integers(min_value=0, max_value=2**50))
def test_a_plain_count_of_bytes_is_itself(size_bytes: int) -> None:
    assert parse_bytes(str(size_bytes)) == parse_bytes(size_bytes) == size_bytes


def test_absurd_sizes_stay_short() -> None:
    assert format_bytes(1e300) == "8.88e+284 PiB"
