"""The record of one training run, as it is printed and kept as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.bench.samples import Samples
from autotune.config.knobs import RunConfig
from autotune.config.tuned import Interval
from autotune.dlrm.train import Evaluation, Training


@dataclass(frozen=True)
class RunResult:
    """The result of `autotune run`."""

    model: str
    data: str
    """Where the batches came from."""
    minibatch: int
    config: RunConfig
    """Every knob that was used."""
    steps: int
    iteration_s: Interval
    """Time of the steps after the warm-up."""
    samples_per_s: float
    losses: tuple[float, ...]
    """Loss of every step, before its update."""
    auc: float | None
    """None where labels are generated or of one kind."""
    notes: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    """With ``--evaluate``; None where weights were updated."""


def run_result(training: Training, notes: tuple[str, ...] = ()) -> RunResult:
    """The record of `training`; `notes` are added to its own."""
    samples = Samples(training.times_s)
    return RunResult(
        model=training.model,
        data=training.data,
        minibatch=training.minibatch,
        config=training.config,
        steps=len(training.losses),
        iteration_s=samples.to_interval(),
        samples_per_s=training.minibatch / samples.median_s if samples.median_s else 0.0,
        losses=training.losses,
        auc=training.auc,
        notes=training.notes + notes + tuple(warning.message for warning in samples.warnings),
        evaluation=training.evaluation,
    )
