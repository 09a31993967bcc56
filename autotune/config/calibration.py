"""What the passes of a training step took on models made for that: from them `perf` learns how far this code reaches the ceilings."""

from __future__ import annotations

from pydantic import Field

from autotune.config.base import Frozen
from autotune.config.model import Model


class CalibrationRun(Frozen):
    """One reference model, trained for a few steps."""

    model: Model
    threads: int = Field(ge=1)
    huge_pages: bool = True
    strategy: str = ""
    """Of the embedding update; empty, in files before it was always written, for the default of then."""
    disturbed: bool = False
    """Whether other programs ran beside more steps than were left out."""
    iteration_s: float = Field(gt=0)
    """Median of the steps."""
    passes_s: dict[str, float]
    """Median by pass; what is left of the iteration is `other`."""
