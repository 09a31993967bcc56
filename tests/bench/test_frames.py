"""Results as pandas frames."""

from dataclasses import dataclass

import pytest

from autotune.bench.frames import frame_of
from autotune.config.profile import TimePoint
from autotune.config.tuned import Interval


@dataclass(frozen=True)
class Row:
    key: str
    time_s: Interval
    fractions: dict[str, float]


def test_intervals_and_mappings_become_columns() -> None:
    interval = Interval(median=2.0, low=1.0, high=3.0, samples=9)
    frame = frame_of([Row("a", interval, {"memory": 0.5}), Row("b", interval, {"compute": 0.7})])
    assert list(frame["time_s"]) == [2.0, 2.0]
    assert frame.loc[0, "time_s_low"] == 1.0
    assert frame.loc[0, "fractions_memory"] == 0.5
    assert frame["fractions_compute"].isna().tolist() == [True, False]


def test_models_are_rows_too() -> None:
    assert frame_of([TimePoint(threads=2, time_s=1e-6)]).to_dict("records") == [{"threads": 2, "time_s": 1e-6}]


def test_no_rows_give_an_empty_frame() -> None:
    assert frame_of([]).empty


def test_what_is_no_row_is_refused() -> None:
    with pytest.raises(TypeError, match="got int"):
        frame_of([1])
