"""The common ground of every file people keep: frozen, strict, versioned."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Frozen(BaseModel):
    """Immutable and strict: unknown keys are refused by name, and no value is coerced silently. Its validator is built at first use."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def rule_error(at: Sequence[str | int], rule: str, got: object, step: str) -> PydanticCustomError:
    """A violated rule, for a validator to raise. `at` is the path below what is validated: the file loader adds it to the place."""
    return PydanticCustomError("autotune", "{rule}, got {got}; {step}", {"rule": rule, "got": got, "step": step, "at": tuple(at)})
