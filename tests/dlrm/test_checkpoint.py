from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.config.model import Model, Table
from autotune.dlrm import checkpoint
from autotune.dlrm.checkpoint import check_state, read_checkpoint, save_checkpoint, state_shapes
from autotune.errors import InputError

MODEL = Model(
    name="tiny",
    source="test",
    description="test",
    minibatch=2,
    bottom_mlp=(13, 8, 4),
    top_mlp=(6, 5, 1),
    tables=(Table(rows=10, dim=4), Table(rows=3, dim=4)),
)


class PlainDLRM(torch.nn.Module):
    """Modules named and nested as in the public DLRM."""

    def __init__(self) -> None:
        super().__init__()
        self.emb_l = torch.nn.ModuleList(torch.nn.EmbeddingBag(rows, 4, mode="sum") for rows in (10, 3))
        # Three vectors interact: 4 + 3 inputs at the top.
        self.bot_l = torch.nn.Sequential(torch.nn.Linear(13, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4), torch.nn.ReLU())
        self.top_l = torch.nn.Sequential(
            torch.nn.Linear(7, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1), torch.nn.Sigmoid()
        )


def random_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in state_shapes(MODEL).items()}


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_names_and_shapes_are_those_of_the_public_dlrm() -> None:
    assert state_shapes(MODEL) == {name: tuple(tensor.shape) for name, tensor in PlainDLRM().state_dict().items()}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    state = random_state()
    save_checkpoint(tmp_path / "m.pt", state, {"iter": 7, "note": "here"})
    loaded = read_checkpoint(tmp_path / "m.pt").state
    assert_same(loaded, state)
    check_state(MODEL, loaded)
    assert os.listdir(tmp_path) == ["m.pt"]


def test_the_public_dlrm_can_resume_from_it(tmp_path: Path) -> None:
    state = random_state()
    save_checkpoint(tmp_path / "m.pt", state, {"iter": 7, "learning_rate": 0.1})
    entries = torch.load(tmp_path / "m.pt", weights_only=True)
    public = {"epoch", "nepochs", "iter", "nbatches", "nbatches_test", "train_loss", "total_loss", "test_acc"}
    assert public <= entries.keys()
    assert entries["iter"] == 7
    module = PlainDLRM()
    module.load_state_dict(entries["state_dict"])
    assert_same(dict(module.state_dict()), state)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    optimizer.load_state_dict(entries["opt_state_dict"])
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("nested", [True, False], ids=["under_state_dict", "bare"])
def test_public_files_are_loaded(tmp_path: Path, zipped: bool, nested: bool) -> None:
    module = PlainDLRM()
    state = module.state_dict()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    entries: Any = {"epoch": 0, "state_dict": state, "opt_state_dict": optimizer.state_dict()} if nested else state
    torch.save(entries, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    loaded = read_checkpoint(tmp_path / "m.pt").state
    check_state(MODEL, loaded)
    assert_same(loaded, dict(state))


def test_writing_to_loaded_tensors_leaves_the_file_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.pt", random_state())
    read_checkpoint(tmp_path / "m.pt").state["emb_l.0.weight"].zero_()
    assert_same(read_checkpoint(tmp_path / "m.pt").state, random_state())


def test_a_file_can_be_replaced_by_what_was_loaded_from_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.pt", random_state())
    save_checkpoint(tmp_path / "m.pt", read_checkpoint(tmp_path / "m.pt").state)
    assert_same(read_checkpoint(tmp_path / "m.pt").state, random_state())


def test_views_and_parameters_are_saved_as_plain_small_tensors(tmp_path: Path) -> None:
    pool = torch.zeros(4_000_000)
    state = {"a": pool[:12].view(3, 4), "b": torch.nn.Parameter(torch.ones(2, 3)).t()}
    save_checkpoint(tmp_path / "m.pt", state)
    assert (tmp_path / "m.pt").stat().st_size < 100_000
    loaded = read_checkpoint(tmp_path / "m.pt").state
    assert_same(loaded, {"a": torch.zeros(3, 4), "b": torch.ones(3, 2)})
    assert not loaded["b"].requires_grad


@pytest.mark.parametrize(
    ("interruption", "seen"), [(OSError(28, "No space left on device"), InputError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException, seen: type[BaseException]
) -> None:
    save_checkpoint(tmp_path / "m.pt", random_state())
    old = (tmp_path / "m.pt").read_bytes()

    def interrupted(entries: object, file: Any) -> None:
        file.write(b"half")
        raise interruption

    monkeypatch.setattr(checkpoint.torch, "save", interrupted)
    with pytest.raises(seen):
        save_checkpoint(tmp_path / "m.pt", random_state())
    assert os.listdir(tmp_path) == ["m.pt"]
    assert (tmp_path / "m.pt").read_bytes() == old


def test_unwritable_places_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "m.pt", tmp_path, Path("/dev/null")):
        with pytest.raises(InputError):
            save_checkpoint(path, random_state())


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with pytest.raises(InputError, match=r"readable file.*m\.pt"):
        read_checkpoint(path)
    with pytest.raises(InputError, match="readable file"):
        read_checkpoint(tmp_path)
    save_checkpoint(path, random_state())
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"must be a torch file .*m\.pt"):
            read_checkpoint(path)
    for value, message in [([1, 2], "a dict of tensors, got a list"), ({"state_dict": 3}, "got a int"), ({"epoch": 1}, "'epoch': int")]:
        torch.save(value, path)
        with pytest.raises(InputError, match=message):
            read_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Evil()}, tmp_path / "m.pt")
    with pytest.raises(InputError, match="tensors and plain values"):
        read_checkpoint(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


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


def test_a_file_with_other_objects_gets_no_advice_to_run_its_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": Path("x")}}, tmp_path / "m.pt")
    with pytest.raises(InputError, match="tensors and plain values, got other content") as caught:
        read_checkpoint(tmp_path / "m.pt")
    assert "weights_only" not in str(caught.value)


def test_many_wrong_names_are_counted_not_listed() -> None:
    with pytest.raises(InputError, match=r"missing: emb_l\.0\.weight, .* and 7 more \(checkpoint\)"):
        check_state(MODEL, {})
