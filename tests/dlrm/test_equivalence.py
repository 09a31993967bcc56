"""Ten training steps give the losses of a plain PyTorch DLRM with the same weights and batches, whatever computes them."""

import pytest
import torch
from combined import combined

from autotune.catalog import load_model_by_name
from autotune.config.knobs import RunConfig
from autotune.config.model import UNCHANGED, Changes, Model, Table
from autotune.data.batches import Batch, make_source
from autotune.dlrm.defaults import default_config
from autotune.dlrm.model import DLRM
from autotune.ops.embedding_tables import EmbeddingUpdateKnobs
from autotune.ops.interaction import InteractionKnobs
from autotune.ops.layer import LayerKnobs
from autotune.ops.native import kernels, target

STEPS = 10
STRATEGIES = ["race_free_range", "race_free_modulo", "bucketed", "atomic", "unfused"]


class PlainDLRM(torch.nn.Module):
    """The obvious model, from public torch modules alone."""

    def __init__(self, model: Model, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.interaction = model.interaction
        self.emb_l = torch.nn.ModuleList(
            torch.nn.EmbeddingBag.from_pretrained(state[f"emb_l.{t}.weight"].clone(), freeze=False, mode="sum", sparse=True)
            for t in range(model.num_tables)
        )
        self.bot_l = self._mlp(model.bottom_mlp, last=torch.nn.ReLU())
        self.top_l = self._mlp(model.top_sizes, last=torch.nn.Sigmoid())
        self.load_state_dict({key: value for key, value in state.items() if not key.startswith("emb_l")}, strict=False)

    @staticmethod
    def _mlp(sizes: tuple[int, ...], last: torch.nn.Module) -> torch.nn.Sequential:
        layers: list[torch.nn.Module] = []
        for i in range(len(sizes) - 1):
            layers += [torch.nn.Linear(sizes[i], sizes[i + 1]), torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1], last)

    def forward(self, batch: Batch) -> torch.Tensor:
        samples = batch.dense.shape[0]
        vectors = [self.bot_l(batch.dense)]
        for t, bag in enumerate(self.emb_l):
            offsets = batch.offsets[t * samples : (t + 1) * samples + 1].long()
            begin, end = int(offsets[0]), int(offsets[-1])
            vectors.append(bag(batch.indices[begin:end].long(), offsets[:-1] - begin))
        return self.top_l(combined(self.interaction, vectors)).squeeze(1)


def plain_losses(model: Model, state: dict[str, torch.Tensor], batches: list[Batch]) -> list[float]:
    plain = PlainDLRM(model, state)
    optimizer = torch.optim.SGD(plain.parameters(), lr=model.learning_rate)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy(plain(batch), batch.labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module", params=["small", "mlperf-1m"])
def training(request: pytest.FixtureRequest) -> tuple[Model, dict[str, torch.Tensor], list[Batch], list[float]]:
    model = load_model_by_name(request.param).changed(Changes(max_rows=3000, minibatch=128))
    source = make_source(model)
    batches = [source.batch(i) for i in range(STEPS)]
    state = {key: value.clone() for key, value in DLRM(model).state_dict().items()}
    return model, state, batches, plain_losses(model, state, batches)


def losses_with(training, config: RunConfig) -> list[float]:
    model, state, batches, _ = training
    dlrm = DLRM(model, config)
    dlrm.load_state_dict(state)
    return [dlrm.step(batch) for batch in batches]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_update_strategy_trains_like_plain_torch(training, strategy: str, threads: int) -> None:
    model, _, _, wanted = training
    config = default_config(model, threads=threads)
    config = config.model_copy(update={"operators": config.operators | {"embedding_bag.update": EmbeddingUpdateKnobs(strategy=strategy)}})
    assert losses_with(training, config) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "interaction"),
    [
        (LayerKnobs(implementation="torch"), InteractionKnobs(implementation="bmm")),
        (LayerKnobs(bn=16, bc=64, bk=16), InteractionKnobs(samples_per_task=1)),
        (LayerKnobs(bn=48, bc=100, bk=48, loop_order="columns_outer", thread_columns=2), InteractionKnobs()),
    ],
    ids=["torch", "small blocks", "columns outer"],
)
def test_every_gemm_and_interaction_trains_like_plain_torch(training, layer: LayerKnobs, interaction: InteractionKnobs) -> None:
    model, _, _, wanted = training
    base = default_config(model, threads=2)
    dense = {key: knobs for key, knobs in base.operators.items() if not key.startswith("emb")}
    swap = {key: layer if isinstance(knobs, LayerKnobs) else interaction for key, knobs in dense.items()}
    assert losses_with(training, base.model_copy(update={"operators": base.operators | swap})) == pytest.approx(wanted, rel=1e-5)


def with_interaction(interaction: str, changes: Changes = UNCHANGED) -> Model:
    """Seven vectors of 24 columns: neither fills whole vectors of the widest target."""
    model = load_model_by_name("tiny").changed(changes)
    tables = tuple(Table(rows=rows, dim=24, pooling=pooling) for rows, pooling in ((500, 3), (7, 1), (90, 2), (3, 1), (64, 5), (11, 2)))
    shape = {"minibatch": 61, "bottom_mlp": (13, 40, 24), "top_mlp": (33, 1), "tables": tables, "learning_rate": 0.1}
    return Model.model_validate(model.model_dump() | shape | {"interaction": interaction})


@pytest.mark.parametrize("name", [name for name in kernels.targets() if name != "reference"])
@pytest.mark.parametrize("interaction", ["dot_with_diagonal", "concatenation"])
def test_every_interaction_trains_like_plain_torch_there_and_back(interaction: str, name: str) -> None:
    """Plain torch begins with our weights; trained ones of ours predict in plain torch what they predict here."""
    model = with_interaction(interaction)
    source = make_source(model)
    batches = [source.batch(i) for i in range(STEPS + 1)]
    with target(name):
        dlrm = DLRM(model, default_config(model, threads=2))
        state = {key: value.clone() for key, value in dlrm.state_dict().items()}
        assert [dlrm.step(batch) for batch in batches[:STEPS]] == pytest.approx(plain_losses(model, state, batches[:STEPS]), rel=1e-5)
        plain = PlainDLRM(model, {key: value.clone() for key, value in dlrm.state_dict().items()})
        torch.testing.assert_close(dlrm.forward(batches[-1]), plain(batches[-1]).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interaction", ["dot_with_diagonal", "concatenation"])
def test_every_interaction_trains_in_bf16(interaction: str) -> None:
    """Against torch in fp32 from the same weights, as far as rounding to bf16 lets them go together."""
    model = with_interaction(interaction, Changes(dtype="bf16"))
    source = make_source(model)
    batches = [source.batch(i) for i in range(STEPS)]
    dlrm = DLRM(model, default_config(model, threads=2))
    state = {key: value.clone() for key, value in dlrm.state_dict().items()}
    assert [dlrm.step(batch) for batch in batches] == pytest.approx(plain_losses(model, state, batches), rel=1e-2)


def test_products_of_torch_train_the_diagonal_too() -> None:
    model = with_interaction("dot_with_diagonal")
    batches = [make_source(model).batch(i) for i in range(3)]
    default = default_config(model, threads=2)
    bmm = dict.fromkeys(("interaction.forward", "interaction.backward"), InteractionKnobs(implementation="bmm"))
    dlrm = DLRM(model, default.model_copy(update={"operators": default.operators | bmm}))
    state = {key: value.clone() for key, value in dlrm.state_dict().items()}
    assert [dlrm.step(batch) for batch in batches] == pytest.approx(plain_losses(model, state, batches), rel=1e-5)


def test_the_weights_after_training_are_those_of_plain_torch(training) -> None:
    model, state, batches, _ = training
    plain = PlainDLRM(model, state)
    optimizer = torch.optim.SGD(plain.parameters(), lr=model.learning_rate)
    dlrm = DLRM(model)
    dlrm.load_state_dict(state)
    for batch in batches[:3]:
        dlrm.step(batch)
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy(plain(batch), batch.labels).backward()
        optimizer.step()
    trained = dlrm.state_dict()
    for name, weight in plain.state_dict().items():
        # In norm, not by element: a pre-activation that rounds across zero flips one ReLU, and with it one sample's share of a row.
        assert float((trained[name] - weight).norm() / weight.norm()) < 1e-6, name


def test_configure_changes_knobs_and_keeps_the_weights(training) -> None:
    model, state, batches, wanted = training
    dlrm = DLRM(model)
    dlrm.load_state_dict(state)
    losses = []
    for i, batch in enumerate(batches):
        config = default_config(model, threads=1 + i % 2).model_copy(update={"huge_pages": i % 3 == 0})
        dlrm.configure(config)
        losses.append(dlrm.step(batch))
    assert losses == pytest.approx(wanted, rel=1e-5)


def test_mlperf_1m_at_its_own_minibatch_trains_like_plain_torch() -> None:
    model = load_model_by_name("mlperf-1m").changed(Changes(max_rows=20_000))
    source = make_source(model)
    batches = [source.batch(i) for i in range(2)]
    dlrm = DLRM(model)
    state = {key: value.clone() for key, value in dlrm.state_dict().items()}
    wanted = plain_losses(model, state, batches)
    default = default_config(model)
    torch_layers = {key: LayerKnobs(implementation="torch") for key, knobs in default.operators.items() if isinstance(knobs, LayerKnobs)}
    bucketed = {"embedding_bag.update": EmbeddingUpdateKnobs(strategy="bucketed")}
    for operators in ({}, bucketed | torch_layers):
        dlrm.configure(default.model_copy(update={"operators": default.operators | operators}))
        dlrm.load_state_dict(state)
        # The second step has what the first one updated; what comes later, and other strategies, the tests of small models show.
        assert [dlrm.step(batch) for batch in batches] == pytest.approx(wanted, rel=1e-5), operators
