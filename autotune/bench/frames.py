"""Any table of results as a pandas frame: one line per row, plain columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from autotune.config.tuned import Interval

if TYPE_CHECKING:
    import pandas as pd


def frame_of(rows: Iterable[Any]) -> pd.DataFrame:
    """Rows, dataclasses or models of one kind, as a frame.

    An interval ``time_s`` becomes the columns ``time_s`` (its median), ``time_s_low``, ``time_s_high`` and ``time_s_samples``; a mapping
    ``fractions`` becomes ``fractions_<key>``. All else stays as it is.
    """
    import pandas as pd

    return pd.DataFrame([dict(_columns(row)) for row in rows])


def _columns(row: Any) -> Iterable[tuple[str, Any]]:
    for name, value in _fields(row):
        if isinstance(value, Interval):
            yield name, value.median
            yield f"{name}_low", value.low
            yield f"{name}_high", value.high
            yield f"{name}_samples", value.samples
        elif isinstance(value, Mapping):
            yield from ((f"{name}_{key}", entry) for key, entry in value.items())
        else:
            yield name, value


def _fields(row: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(row, BaseModel):
        return [(name, getattr(row, name)) for name in (*type(row).model_fields, *type(row).model_computed_fields)]
    if is_dataclass(row):
        return [(field.name, getattr(row, field.name)) for field in fields(row)]
    raise TypeError(f"a row of a table must be a dataclass or a model, got {type(row).__name__}")
