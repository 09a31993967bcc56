"""Training runs: what they report."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autotune.catalog import load_model_by_name
from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.data.batches import Batch, SyntheticSource, make_source
from autotune.data.distributions import Uniform
from autotune.dlrm.model import DLRM
from autotune.dlrm.train import DEFAULT_STEPS, WARMUP_STEPS, area_under_curve, evaluate, train
from autotune.errors import InputError

TINY = load_model_by_name("tiny")


def test_training_reports_every_loss_and_leaves_the_warm_up_out_of_the_times() -> None:
    result = train(DLRM(TINY), make_source(TINY), 6)
    assert len(result.losses) == 6
    assert len(result.times_s) == 6 - WARMUP_STEPS
    assert result.auc is None
    assert result.notes == ()


def test_a_diverging_run_says_so() -> None:
    model = TINY.model_copy(update={"learning_rate": 1e30})
    result = train(DLRM(model), make_source(model), 6)
    assert any("not finite" in note and "1e+30" in note for note in result.notes)


def test_no_steps_are_refused() -> None:
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        train(DLRM(TINY), make_source(TINY), 0)


def test_an_evaluation_leaves_the_weights_alone_and_counts_every_row_once() -> None:
    model = TINY.model_copy(update={"minibatch": 8})
    dlrm, source = DLRM(model, RunConfig(threads=1)), Labelled(model, rows=21)
    before = {name: value.clone() for name, value in dlrm.state_dict().items()}
    result = evaluate(dlrm, source)
    assert all(torch.equal(value, before[name]) for name, value in dlrm.state_dict().items())
    # Three batches, of which the last holds three rows that were counted already.
    scores = torch.cat([dlrm.forward(source.batch(i)) for i in range(3)])[:21]
    labels = torch.cat([source.batch(i).labels for i in range(3)])[:21]
    assert len(result.losses) == 3
    assert result.evaluation is not None
    assert result.evaluation.samples == 21
    assert result.evaluation.loss == pytest.approx(float(torch.nn.functional.binary_cross_entropy(scores, labels)))
    assert result.losses[2] == pytest.approx(float(torch.nn.functional.binary_cross_entropy(scores[16:], labels[16:])))
    assert result.evaluation.accuracy == float(((scores > 0.5) == (labels > 0.5)).double().mean())
    assert result.auc == area_under_curve(scores.numpy(), labels.numpy())


def test_an_evaluation_takes_as_many_batches_as_are_asked_for_and_there_are() -> None:
    model = TINY.model_copy(update={"minibatch": 8})
    for steps, samples in ((1, 8), (2, 16), (99, 21)):
        result = evaluate(DLRM(model, RunConfig(threads=1)), Labelled(model, rows=21), steps)
        assert result.evaluation is not None
        assert result.evaluation.samples == samples
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        evaluate(DLRM(model, RunConfig(threads=1)), Labelled(model, rows=21), 0)


def test_drawn_labels_have_a_loss_and_no_accuracy() -> None:
    model = TINY.model_copy(update={"minibatch": 8})
    result = evaluate(DLRM(model, RunConfig(threads=1)), make_source(model))
    assert len(result.losses) == DEFAULT_STEPS
    assert (result.auc, result.evaluation and result.evaluation.accuracy) == (None, None)


class Labelled(SyntheticSource):
    """Drawn batches whose labels count as real, of a file of so many rows."""

    has_labels = True

    def __init__(self, model: Model, rows: int) -> None:
        distributions = tuple(Uniform(table.rows) for table in model.tables)
        super().__init__(model, distributions, varying=False, minibatch=model.minibatch, seed=0, description="labelled")
        self._rows = rows

    def rows_within(self, limit: int | None) -> int:
        return self._rows if limit is None else min(limit, self._rows)


class OutOfRange:
    has_labels = False
    description = "broken rows"

    def batch(self, i: int) -> Batch:
        batch = make_source(TINY).batch(i)
        if i == 2:
            batch.indices[5] = -1
        return batch


def test_a_bad_index_names_the_data_and_the_batch() -> None:
    with pytest.raises(InputError, match=r"got -1 \(table 0, position 5 .*broken rows: batch 2"):
        train(DLRM(TINY), OutOfRange(), 5)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=2, max_size=30))
def test_the_area_is_the_share_of_pairs_in_order(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = np.array([s for s, _ in pairs]), np.array([float(label) for _, label in pairs])
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        assert area_under_curve(scores, labels) is None
        return
    wanted = np.mean([(p > n) + 0.5 * (p == n) for p in positive for n in negative])
    assert area_under_curve(scores, labels) == pytest.approx(wanted)
