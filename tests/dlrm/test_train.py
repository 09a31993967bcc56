"""Training runs: what they report."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.catalog import load_model_by_name
from autotune.data.batches import Batch, make_source
from autotune.dlrm.model import DLRM
from autotune.dlrm.train import WARMUP_STEPS, area_under_curve, train
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
