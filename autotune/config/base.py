"""The common ground of every file people keep: frozen, strict, versioned."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable and strict: unknown keys are refused by name, and no value is coerced silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
