from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from autotune.config.tuned import Interval, TunedConfig
from autotune.report.json import to_json


@dataclass(frozen=True)
class _Row:
    time_s: Interval
    intensity: float


@dataclass(frozen=True)
class _Result:
    rows: tuple[_Row, ...]
    file: Path


def test_a_dataclass_of_anything_becomes_json_with_its_schema_first() -> None:
    result = _Result((_Row(Interval(median=1.0, low=0.5, high=2.0, samples=3), float("inf")),), Path("a/b"))
    text = to_json(result)
    assert text.startswith('{\n  "schema": 1,')
    assert json.loads(text) == {
        "schema": 1,
        "rows": [{"time_s": {"median": 1.0, "low": 0.5, "high": 2.0, "samples": 3}, "intensity": None}],
        "file": "a/b",
    }


def test_a_tuned_config_keeps_the_keys_of_its_file(tuned_config: TunedConfig) -> None:
    values = json.loads(to_json(tuned_config))
    assert next(iter(values)) == "schema"
    assert "schema_version" not in values
    assert values["config"]["operators"]["embedding_bag.forward"]["prefetch_distance"] == 16


def test_what_is_no_result_is_refused() -> None:
    with pytest.raises(TypeError, match="no JSON for a set"):
        to_json({"a": {1}})
