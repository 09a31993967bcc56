"""Who is compared, in which environment, and that every peer trains the model that ours trains."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from autotune.catalog import load_model_by_name
from autotune.comparing.compare import LOSS_TOLERANCE, groups
from autotune.comparing.models import BUILDERS
from autotune.comparing.peers import BASELINE, PEERS, Peer, environment_of
from autotune.config.model import Model
from autotune.config.tuned import Launch
from autotune.data.batches import make_source
from autotune.dlrm.checkpoint import state_shapes
from autotune.dlrm.model import DLRM

LAUNCH = Launch(threads=2, cpus=(0, 1), environment={"OMP_NUM_THREADS": "2", "OMP_PROC_BIND": "true"})


def test_environments_do_not_leak_into_each_other() -> None:
    mine = {"PATH": "/bin", "OMP_NUM_THREADS": "7", "MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    plain, best = Peer("a", "stock", best_environment=False), Peer("b", "stock", best_environment=True)
    assert environment_of(plain, LAUNCH, 2, mine) == {"PATH": "/bin"}
    assert environment_of(None, LAUNCH, 2, mine) == {"PATH": "/bin", **LAUNCH.environment}
    told = environment_of(best, LAUNCH, 2, mine)
    assert told["OMP_NUM_THREADS"] == "2"
    assert told["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert "MALLOC_ARENA_MAX" not in told


def test_a_setting_that_the_loader_needs_reaches_every_contestant() -> None:
    mine = {"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=8192:glibc.malloc.arena_max=1"}
    plain, best = Peer("a", "stock", best_environment=False), Peer("b", "stock", best_environment=True)
    assert environment_of(plain, LAUNCH, 2, mine) == {"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=8192"}
    assert environment_of(best, LAUNCH, 2, mine)["GLIBC_TUNABLES"] == "glibc.rtld.optional_static_tls=8192:glibc.malloc.hugetlb=1"


def test_the_baseline_is_first_and_needs_nothing_more_than_torch() -> None:
    assert PEERS[0].name == BASELINE
    assert PEERS[0].missing is None


def test_a_peer_that_is_not_installed_says_how_to_get_it() -> None:
    missing = Peer("x", "stock", best_environment=True, modules=("os", "no_such_module"), remedy="pip install it").missing
    assert missing == "not installed: no_such_module; pip install it"


def test_fbgemm_is_left_out_of_models_whose_dims_it_does_not_take() -> None:
    tiny = load_model_by_name("tiny")
    odd = tiny.model_copy(update={"bottom_mlp": (*tiny.bottom_mlp[:-1], 6)})
    refused = {peer.name: peer.unfit(odd) for peer in PEERS if peer.unfit(odd)}
    assert refused == dict.fromkeys(("fbgemm", "torchrec"), "on a CPU it takes embedding dims that are multiples of 4, got 6")
    assert not any(peer.unfit(tiny) for peer in PEERS)


def test_a_peer_is_left_out_of_models_whose_interaction_it_is_not_built_with() -> None:
    other = load_model_by_name("tiny").model_copy(update={"interaction": "cross"})
    assert {peer.unfit(other) for peer in PEERS} == {"it is built with interaction dot, dot_with_diagonal, concatenation, got cross"}


@pytest.mark.parametrize(("at_once", "sizes"), [(2, [1, 1, 1, 1, 1]), (3, [1, 2, 2]), (4, [2, 3]), (5, [2, 3]), (6, [5]), (9, [5])])
def test_groups_part_one_order_evenly_and_fit_beside_ours(at_once: int, sizes: list[int]) -> None:
    found = groups(PEERS, at_once)
    assert [len(group) for group in found] == sizes
    assert sum(found, ()) == PEERS
    assert all(len(group) < at_once for group in found)
    assert groups((), at_once) == ((),)


@pytest.fixture(params=[(1, "dot"), (3, "dot"), (3, "dot_with_diagonal"), (3, "concatenation")], ids=str)
def model(request: pytest.FixtureRequest) -> Model:
    tiny, (pooling, interaction) = load_model_by_name("tiny"), request.param
    tables = tuple(table.model_copy(update={"pooling": float(pooling)}) for table in tiny.tables)
    return tiny.model_copy(update={"tables": tables, "interaction": interaction})


@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.kind != "compiled"], ids=lambda peer: peer.name)
def test_a_peer_trains_the_model_that_ours_trains(peer: Peer, model: Model) -> None:
    if peer.missing:
        pytest.skip(peer.missing)
    dlrm, source = DLRM(model), make_source(model)
    other = BUILDERS[peer.kind](model, {name: weight.clone() for name, weight in dlrm.state_dict().items()})
    for number in range(6):
        batch = source.batch(number)
        assert other.step(other.prepare(batch)) == pytest.approx(dlrm.step(batch), rel=LOSS_TOLERANCE)


def test_torchrec_is_given_our_weights_after_it_has_drawn_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: its tables are drawn when they are made, in any order of names, and each is fed by one feature."""
    made: list[Any] = []

    class Collection:
        def __init__(self, configs: list[Any], optimizer: type, options: dict[str, float], device: torch.device) -> None:
            self.configs, self.optimizer, self.options, self.device = configs, optimizer, options, device
            drawn = {config.name: torch.randn(config.num_embeddings, config.embedding_dim) for config in configs}
            self.tables = dict(sorted(drawn.items(), reverse=True))
            made.append(self)

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {f"embedding_bags.{name}.weight": table for name, table in self.tables.items()}

    configs, modules = ModuleType("configs"), ModuleType("modules")
    configs.EmbeddingBagConfig = SimpleNamespace  # type: ignore[attr-defined]
    modules.FusedEmbeddingBagCollection = Collection  # type: ignore[attr-defined]
    for name in ("torchrec", "torchrec.modules"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchrec.modules.embedding_configs", configs)
    monkeypatch.setitem(sys.modules, "torchrec.modules.fused_embedding_modules", modules)
    model = load_model_by_name("tiny")
    state = {name: torch.randn(shape) for name, shape in state_shapes(model).items()}
    given = dict(state)
    BUILDERS["torchrec"](model, state)
    (bags,) = made
    assert (bags.optimizer, bags.options) == (torch.optim.SGD, {"lr": model.learning_rate})
    for t, config in enumerate(bags.configs):
        assert config.feature_names == [f"f{t}"]
        assert torch.equal(bags.tables[config.name], given[f"emb_l.{t}.weight"])
