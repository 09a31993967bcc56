"""Training for a number of steps: the loss, how long an iteration takes, and what it learned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from autotune.config.knobs import RunConfig
from autotune.data.batches import BatchSource
from autotune.dlrm.model import DLRM
from autotune.errors import InputError

WARMUP_STEPS = 2
"""Steps that touch every buffer and settle the team; they train, and are not counted in the times."""


@dataclass(frozen=True)
class Training:
    """What a training run gave. Making or reading a batch is outside the times; everything from batch to updated weights is inside."""

    model: str
    """Name of the model."""
    data: str
    """Where the batches came from."""
    minibatch: int
    """Samples per iteration."""
    config: RunConfig
    """Every knob that was used."""
    times_s: tuple[float, ...]
    """One iteration each, warm-up left out where there are more steps than that."""
    losses: tuple[float, ...]
    """Mean binary cross entropy of every step, before its update."""
    auc: float | None
    """Area under the ROC curve of the predictions made before each update; None where labels are generated or of one kind."""
    notes: tuple[str, ...] = ()


def train(dlrm: DLRM, source: BatchSource, steps: int, on_step: Callable[[int, float], None] | None = None) -> Training:
    """Train for `steps` iterations.

    Args:
        dlrm: trained in place.
        source: gives batch 0, 1, 2 ...
        steps: 1 or more.
        on_step: called with step and loss after each.

    Raises:
        InputError: steps below 1, or a batch with an index outside its table.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}; ask for one or more")
    times, losses, scores, labels = [], [], [], []
    for step in range(steps):
        batch = source.batch(step)
        begin = time.perf_counter()
        try:
            losses.append(dlrm.step(batch))
        except IndexError as error:
            raise InputError(f"{error} ({source.description}: batch {step})") from error
        times.append(time.perf_counter() - begin)
        if source.has_labels:
            scores.append(dlrm.probabilities().numpy())
            labels.append(dlrm.own_labels(batch).numpy())
        if on_step is not None:
            on_step(step, losses[-1])
    auc = None
    if scores:
        auc = area_under_curve(*(dlrm.of_all_ranks(np.concatenate(values)) for values in (scores, labels)))
    notes = []
    first_bad = next((i for i, value in enumerate(losses) if not math.isfinite(value)), None)
    if first_bad is not None:
        notes.append(f"the loss is not finite from step {first_bad} on; lower the model's learning_rate ({dlrm.model.learning_rate:g})")
    return Training(
        model=dlrm.model.name,
        data=source.description,
        minibatch=dlrm.minibatch,
        config=dlrm.config,
        times_s=tuple(times[WARMUP_STEPS:] if steps > WARMUP_STEPS else times),
        losses=tuple(losses),
        auc=auc if first_bad is None else None,
        notes=tuple(notes),
    )


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative, ties counting half: the Mann-Whitney statistic over n+ * n-.

    Args:
        scores: float [N].
        labels: 0 or 1, [N].

    Returns:
        The area, or None when all labels are alike.
    """
    positive = labels > 0.5
    count = int(positive.sum())
    if count in (0, len(labels)):
        return None
    ranks = pd.Series(scores).rank().to_numpy()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))
