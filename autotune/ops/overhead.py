"""What lies between the passes: the interpreter and the executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.config.knobs import Knobs
from autotune.ops.base import OUTSIDE, Family, Features, Operator, Rates, Residence, Work
from autotune.ops.memory import Memory

KEY = "other"


@dataclass(eq=False)
class Overhead(Operator):
    """The time of a step outside every pass. It is predicted, and never run.

    Args:
        passes: of the step.
    """

    passes: int

    kind: ClassVar[str] = KEY
    family: ClassVar[Family] = OUTSIDE
    runs_alone: ClassVar[bool] = False
    prior: ClassVar[Mapping[str, float]] = {"passes": 5.6, "call": 1.0}

    def work(self) -> Work:
        return Work(0, 0, 0, parallel_regions=0)

    def size(self) -> Mapping[str, float]:
        return {"passes": float(self.passes)}

    def features(self, knobs: Knobs | None, residence: Residence, rates: Rates) -> Features:
        return {"passes": self.passes * 1e-6}

    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        """Nothing."""
