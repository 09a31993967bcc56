"""Training in bf16 halves and with Adagrad: what the whole model learns, and what a checkpoint carries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from combined import combined

from autotune.catalog import load_model_by_name
from autotune.config.knobs import RunConfig
from autotune.config.model import TABLE_STORAGES, Changes, DataSpec, Model, Table
from autotune.data.batches import Batch, make_source
from autotune.dlrm.checkpoint import check_optimizer_state, load_into, read_checkpoint, save_checkpoint
from autotune.dlrm.model import DLRM
from autotune.errors import InputError
from autotune.ops.embedding_tables import EmbeddingUpdateKnobs


def criteo_like() -> Model:
    """The shape of Criteo's click logs, small: 13 dense features, 26 tables from 3 rows to thousands, one look-up each, hot rows."""
    rows = (1460, 583, 5000, 3000, 305, 24, 1251, 633, 3, 4000, 2683, 5000, 3194)
    rows += (27, 1499, 4200, 10, 2565, 2173, 4, 5000, 18, 15, 3600, 105, 2572)
    return Model(
        schema=1,
        name="criteo-like",
        source="test",
        description="test",
        minibatch=128,
        learning_rate=0.1,
        data=DataSpec(distribution="zipf", alpha=1.05),
        bottom_mlp=(13, 64, 16),
        top_mlp=(64, 32, 1),
        tables=tuple(Table(rows=count, dim=16, pooling=1) for count in rows),
    )


def learnable(batch: Batch) -> Batch:
    """The batch with labels that its features decide: a click where two dense features and one table's row number agree."""
    samples = len(batch.labels)
    signal = batch.dense[:, 0] + batch.dense[:, 3] + (batch.indices[:samples] % 3 - 1).float()
    labels = (signal > signal.median()).float()
    return Batch(batch.dense, batch.indices, batch.offsets, labels)


def losses(model: Model, batches: list[Batch]) -> torch.Tensor:
    dlrm = DLRM(model, RunConfig(threads=1))
    return torch.tensor([dlrm.step(batch) for batch in batches])


def test_bf16_of_either_storage_follows_fp32_within_1_percent_over_500_steps() -> None:
    source = make_source(criteo_like())
    batches = [learnable(source.batch(i)) for i in range(500)]
    wide = losses(criteo_like(), batches)
    assert wide[-50:].mean() < 0.75 * wide[:50].mean(), "nothing was learned, so nothing is compared"
    for storage in TABLE_STORAGES:
        narrow = losses(criteo_like().changed(Changes(dtype="bf16", table_storage=storage)), batches)
        assert not torch.equal(wide, narrow), "rounding to bf16 must show"
        # Single steps of 128 samples scatter; what training follows is their mean over a stretch.
        stretches = [(wide[i : i + 50].mean(), narrow[i : i + 50].mean()) for i in range(0, 500, 50)]
        assert all(float(abs(b / a - 1)) < 0.01 for a, b in stretches), (storage, stretches)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("strategy", "interaction"),
    [("race_free_range", "dot"), ("race_free_modulo", "dot_with_diagonal"), ("bucketed", "concatenation"), ("bucketed", "dot")],
)
def test_adagrad_steps_are_the_formulas(dtype: str, strategy: str, interaction: str) -> None:
    """Against the same forward and backward by autograd, and the formulas on coalesced gradients."""
    model = load_model_by_name("tiny").changed(Changes(dtype=dtype, optimizer="adagrad"))
    model = model.model_copy(update={"interaction": interaction, "learning_rate": 0.01})  # at which none of them diverges
    dlrm = DLRM(model, RunConfig(threads=2, operators={"embedding_bag.update": EmbeddingUpdateKnobs(strategy=strategy)}))
    weights = {name: value.double().clone() for name, value in dlrm.state_dict().items()}
    sums = {name: torch.zeros(len(value)) if name.startswith("emb") else torch.zeros_like(value) for name, value in weights.items()}
    source = make_source(model)
    for step in range(4):
        batch = source.batch(step)
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        loss = _plain_loss(model, leaves, batch)
        torch.autograd.backward(loss)
        assert dlrm.step(batch) == pytest.approx(loss.item(), rel=1e-5 if dtype == "fp32" else 2e-2)
        for name, leaf in leaves.items():
            gradient = leaf.grad
            assert gradient is not None
            table = name.startswith("emb")
            sums[name] = sums[name] + (gradient.square().mean(1) if table else gradient.square())
            scale = sums[name].sqrt() + 1e-10
            weights[name] = weights[name] - model.learning_rate * gradient / (scale[:, None] if table else scale)
        if dtype == "bf16":
            break  # from here on the two train from weights that were rounded differently
    # Of sums of squares: a bias of the bottom MLP adds 64 gradients of either sign, and rounded ones leave 12 % under concatenation.
    worst = 1e-4 if dtype == "fp32" else 0.2
    # The first step of Adagrad is the gradient's sign, which rounding to bf16 flips where it is small: there only the sums can be compared.
    for name, value in dlrm.state_dict().items() if dtype == "fp32" else ():
        moved = float((weights[name] - value).norm() / (weights[name] - dlrm_start(model)[name]).norm())
        assert moved < worst, f"{name}: off by {moved:.1e} of its step"
    for name, value in dlrm.optimizer_state().items():
        assert float((sums[name] - value).norm() / sums[name].norm()) < worst, name


def dlrm_start(model: Model) -> dict[str, torch.Tensor]:
    return DLRM(model, RunConfig(threads=1)).state_dict()


def _plain_loss(model: Model, weights: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    def mlp(x: torch.Tensor, side: str, layers: int) -> torch.Tensor:
        for i in range(layers):
            x = torch.nn.functional.linear(x, weights[f"{side}.{2 * i}.weight"], weights[f"{side}.{2 * i}.bias"])
            x = torch.sigmoid(x) if side == "top_l" and i == layers - 1 else torch.relu(x)
        return x

    samples = len(batch.labels)
    vectors = [mlp(batch.dense.double(), "bot_l", len(model.bottom_mlp) - 1)]
    for t in range(model.num_tables):
        offsets = batch.offsets[t * samples : (t + 1) * samples + 1].long()
        begin, end = int(offsets[0]), int(offsets[-1])
        indices, table = batch.indices[begin:end].long(), weights[f"emb_l.{t}.weight"]
        vectors.append(torch.nn.functional.embedding_bag(indices, table, offsets[:-1] - begin, mode="sum"))
    clicks = mlp(combined(model.interaction, vectors), "top_l", len(model.top_mlp)).squeeze(1)
    return torch.nn.functional.binary_cross_entropy(clicks, batch.labels.double())


def test_a_checkpoint_carries_adagrads_sums(tmp_path: Path) -> None:
    model = load_model_by_name("tiny").changed(Changes(dtype="bf16", optimizer="adagrad"))
    source = make_source(model)
    first = DLRM(model, seed=1)
    for i in range(3):
        first.step(source.batch(i))
    save_checkpoint(tmp_path / "c.pt", first.state_dict(), {}, first.optimizer_state())
    found = read_checkpoint(tmp_path / "c.pt")
    check_optimizer_state(model, found.optimizer_state)
    second = DLRM(model, seed=2)
    second.load_state_dict(found.state)
    second.load_optimizer_state(found.optimizer_state)
    assert [second.step(source.batch(i)) for i in range(3, 6)] == [first.step(source.batch(i)) for i in range(3, 6)]
    wrong = {name: value for name, value in found.optimizer_state.items() if name != "top_l.0.bias"}
    with pytest.raises(InputError, match=r"optimizer's state .* missing: top_l\.0\.bias"):
        check_optimizer_state(model, wrong)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_stochastic_tables_go_on_from_a_checkpoint_as_if_they_had_never_stopped(optimizer: str, tmp_path: Path) -> None:
    model = load_model_by_name("tiny").changed(Changes(dtype="bf16", table_storage="stochastic", optimizer=optimizer))
    source, runs = make_source(model), [DLRM(model, RunConfig(threads=threads)) for threads in (1, 2)]
    for i in range(3):
        runs[0].step(source.batch(i))
    save_checkpoint(tmp_path / "c.pt", runs[0].state_dict(), {"iter": 3}, runs[0].optimizer_state())
    load_into(runs[1], read_checkpoint(tmp_path / "c.pt"))
    tables = [name for name in runs[0].state_dict() if name.startswith("emb")]
    before, after = ({name: dlrm.state_dict()[name] for name in tables} for dlrm in runs)
    assert all(torch.equal(before[name], after[name]) for name in tables)
    # Dense weights travel in fp32, whole: so the losses are the same too.
    assert [runs[1].step(source.batch(i)) for i in range(3, 6)] == [runs[0].step(source.batch(i)) for i in range(3, 6)]
    assert all(torch.equal(runs[0].state_dict()[name], runs[1].state_dict()[name]) for name in tables)


def test_a_strategy_that_adagrad_does_not_take_is_refused() -> None:
    model = load_model_by_name("tiny").changed(Changes(optimizer="adagrad"))
    with pytest.raises(InputError, match=r"strategy of an update in fp32 with adagrad must be one of .*, got atomic"):
        DLRM(model, RunConfig(threads=1, operators={"embedding_bag.update": EmbeddingUpdateKnobs(strategy="atomic")}))
