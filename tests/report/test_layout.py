from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autotune.report.layout import Column, fit, table, to_text

COLUMNS = [
    Column("operator", ["embedding_bag.forward", "other"], justify="left"),
    Column("ms", ["12.3", "0.123"]),
    Column("GB/s", ["19.7", "-"], need=7),
    Column("F/B", ["0.25", "-"], need=5),
]


def test_what_is_needed_least_goes_first() -> None:
    assert [column.title for column in fit(COLUMNS, 80)] == ["operator", "ms", "GB/s", "F/B"]
    assert [column.title for column in fit(COLUMNS, 36)] == ["operator", "ms", "GB/s"]
    assert [column.title for column in fit(COLUMNS, 30)] == ["operator", "ms"]
    assert [column.title for column in fit(COLUMNS, 5)] == ["operator", "ms"]


def test_a_column_without_content_is_left_out() -> None:
    assert fit([Column("a", ["x"]), Column("b", [""])], 80) == [Column("a", ["x"])]


@given(st.integers(min_value=20, max_value=120))
def test_no_line_is_wider_than_asked_and_no_number_is_broken(width: int) -> None:
    text = to_text(table(COLUMNS, width), width)
    assert len(text.splitlines()) == 3
    assert all(len(line) <= width for line in text.splitlines())
    assert "12.3" in text
    assert "0.123" in text


def test_brackets_in_names_are_no_markup() -> None:
    assert "small[max_rows=10]" in to_text(table([Column("model", ["small[max_rows=10]"])], 40), 40)
