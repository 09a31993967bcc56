"""Who is compared, in which environment, and that every peer trains the model that ours trains."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from autotune.catalog import load_model_by_name
from autotune.comparing import peers as comparing_peers
from autotune.comparing.compare import loss_tolerances
from autotune.comparing.models import BUILDERS
from autotune.comparing.peers import BASELINE, DEFAULT, DEFAULT_IN_FP32, PEERS, Peer, environment_of, peers_of
from autotune.comparing.room import groups
from autotune.config.model import Changes, Model
from autotune.config.tuned import Launch
from autotune.data.batches import make_source
from autotune.dlrm.checkpoint import state_shapes
from autotune.dlrm.model import DLRM

LAUNCH = Launch(threads=2, cpus=(0, 1), environment={"OMP_NUM_THREADS": "2", "OMP_PROC_BIND": "true"})


def test_environments_do_not_leak_into_each_other() -> None:
    mine = {"PATH": "/bin", "OMP_NUM_THREADS": "7", "MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    plain, best = Peer("a", "stock", best_environment=False), Peer("b", "stock", best_environment=True)
    assert environment_of(plain, LAUNCH, 2, mine) == {"PATH": "/bin"}
    assert environment_of(DEFAULT, LAUNCH, 2, mine) == {"PATH": "/bin", **LAUNCH.environment}
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


@pytest.mark.parametrize(("torch_version", "fits", "other"), [("2.13.0+cpu", "1.8.", "1.9.0"), ("2.14.1", "1.9.", "1.8.0")])
def test_fbgemm_must_be_of_the_release_that_loads_with_the_installed_torch(
    torch_version: str, fits: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"torch": torch_version, "fbgemm-gpu-cpu": f"{fits}0"}
    monkeypatch.setattr(comparing_peers, "version", installed.__getitem__)
    fbgemm, torchrec = PEERS[-2:]
    monkeypatch.setattr(comparing_peers, "find_spec", lambda module: None)
    assert fbgemm.missing == f"not installed: fbgemm_gpu; pip install 'fbgemm-gpu-cpu=={fits}*'"
    assert f"pip install 'fbgemm-gpu-cpu=={fits}*' tensordict " in str(torchrec.missing)
    assert str(torchrec.missing).endswith(f"then pip install --no-deps 'torchrec=={fits}*'")
    monkeypatch.setattr(comparing_peers, "find_spec", lambda module: module)
    assert fbgemm.missing is torchrec.missing is None
    installed["fbgemm-gpu-cpu"] = other
    wrong = f"fbgemm-gpu-cpu {other} does not load with torch {torch_version}; pip install 'fbgemm-gpu-cpu=={fits}*'"
    assert fbgemm.missing == wrong
    assert str(torchrec.missing).startswith(wrong)


def test_fbgemm_is_left_out_of_models_whose_dims_it_does_not_take() -> None:
    tiny = load_model_by_name("tiny")
    odd = tiny.model_copy(update={"bottom_mlp": (*tiny.bottom_mlp[:-1], 6)})
    refused = {peer.name: peer.unfit(odd) for peer in PEERS if peer.unfit(odd)}
    assert refused == dict.fromkeys(("fbgemm", "torchrec"), "on a CPU it takes embedding dims that are multiples of 4, got 6")
    assert not any(peer.unfit(tiny) for peer in PEERS)


def test_in_bf16_fbgemm_and_torchrec_stay_out_and_ours_in_fp32_takes_part() -> None:
    tiny = load_model_by_name("tiny")
    narrow = tiny.changed(Changes(dtype="bf16"))
    assert peers_of(tiny) == PEERS
    assert peers_of(narrow) == (*PEERS, DEFAULT_IN_FP32)
    refused = {peer.name: peer.unusable(narrow) for peer in peers_of(narrow) if peer.unusable(narrow)}
    assert refused == dict.fromkeys(("fbgemm", "torchrec"), "on a CPU its tables are in fp32 alone, got bf16")
    assert DEFAULT_IN_FP32.unusable(tiny) == "the model itself is in fp32"


def test_a_peer_is_left_out_of_models_whose_interaction_it_is_not_built_with() -> None:
    other = load_model_by_name("tiny").model_copy(update={"interaction": "cross"})
    assert {peer.unfit(other) for peer in PEERS} == {"it is built with interaction dot, dot_with_diagonal, concatenation, got cross"}


@pytest.mark.parametrize(("at_once", "sizes"), [(2, [1, 1, 1, 1, 1]), (3, [1, 2, 2]), (4, [2, 3]), (5, [2, 3]), (6, [5]), (9, [5])])
def test_groups_part_one_order_evenly_and_fit_beside_ours(at_once: int, sizes: list[int]) -> None:
    found = groups(PEERS, [7] * len(PEERS), 7 * (at_once - 1))
    assert [len(group) for group in found] == sizes
    assert sum(found, ()) == PEERS
    assert all(len(group) < at_once for group in found)
    assert groups((), (), 0) == ((),)


def test_a_group_holds_what_fits_by_each_ones_own_size() -> None:
    assert [len(group) for group in groups(PEERS, [1, 1, 1, 1, 3], 5)] == [2, 3]
    assert [len(group) for group in groups(PEERS, [1, 1, 1, 1, 3], 4)] == [1, 2, 2]


@pytest.fixture(params=[(1, "dot"), (3, "dot"), (3, "dot_with_diagonal"), (3, "concatenation")], ids=str)
def model(request: pytest.FixtureRequest) -> Model:
    tiny, (pooling, interaction) = load_model_by_name("tiny"), request.param
    tables = tuple(table.model_copy(update={"pooling": float(pooling)}) for table in tiny.tables)
    return tiny.model_copy(update={"tables": tables, "interaction": interaction})


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.kind != "compiled"], ids=lambda peer: peer.name)
def test_a_peer_trains_the_model_that_ours_trains(peer: Peer, model: Model, dtype: str) -> None:
    model = model.changed(Changes(dtype=dtype))
    if why := peer.unusable(model):
        pytest.skip(why)
    dlrm, source = DLRM(model), make_source(model)
    # Tables as large as trained ones: as drawn, they hardly move the first losses.
    state = {name: weight * (10 if name.startswith("emb") else 1) for name, weight in dlrm.state_dict().items()}
    dlrm.load_state_dict(state)
    other = BUILDERS[peer.kind](model, state)
    tolerances = loss_tolerances(dtype)
    for number in range(6):
        batch = source.batch(number)
        tolerance = tolerances[min(number, len(tolerances) - 1)]
        assert other.step(other.prepare(batch)) == pytest.approx(dlrm.step(batch), rel=tolerance)


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
