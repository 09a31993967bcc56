from __future__ import annotations

import pytest

from autotune.report.numbers import ms, number, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.012"), (0.9996, "1.00"), (1.234, "1.23"), (9.996, "10.0"), (123.4, "123"), (None, "-"), (float("inf"), "-"), (0, "0.000")],
)
def test_three_digits_without_an_exponent(value: float | None, text: str) -> None:
    assert number(value) == text


def test_milliseconds() -> None:
    assert ms(0.0123) == "12.3"


@pytest.mark.parametrize(("share", "text"), [(0.5, "50%"), (0.004, "0.4%"), (1.0, "100%"), (0.0, "0%"), (None, "-")])
def test_shares(share: float | None, text: str) -> None:
    assert percent(share) == text
