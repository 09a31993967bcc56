"""What an iteration would take on another machine, with another dtype or other tables: operator by operator, before and after."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.config.tuned import Prediction, TunedConfig


@dataclass(frozen=True)
class OperatorChange:
    """One operator pass before and after."""

    key: str
    before: Prediction
    after: Prediction
    binder_before: str
    """memory, compute, network, or none."""
    binder_after: str

    @property
    def speedup(self) -> float:
        """Before over after; above 1 the change helps."""
        return self.before.time_s / self.after.time_s if self.after.time_s else 1.0


@dataclass(frozen=True)
class WhatIf:
    """A change, and what it is predicted to do."""

    model: str
    profile: str
    changes: tuple[str, ...]
    """As understood, in words: ``bandwidth 2x: stream, gather and scatter of working sets beyond the caches``."""
    operators: tuple[OperatorChange, ...]
    """In the order they run; of a transfer the exposed time."""
    before: Prediction
    """The iteration."""
    after: Prediction
    notes: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        return self.before.time_s / self.after.time_s if self.after.time_s else 1.0


def what_if(config: TunedConfig, changes: str) -> WhatIf:
    """Predict the iteration of a tuned config as it is and with `changes`.

    Args:
        config: Of schema 2, which holds its model and profile.
        changes: ``bandwidth=2x,cores=56,network=200Gb,dtype=bf16,tables=2x``: any of them.

    Raises:
        InputError: an unknown name or a value that cannot be read; a config without a model or a profile.
    """
    raise NotImplementedError  # the substance follows
