"""How often a minibatch meets a row again, where only a file knows: histogram and Criteo data, seen in one minibatch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autotune.config.model import Model
from autotune.errors import InputError

# Look-ups of the minibatch that is counted: a second or two, and under 100 MB. More are seen in a part of the minibatch's samples.
_MOST_LOOKUPS = 4_000_000


@dataclass(frozen=True)
class Reuse:
    """Of one table: how many distinct rows were met how many times."""

    lookups: int
    times: npt.NDArray[np.int64]
    """Each number of times once."""
    rows: npt.NDArray[np.int64]
    """Distinct rows met so many times."""

    def distinct(self, lookups: float) -> float:
        """Expected distinct rows among `lookups` of those that were seen: sum_c rows_c (1 - (1 - f)^c), f the share of them.

        Beyond what was seen the last look-ups tell: as many of more look-ups meet new rows as of the last tenth, an upper bound.
        """
        if not self.lookups:
            return 0.0
        if lookups > self.lookups:
            everything = self.distinct(self.lookups)
            return everything + (everything - self.distinct(0.9 * self.lookups)) * (lookups / self.lookups - 1.0) * 10.0
        return float(np.sum(self.rows * -np.expm1(self.times * np.log1p(-min(lookups / self.lookups, 1.0 - 1e-12)))))


def observed(model: Model) -> tuple[Reuse, ...] | None:
    """Of every table; None where the distribution is known without looking, or its file cannot be read: running the model will say so."""
    if model.data.distribution not in ("histogram", "criteo"):
        return None
    lookups = model.minibatch * sum(table.pooling for table in model.tables)
    samples = max(1, round(model.minibatch * min(1.0, _MOST_LOOKUPS / max(lookups, 1.0))))
    try:
        from autotune.data.batches import make_source  # brings torch, which no help text waits for

        batch = make_source(model, minibatch=samples).batch(0)
    except InputError:
        return None
    indices, ends = batch.indices.numpy(), batch.offsets.numpy()[::samples]
    return tuple(_counted(indices[ends[t] : ends[t + 1]]) for t in range(model.num_tables))


def _counted(indices: npt.NDArray[np.int64]) -> Reuse:
    _, counts = np.unique(indices, return_counts=True)
    times, rows = np.unique(counts, return_counts=True)
    return Reuse(len(indices), times, rows)
