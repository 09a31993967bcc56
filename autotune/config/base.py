"""The common ground of every file people keep: frozen, strict, versioned."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

MAX_SEED = 2**42 - 1
"""Seeds of single tensors are derived from it and reach the kernels as signed 64-bit numbers."""

MAX_SEARCH_SEED = 2**31 - 1
"""The sampler takes 32 bits, and the trials done are added."""


class Frozen(BaseModel):
    """Immutable and strict: unknown keys are refused by name, and no value is coerced silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
