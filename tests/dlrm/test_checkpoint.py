from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from public_dlrm import MODEL, PlainDLRM, random_state

from autotune.config.knobs import RunConfig
from autotune.config.model import Changes
from autotune.data.batches import make_source
from autotune.dlrm import checkpoint
from autotune.dlrm.checkpoint import (
    check_optimizer_state,
    check_state,
    load_into,
    read_checkpoint,
    read_checkpoint_of,
    save_checkpoint,
    state_shapes,
)
from autotune.dlrm.model import DLRM
from autotune.errors import InputError, NoSpaceError


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_names_and_shapes_are_those_of_the_public_dlrm() -> None:
    plain = PlainDLRM()
    assert state_shapes(MODEL) == {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    # Optimizers number the parameters in this order.
    assert list(state_shapes(MODEL)) == [name for name, _ in plain.named_parameters()]


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
    public = {"epoch", "nepochs", "iter", "nbatches", "nbatches_test", "train_loss", "total_loss", "test_acc", "test_auc"}
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


def public_entries(state: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> dict[str, Any]:
    """What the public script saves: its metrics are numbers of numpy."""
    return {
        "nepochs": 1,
        "nbatches": 100,
        "nbatches_test": 10,
        "state_dict": state,
        "test_acc": np.float64(0.7887),
        "test_auc": np.float64(0.75),
        "epoch": 0,
        "iter": 9,
        "train_loss": np.float64(0.45),
        "total_loss": np.float32(3.5),
        "count": np.int64(-3),
        "flag": np.bool_(True),
        "opt_state_dict": optimizer,
    }


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["numpy 1", "numpy 2"])
def test_numbers_of_either_numpy_are_read_by_code_of_our_own(tmp_path: Path, module: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = tmp_path / "m.pt", random_state()
    torch.save(public_entries(state, {}), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    own = np.float64(0).__reduce__()[0].__module__.encode()
    assert own + b"\nscalar" in data
    path.write_bytes(data.replace(own + b"\nscalar", module + b"\nscalar"))
    raw: dict[str, Any] = {}

    def load(*arguments: Any, plain: Any = torch.load, **options: Any) -> Any:
        raw.update(plain(*arguments, **options))
        return raw

    monkeypatch.setattr(checkpoint.torch, "load", load)
    loaded = read_checkpoint(path)
    assert_same(loaded.state, state)
    assert loaded.iterations == 9
    read = {name: raw[name] for name in ("test_acc", "total_loss", "count", "flag")}
    assert read == {"test_acc": 0.7887, "total_loss": 3.5, "count": -3, "flag": True}
    assert {type(value) for value in read.values()} == {float, int, bool}


@pytest.mark.parametrize("value", [np.str_("x"), np.datetime64(3, "s"), np.void(b"12"), np.longdouble(1), np.arange(3)], ids=repr)
def test_other_things_of_numpy_are_refused(tmp_path: Path, value: object) -> None:
    torch.save({"state_dict": random_state(), "test_acc": value}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"tensors and plain values, got other content .*m\.pt"):
        read_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"module.{name}",
        lambda name: name.replace("_l.", "_l.module.", 1) if not name.startswith("emb") else name,
        lambda name: f"_orig_mod.{name}",
    ],
    ids=["the whole in DDP", "its MLPs in DDP", "compiled"],
)
def test_names_of_wrapped_modules_are_those_of_the_model(tmp_path: Path, wrapped: Any) -> None:
    state = random_state()
    torch.save({"state_dict": {wrapped(name): value for name, value in state.items()}}, tmp_path / "m.pt")
    assert_same(read_checkpoint_of(MODEL, tmp_path / "m.pt").state, state)


def test_a_name_that_two_wrappers_share_is_refused(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "a": torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"must hold a once, got it again as a .*m\.pt"):
        read_checkpoint(tmp_path / "m.pt")


ADAGRAD = MODEL.changed(Changes(optimizer="adagrad"))


def trained(seed: int = 1, steps: int = 2) -> DLRM:
    dlrm = DLRM(ADAGRAD, RunConfig(threads=1), seed=seed)
    for i in range(steps):
        dlrm.step(make_source(ADAGRAD).batch(i))
    return dlrm


def public_state(dlrm: DLRM) -> dict[str, Any]:
    """The state of the public row-wise Adagrad."""
    sums = dlrm.optimizer_state()
    kept = {i: {"step": 2, "momentum" if name.startswith("emb_l") else "sum": sums[name]} for i, name in enumerate(dlrm.state_dict())}
    return {"state": kept, "param_groups": [{"lr": 0.1, "lr_decay": 0.0, "eps": 1e-10, "params": list(kept)}]}


def test_the_state_of_the_public_row_wise_adagrad_is_gone_on_with(tmp_path: Path) -> None:
    first, second = trained(), DLRM(ADAGRAD, RunConfig(threads=1), seed=7)
    torch.save(public_entries(first.state_dict(), public_state(first)), tmp_path / "m.pt")
    assert load_into(second, read_checkpoint_of(ADAGRAD, tmp_path / "m.pt")) == ()
    source = make_source(ADAGRAD)
    assert [second.step(source.batch(i)) for i in (2, 3)] == [first.step(source.batch(i)) for i in (2, 3)]


def test_the_public_row_wise_adagrad_finds_its_state_in_ours(tmp_path: Path) -> None:
    dlrm = trained()
    save_checkpoint(tmp_path / "m.pt", dlrm.state_dict(), {"iter": 2, "learning_rate": 0.1}, dlrm.optimizer_state())
    found, wanted = torch.load(tmp_path / "m.pt", weights_only=True)["opt_state_dict"], public_state(dlrm)
    assert found["state"].keys() == wanted["state"].keys()
    for number, entry in wanted["state"].items():
        assert found["state"][number].keys() == entry.keys()
        assert found["state"][number]["step"] == 2
        assert all(torch.equal(value, found["state"][number][key]) for key, value in entry.items() if key != "step")
    assert wanted["param_groups"][0].items() <= found["param_groups"][0].items()


def test_element_wise_sums_of_tables_go_on_as_the_mean_of_each_row(tmp_path: Path) -> None:
    dlrm = trained()
    state = public_state(dlrm)
    whole = {t: torch.rand(table.rows, table.dim) for t, table in enumerate(ADAGRAD.tables)}
    state["state"] |= {t: {"step": torch.tensor(2.0), "sum": value} for t, value in whole.items()}
    torch.save(public_entries(dlrm.state_dict(), state), tmp_path / "m.pt")
    loaded = read_checkpoint_of(ADAGRAD, tmp_path / "m.pt")
    assert all(torch.equal(loaded.optimizer_state[f"emb_l.{t}.weight"], value.mean(1)) for t, value in whole.items())
    assert "element-wise in tables" in load_into(dlrm, loaded)[0]


def test_sums_where_older_files_keep_them_are_read(tmp_path: Path) -> None:
    dlrm = trained()
    sums = dlrm.optimizer_state()
    torch.save({"state_dict": dlrm.state_dict(), "adagrad_sums": sums, "opt_state_dict": {"state": {}}}, tmp_path / "m.pt")
    assert_same(read_checkpoint_of(ADAGRAD, tmp_path / "m.pt").optimizer_state, sums)


def test_a_file_without_sums_says_that_they_begin_at_zero(tmp_path: Path) -> None:
    dlrm = trained()
    save_checkpoint(tmp_path / "m.pt", dlrm.state_dict())
    assert load_into(dlrm, read_checkpoint_of(ADAGRAD, tmp_path / "m.pt")) == (
        "the checkpoint holds no state of Adagrad: its sums begin at zero",
    )


@pytest.mark.parametrize(
    ("kept", "here", "note"),
    [
        (None, "hashed", "does not say how categories became rows, and this run reads them hashed"),
        ("modulo", "hashed", "was trained with categories modulo, and this run reads them hashed"),
        ("modulo", "modulo", None),
        (None, None, None),
        ("modulo", None, None),
    ],
)
def test_another_or_an_unknown_mapping_of_categories_is_noted(tmp_path: Path, kept: str | None, here: str | None, note: str | None) -> None:
    dlrm = DLRM(MODEL, RunConfig(threads=1))
    save_checkpoint(tmp_path / "m.pt", dlrm.state_dict(), {checkpoint.CATEGORY_MAPPING: kept})
    notes = load_into(dlrm, read_checkpoint(tmp_path / "m.pt"), here)
    assert [note in said for said in notes] == ([] if note is None else [True])


def test_a_part_of_the_sums_is_refused_by_name(tmp_path: Path) -> None:
    dlrm = trained()
    state = public_state(dlrm)
    del state["state"][0]
    torch.save(public_entries(dlrm.state_dict(), state), tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"missing: emb_l\.0\.weight"):
        check_optimizer_state(ADAGRAD, read_checkpoint(tmp_path / "m.pt").optimizer_state)


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
    ("interruption", "seen"), [(OSError(28, "No space left on device"), NoSpaceError), (KeyboardInterrupt(), KeyboardInterrupt)]
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


def test_a_file_with_other_objects_gets_no_advice_to_run_its_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": Path("x")}}, tmp_path / "m.pt")
    with pytest.raises(InputError, match="tensors and plain values, got other content") as caught:
        read_checkpoint(tmp_path / "m.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("count", [-1, 2**62 + 1, 2**70], ids=["negative", "large", "larger"])
def test_iterations_that_can_be_no_count_are_refused(tmp_path: Path, count: int) -> None:
    """Tables that round stochastically would count on from there."""
    torch.save({"state_dict": random_state(), "iter": count}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"iter must be a count of iterations, from 0 to .*m\.pt\); save it again"):
        read_checkpoint(tmp_path / "m.pt")
