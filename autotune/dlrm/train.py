"""Training for a number of steps, or evaluation: the loss, how long an iteration takes, and what it learned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from autotune.config.knobs import RunConfig
from autotune.data.batches import BatchSource
from autotune.dlrm.model import DLRM
from autotune.errors import InputError

WARMUP_STEPS = 2
"""Steps that touch every buffer and settle the team; they train, and are not counted in the times."""


DEFAULT_STEPS = 50


@dataclass(frozen=True)
class Evaluation:
    """What forward passes alone say of the weights."""

    samples: int
    """Counted: each row of a file once."""
    loss: float
    """Mean binary cross entropy over the samples."""
    accuracy: float | None
    """Share of samples whose click probability lies on the side of 0.5 that their label does; None where labels are generated."""


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
    evaluation: Evaluation | None = None
    """None where weights were updated."""


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
    times: list[float] = []
    losses, scores, labels = [], [], []
    for step in range(steps):
        batch = source.batch(step)
        with _timed(times, source, step):
            losses.append(dlrm.step(batch))
        if source.has_labels:
            scores.append(dlrm.probabilities().numpy())
            labels.append(dlrm.own_labels(batch).numpy())
        if on_step is not None:
            on_step(step, losses[-1])
    auc = None
    if scores:
        auc = area_under_curve(*(dlrm.of_all_ranks(np.concatenate(values)) for values in (scores, labels)))
    step_of_model = f"lower the model's learning_rate ({dlrm.model.learning_rate:g})"
    return _training(dlrm, source, times, losses, auc, f"the loss is not finite from step {{}} on; {step_of_model}")


def evaluate(dlrm: DLRM, source: BatchSource, steps: int | None = None, on_step: Callable[[int, float], None] | None = None) -> Training:
    """Forward passes alone: loss, AUC and accuracy of the weights as they are.

    Args:
        dlrm: left as it is.
        source: gives batch 0, 1, 2 ... Rows of a file count once, whatever the minibatch.
        steps: batches, 1 or more; None takes a whole file, or `DEFAULT_STEPS` of drawn batches.
        on_step: called with batch number and the loss of this rank's samples after each.

    Raises:
        InputError: steps below 1, or a batch with an index outside its table.
    """
    if steps is not None and steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}; ask for one or more")
    n = dlrm.minibatch
    batches, samples = evaluation_size(source, n, steps)
    times: list[float] = []
    scores, labels, sums = [], [], []
    for i in range(batches):
        batch = source.batch(i)
        with _timed(times, source, i):
            probabilities = dlrm.forward(batch)
        first, last = dlrm.schedule.samples
        kept = slice(0, max(0, min(last, samples - i * n) - first))
        scores.append(probabilities[kept])
        labels.append(dlrm.own_labels(batch)[kept])
        sums.append(float(torch.nn.functional.binary_cross_entropy(scores[-1], labels[-1], reduction="sum")))
        if on_step is not None:
            on_step(i, sums[-1] / max(1, len(scores[-1])))
    all_scores, all_labels = (dlrm.of_all_ranks(torch.cat(values).numpy()) for values in (scores, labels))
    batch_sums = dlrm.of_all_ranks(np.array(sums)).reshape(dlrm.ranks, batches).sum(axis=0)
    losses = [float(total) / min(n, samples - i * n) for i, total in enumerate(batch_sums)]
    accuracy = float(np.mean((all_scores > 0.5) == (all_labels > 0.5))) if source.has_labels else None
    auc = area_under_curve(all_scores, all_labels) if source.has_labels else None
    evaluation = Evaluation(samples, float(batch_sums.sum()) / samples, accuracy)
    return _training(dlrm, source, times, losses, auc, "the loss is not finite from batch {} on; check the weights", evaluation)


def evaluation_size(source: BatchSource, minibatch: int, steps: int | None) -> tuple[int, int]:
    """Batches that an evaluation of `steps` takes, and the samples in them that count: no row of a file twice."""
    rows = source.rows_within(None if steps is None else steps * minibatch)
    if rows is None:
        batches = steps or DEFAULT_STEPS
        return batches, batches * minibatch
    return -(-rows // minibatch), rows


@contextmanager
def _timed(times: list[float], source: BatchSource, number: int) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    except IndexError as error:
        raise InputError(f"{error} ({source.description}: batch {number})") from error
    times.append(time.perf_counter() - begin)


def _training(
    dlrm: DLRM,
    source: BatchSource,
    times: list[float],
    losses: list[float],
    auc: float | None,
    bad_note: str,
    evaluation: Evaluation | None = None,
) -> Training:
    first_bad = next((i for i, value in enumerate(losses) if not math.isfinite(value)), None)
    return Training(
        model=dlrm.model.name,
        data=source.description,
        minibatch=dlrm.minibatch,
        config=dlrm.config,
        times_s=tuple(times[WARMUP_STEPS:] if len(times) > WARMUP_STEPS else times),
        losses=tuple(losses),
        auc=auc if first_bad is None else None,
        notes=() if first_bad is None else (bad_note.format(first_bad),),
        evaluation=evaluation,
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
    import pandas as pd

    ranks = pd.Series(scores).rank().to_numpy()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))
