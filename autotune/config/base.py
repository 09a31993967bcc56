"""The common ground of every file people keep: frozen, strict, versioned."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

MAX_SEED = 2**42 - 1
"""Seeds of single tensors are derived from it and reach the kernels as signed 64-bit numbers."""

MAX_SEARCH_SEED = 2**31 - 1
"""The sampler takes 32 bits, and the trials done are added."""


class Frozen(BaseModel):
    """Immutable and strict: unknown keys are refused by name, and no value is coerced silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def rule_error(at: Sequence[str | int], rule: str, got: object, step: str) -> PydanticCustomError:
    """A violated rule, for a validator to raise. `at` is the path below what is validated: the file loader adds it to the place."""
    return PydanticCustomError("autotune", "{rule}, got {got}; {step}", {"rule": rule, "got": got, "step": step, "at": tuple(at)})
