"""Whether a checkpoint's state belongs to a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from public_dlrm import MODEL, random_state

from autotune.config.knobs import RunConfig
from autotune.config.model import Model, Table
from autotune.dlrm import checkpoint
from autotune.dlrm.checkpoint import check_state, read_checkpoint_of, save_checkpoint
from autotune.dlrm.model import DLRM
from autotune.errors import InputError


@pytest.mark.parametrize(("trained_with", "inputs"), [("dot", 7), ("dot_with_diagonal", 10), ("concatenation", 12)])
@pytest.mark.parametrize("here", ["dot", "dot_with_diagonal", "concatenation"])
def test_a_public_file_of_another_interaction_is_refused_with_the_field_to_set(trained_with: str, inputs: int, here: str) -> None:
    """The public DLRM's state does not say which it had: the first layer of the top MLP has as many inputs as its interaction gives."""
    state = random_state() | {"top_l.0.weight": torch.zeros(6, inputs)}
    model = MODEL.model_copy(update={"interaction": here})
    if here == trained_with:
        check_state(model, state, "m.pt")
        return
    with pytest.raises(InputError) as caught:
        check_state(model, state, "m.pt")
    assert f"(m.pt); set interaction: {trained_with} in the model's file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_width_that_no_interaction_gives_names_none() -> None:
    with pytest.raises(InputError, match=r"\(m\.pt\); load it with the model it was saved from"):
        check_state(MODEL, random_state() | {"top_l.0.weight": torch.zeros(6, 11)}, "m.pt")


def test_a_file_that_tells_its_interaction_is_held_to_it_where_both_are_as_wide(tmp_path: Path) -> None:
    """Four vectors of two columns: 2 + 6 inputs with dots, 4 * 2 concatenated."""
    shape = {"bottom_mlp": (13, 2), "tables": (Table(rows=3, dim=2),) * 3, "top_mlp": (1,)}
    dot = Model.model_validate(MODEL.model_dump() | shape)
    other = dot.model_copy(update={"interaction": "concatenation"})
    assert dot.top_input == other.top_input == 8
    state = DLRM(other, RunConfig(threads=1)).state_dict()
    save_checkpoint(tmp_path / "m.pt", state, {checkpoint.INTERACTION: "concatenation"})
    read_checkpoint_of(other, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"must be of interaction dot, got concatenation \(.*m\.pt\); set interaction: concatenation"):
        read_checkpoint_of(dot, tmp_path / "m.pt")


def test_a_state_of_another_model_is_refused_by_name() -> None:
    state = random_state()
    del state["bot_l.0.bias"]
    state["extra"] = torch.zeros(1)
    state["emb_l.1.weight"] = torch.zeros(4, 4)
    state["top_l.4.bias"] = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InputError) as caught:
        check_state(MODEL, state, "m.pt")
    text = str(caught.value)
    wrong = "emb_l.1.weight is torch.float32 [4, 4] instead of a dense float tensor [3, 4]"
    for part in ("model tiny", "missing: bot_l.0.bias", "unexpected: extra", wrong, "top_l.4.bias is torch.int64", "(m.pt)"):
        assert part in text


def test_a_sparse_tensor_is_refused() -> None:
    state = random_state()
    state["emb_l.1.weight"] = state["emb_l.1.weight"].to_sparse()
    with pytest.raises(InputError, match=r"emb_l\.1\.weight is torch\.sparse_coo torch\.float32 \[3, 4\] instead of a dense float tensor"):
        check_state(MODEL, state)


def test_many_wrong_names_are_counted_not_listed() -> None:
    with pytest.raises(InputError, match=r"missing: emb_l\.0\.weight, .* and 7 more \(checkpoint\)"):
        check_state(MODEL, {})
