"""A budget of seconds and how the phases of a tuning run share it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

from autotune.errors import InputError

Clock = Callable[[], float]
Phase = Literal["races", "iteration", "confirm", "table"]

# What a phase gets of what is left when it begins, over the shares of the phases still to come. Races get the most: they hold tens of
# candidates per operator, the whole iteration a few tens of trials, and a confirmation is clear after some tens of rounds.
SHARES: dict[Phase, float] = {"races": 0.55, "iteration": 0.20, "confirm": 0.20, "table": 0.05}
# A budget that earlier runs used up still pays for a confirmation and a table; both together stay within the 15 % granted.
FLOORS: dict[Phase, float] = {"races": 0.0, "iteration": 0.0, "confirm": 0.06, "table": 0.02}


class Deadline:
    """Counts the seconds of a budget from its making on.

    Args:
        budget_s: Seconds in all.

    Raises:
        InputError: the budget is not positive and finite.
    """

    def __init__(self, budget_s: float, clock: Clock = time.monotonic) -> None:
        if not (math.isfinite(budget_s) and budget_s > 0):
            raise InputError(f"budget must be positive and finite, got {budget_s:g} s; give for example 120 s")
        self.budget_s = budget_s
        self.clock = clock
        self.earlier_s = 0.0
        """Seconds that interrupted runs before this one spent on results that are kept."""
        self.table_s = 0.0
        """Seconds that the table takes at the least, however little is left."""
        self._shares = SHARES
        self._begin_s = clock()

    def split(self, local_share: float) -> None:
        """On several ranks: races and the whole iteration share their part by how much of an iteration is computed, and how much waited.

        Args:
            local_share: Of the iteration in passes that can be raced.
        """
        both = SHARES["races"] + SHARES["iteration"]
        races = SHARES["races"] * local_share
        self._shares = {**SHARES, "races": races, "iteration": both - races}

    @property
    def spent_s(self) -> float:
        """Earlier runs included."""
        return self.earlier_s + self.clock() - self._begin_s

    @property
    def left_s(self) -> float:
        return max(0.0, self.budget_s - self.spent_s)

    def phase_s(self, phase: Phase) -> float:
        """Seconds that a phase beginning now may take, what later phases need being set aside."""
        phases = list(self._shares)
        to_come = sum(self._shares[later] for later in phases[phases.index(phase) :])
        part_s = self.left_s * self._shares[phase] / to_come
        if phase != "table":
            others_s = self.left_s - max(self.table_s, self.left_s * self._shares["table"] / to_come)
            part_s = max(0.0, others_s) * self._shares[phase] / (to_come - self._shares["table"])
        return max(part_s, FLOORS[phase] * self.budget_s)
