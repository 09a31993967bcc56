"""The per-operator table of one training iteration: where the time goes, and what bounds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autotune.bench.frames import frame_of
from autotune.config.measured import MachineState, RankRow, TableUse, TimedSpan
from autotune.config.tuned import Interval, MeasuredPass, Prediction

if TYPE_CHECKING:
    import pandas as pd

OTHER = "other"


@dataclass(frozen=True)
class Perturbation:
    """One operator pass, timed alone in two or three ways in interleaved rounds."""

    operator: str
    binder: str
    """The verdict under test: memory, compute, network or none."""
    resident: bool
    """Whether its data fit the caches, so that residence can be tested."""
    warm_gain: Interval | None
    """Cold time over cache-resident time; near 1 where the data never leave the cache or never came from memory. None for a transfer."""
    fewer_threads_loss: Interval | None
    """Time with half the threads over time with all; None with one thread."""
    agrees: bool | None = field(kw_only=True)
    """Whether the perturbation shows what the verdict says; None where it makes no claim, or where the warm data exceed the caches."""
    detail: str = field(kw_only=True)
    fewer_bytes_gain: Interval | None = None
    """Time of a transfer over its time with half the bytes; None for a pass that sends nothing."""
    counters: str = ""
    """What the hardware's counters tell of it; empty where there are none."""
    counters_agree: bool | None = None
    """Whether they say what the verdict says; None where they do not tell, or there are none."""


@dataclass(frozen=True)
class OperatorTable:
    """Every operator pass of one iteration, in the order they run. The rows' times add up to the iteration."""

    model: str
    data: str
    minibatch: int
    threads: int
    iteration_s: Interval
    rows: tuple[MeasuredPass, ...]
    notes: tuple[str, ...]
    """What disturbed the measurement, if anything did."""
    perturbations: tuple[Perturbation, ...] = ()
    """The verdicts put to the test, where that was asked for."""
    ranks: tuple[RankRow, ...] = ()
    """Every rank, on several sockets; the rows are those of the slowest."""
    predicted: Prediction | None = None
    """The iteration, from the profile alone."""
    timeline: tuple[TimedSpan, ...] = ()
    """One iteration, near the median, as it ran."""
    tables: tuple[TableUse, ...] = ()
    """Every table, or part of one, by itself, where that was asked for."""
    state: MachineState | None = None
    """What the machine gave meanwhile, over what it gave when it was probed; None on several sockets."""

    @property
    def agreement(self) -> tuple[int, int, int]:
        """Verdicts put to the test: those that agree with what perturbing showed, those that contradict it, those that it cannot tell."""
        answers = [perturbation.agrees for perturbation in self.perturbations]
        return answers.count(True), answers.count(False), answers.count(None)

    def frame(self) -> pd.DataFrame:
        """One line per row, as `bench.frames.frame_of` lays it out."""
        return frame_of(self.rows)
