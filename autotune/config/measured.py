"""What a tuning run measured of tables, ranks and one iteration, kept in the tuned config so that it explains itself anywhere."""

from __future__ import annotations

from pydantic import Field

from autotune.config.base import Frozen

HOT_ROWS = 16
"""The rows of a table that count as hot: at 32 B to 1 KiB a row they fit any L1, and one team cannot work on so few at once."""


class TableUse(Frozen):
    """One embedding table, or the part of it that a rank holds: the look-ups of one minibatch, and both passes timed alone."""

    table: int = Field(ge=0)
    """Number of the table in the model."""
    rank: int = Field(0, ge=0)
    rows: int = Field(ge=1)
    """Rows of the table, or of the part."""
    dim: int = Field(ge=1)
    lookups: int = Field(ge=0)
    unique: int = Field(ge=0)
    """Distinct rows among the look-ups."""
    hot_rows: int = Field(ge=0, le=HOT_ROWS)
    """Number of rows that `hot_share` counts."""
    hot_share: float = Field(ge=0, le=1)
    """Share of the look-ups that hit the `hot_rows` most often hit rows."""
    range_load: float = Field(ge=0)
    """Look-ups of the busiest thread over the mean, rows owned by range; 1 is even."""
    modulo_load: float = Field(ge=0)
    """As `range_load`, with rows owned by modulo."""
    bucketed_load: float = Field(ge=0)
    """As `range_load`, with rows owned by bucket."""
    forward_s: float = Field(ge=0)
    """Median of the forward pass on this table alone, less what a call without look-ups takes."""
    forward_ceiling_s: float = Field(ge=0)
    """The least time that the machine's ceilings allow for it."""
    update_s: float = Field(ge=0)
    update_ceiling_s: float = Field(ge=0)


class RankRow(Frozen):
    """One rank's iteration."""

    rank: int
    compute_s: float
    """Median seconds in passes that do not wait for others."""
    waiting_s: float
    """Median seconds in transfers: the network, and slower ranks."""
    tables: int
    """Whole tables and parts of tables, copies left out."""
    memory_bytes: int
    """Memory of its tables, copies included."""
    lookups: int
    """Look-ups in its tables, per iteration."""
    passes_s: dict[str, float] = Field(default_factory=dict)
    """Median seconds by operator pass, in the order in which they first ran."""


class TimeParts(Frozen):
    """Where the time of a pass went, as its teams of threads were timed; shares of it that add up to 1."""

    launch: float = Field(ge=0, le=1)
    """Python, dispatch, forks and joins: what the busiest thread was not at work."""
    off_core: float = Field(ge=0, le=1)
    """The busiest thread at work but without a core: other programs, or more threads than cores."""
    imbalance: float = Field(ge=0, le=1)
    """What the busiest thread computed longer than the mean of its team."""
    work: float = Field(ge=0, le=1)
    """Threads computing or waiting for memory, in the mean. What a ceiling does not account for is latency, or arithmetic that is not
    counted."""


class MachineState(Frozen):
    """What the machine gave beside a measurement, over what it gave when it was probed."""

    memory: float = Field(gt=0)
    """Bandwidth of a stream of reads."""
    rows: float = Field(gt=0)
    """Random rows of a table beyond the caches; as `memory` where the probe has none of that size."""
    compute: float = Field(gt=0)
    """Rate of independent multiply-adds."""


_STEADY = 0.10
"""A difference within this is noise of so short a look."""


def differs(ratio: float) -> bool:
    """Whether a ratio of a state is more than noise."""
    return abs(ratio - 1.0) > _STEADY


class TimedSpan(Frozen):
    """When one pass ran in one iteration, or a piece of a pass that runs in several."""

    rank: int = Field(0, ge=0)
    operator: str
    begin_s: float = Field(ge=0)
    """Since the first pass of this rank's iteration began."""
    end_s: float = Field(ge=0)
