"""What the passes of a training step took on models made for that: from them `perf` learns how far this code reaches the ceilings."""

from __future__ import annotations

from pydantic import Field, field_serializer

from autotune.config.base import Frozen
from autotune.config.knobs import AnyKnobs, Knobs
from autotune.config.model import Model


class CalibrationRun(Frozen):
    """One reference model, trained for a few steps."""

    model: Model
    threads: int = Field(ge=1)
    huge_pages: bool = True
    strategy: str = ""
    """Update strategy. Older files omit it: then the default of the version that wrote the file."""
    disturbed: bool = False
    """Whether other programs ran beside more steps than were left out."""
    iteration_s: float = Field(gt=0)
    """Median time of the steps."""
    passes_s: dict[str, float]
    """Median time by pass; what is left of the iteration is `other`."""
    knobs: dict[str, AnyKnobs] = Field(default_factory=dict)
    """Knobs of every pass. Older files omit them: then the defaults, with `strategy`."""

    @field_serializer("knobs")
    def _compact(self, knobs: dict[str, Knobs]) -> dict[str, dict[str, object]]:
        """Without the values that a class of knobs has by default."""
        return {key: {"kind": chosen.kind, **chosen.model_dump(exclude_defaults=True)} for key, chosen in knobs.items()}
