"""Any result as JSON: `schema` first, names with their units, no text that has to be parsed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

# 1: first version.
RESULT_SCHEMA = 1


def to_plain(value: Any) -> Any:
    """Dicts, lists, numbers and strings of a result. An infinite or undefined number becomes null, which JSON can hold.

    Raises:
        TypeError: a value that is no result: a bug in the caller.
    """
    if isinstance(value, BaseModel):
        return to_plain(value.model_dump(mode="json", by_alias=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no JSON for a {type(value).__name__}")


def to_json(result: Any, **extra: Any) -> str:
    """JSON text of one result, with a line break at its end; `extra` entries follow those of the result."""
    plain = to_plain(result)
    if not isinstance(plain, dict):
        plain = {"results": plain}
    entries = {"schema": plain.pop("schema", RESULT_SCHEMA), **plain, **{key: to_plain(entry) for key, entry in extra.items()}}
    return json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
