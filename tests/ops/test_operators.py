"""Every operator pass of a model: its work, its knobs, and cases that check before they are timed."""

from typing import get_args

import pytest
import torch

from autotune.catalog import load_model_by_name
from autotune.config.profile import Topology
from autotune.data.batches import make_source
from autotune.dlrm.model import DLRM
from autotune.machine.topology import vector_lanes
from autotune.ops.base import Operator
from autotune.ops.embedding_tables import EmbeddingBags, EmbeddingForwardKnobs, EmbeddingUpdateKnobs, Lookups
from autotune.ops.interaction import Interaction, InteractionBackward, InteractionForward
from autotune.ops.layer import LayerKnobs
from autotune.ops.layer_candidates import default_knobs
from autotune.ops.layer_shapes import Direction, Gemm
from autotune.ops.mlp import LayerBackwardWeights, LayerForward, LayerPass
from autotune.ops.native import cold_sets, empty_rows, leading_dimension, target
from autotune.ops.table_alone import tables_alone

THREADS = 2
INTERACTIONS = (InteractionForward, InteractionBackward)


def machine(cores: int = 2, l2_bytes: int = 1 << 20) -> Topology:
    return Topology(
        cpu_model="test", vendor="test", sockets=1, physical_cores=cores, logical_cpus=cores, allowed_cpus=tuple(range(cores)),
        core_cpus=tuple((c,) for c in range(cores)), socket_of_core=(0,) * cores, numa_nodes={0: tuple(range(cores))}, l1d_bytes=32 << 10,
        l2_bytes=l2_bytes, l3_bytes=32 << 20, l3_instances=1, isa=(), cpu_quota=None, memory_bytes=1 << 34, memory_limit_bytes=None,
        huge_pages="madvise",
    )  # fmt: skip


@pytest.fixture(scope="module")
def dlrm() -> DLRM:
    return DLRM(load_model_by_name("tiny"))


@pytest.fixture(scope="module")
def operators(dlrm: DLRM) -> list[Operator]:
    return dlrm.operators(make_source(dlrm.model))


def test_the_operators_are_the_passes_of_the_config_and_the_loss(dlrm: DLRM, operators: list[Operator]) -> None:
    assert {op.key for op in operators} == {*dlrm.config.operators, "loss", "bottom_mlp.mask"}
    assert len({op.key for op in operators}) == len(operators)


def test_the_default_is_a_candidate_and_candidates_differ(operators: list[Operator]) -> None:
    for op in operators:
        candidates = op.candidates(machine(), THREADS)
        assert op.default(THREADS, vector_lanes(machine())) in candidates, op.key
        assert len(set(candidates)) == len(candidates), op.key


def test_every_candidate_passes_its_check(operators: list[Operator]) -> None:
    for op in operators:
        case = op.case(seed=3)
        for knobs in op.candidates(machine(), THREADS):
            check = case.check(knobs, THREADS)
            assert check.passed, (op.key, knobs, check)


def test_a_check_can_fail(operators: list[Operator], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"forward": torch.Tensor.zero_, "backward_data": torch.Tensor.zero_}
    for op in operators:
        if not isinstance(op, LayerPass) or op.direction not in broken:
            continue
        case = op.case(seed=3)
        knobs = op.default(THREADS, vector_lanes())
        monkeypatch.setattr(case, "_call", lambda layer, inputs, out, *rest: out.zero_())
        assert not case.check(knobs, THREADS).passed, op.key


def test_a_check_of_backward_weights_sees_weight_and_bias_and_restores_both(monkeypatch: pytest.MonkeyPatch) -> None:
    op = LayerBackwardWeights("top_mlp.0.backward_weights", "layer", 1500, 20, 17, "relu", masked=False)
    case, knobs = op.case(seed=3), LayerKnobs(bc=256)
    assert case.check(knobs, THREADS).passed
    assert case.check(LayerKnobs(implementation="torch"), THREADS).passed  # the first left no trace
    call = case._call
    lengths = []

    def spoil(part: str):
        def spoiled(layer, inputs, *rest) -> None:
            lengths.append(len(inputs[0]))
            call(layer, inputs, *rest)
            {"weight": layer.parts[0], "bias": layer.bias}[part][-1] += 1e-2

        return spoiled

    for part in ("weight", "bias"):
        monkeypatch.setattr(case, "_call", spoil(part))
        assert not case.check(knobs, THREADS).passed
    assert min(lengths) > 1024  # the longest bc that is offered: partial sums meet
    monkeypatch.setattr(case, "_call", call)
    assert case.check(knobs, THREADS).passed


def test_timing_leaves_every_weight_as_it_was(dlrm: DLRM, operators: list[Operator]) -> None:
    before = {name: weight.clone() for name, weight in dlrm.state_dict().items()}
    for op in operators:
        case = op.case(seed=1)
        for _ in range(3):
            case.run(op.default(THREADS, vector_lanes()), THREADS)
    for name, weight in dlrm.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_embedding_work_counts_distinct_rows_once_and_traffic_every_time() -> None:
    bags = EmbeddingBags([10, 10], 16)
    lookups = Lookups(torch.tensor([1, 1, 2, 7, 7, 7]), torch.tensor([0, 2, 3, 5, 6]))
    (first, second) = tables_alone(bags, [0, 1], [lookups], 2)
    forward, update = first.forward.work() + second.forward.work(), first.update.work() + second.update.work()
    row, index_bytes = 64, (6 + 4) * 8
    assert forward.bytes_read == 3 * row + index_bytes
    assert forward.bytes_written == 2 * 2 * row
    assert (forward.row_traffic_bytes, update.row_traffic_bytes) == (6 * row, 12 * row)
    assert (forward.flops, update.flops) == (6 * 16, 2 * 6 * 16)
    assert update.bytes_written == 3 * row
    assert [(rows.touched, rows.unique, rows.table_bytes) for rows in forward.rows] == [(3, 2, 10 * row), (3, 1, 10 * row)]


@pytest.mark.parametrize("which", ["forward", "backward_data", "backward_weights"])
def test_a_layer_pass_does_two_flops_a_weight_and_sample(which) -> None:
    work = Operator.registry[f"mlp.{which}"]("x", "layer", 6, 5, 7, "relu", masked=False).work()
    assert work.flops == 2 * 5 * 6 * 7
    weights_passes = 2 if which == "backward_weights" else 1  # the update reads and writes them
    assert work.bytes == 4 * (6 * 5 + 6 * 7 + weights_passes * 5 * 7)


def test_interaction_backward_is_twice_the_forward() -> None:
    forward, backward = (kind("", 4, 5, 8).work() for kind in INTERACTIONS)
    assert forward.flops == 2 * 4 * 10 * 8
    assert backward.flops == 2 * forward.flops


def test_the_diagonal_adds_a_product_of_every_vector() -> None:
    without, forward, backward = (InteractionForward("", 4, 5, 8).work(), *(kind("", 4, 5, 8, True).work() for kind in INTERACTIONS))
    assert forward.flops - without.flops == 2 * 4 * 5 * 8
    assert forward.bytes_written - without.bytes_written == 4 * 4 * 5
    assert backward.flops == 2 * 4 * 5 * 5 * 8  # of every vector with every one
    assert backward.bytes_read == forward.bytes_read + forward.bytes_written


@pytest.mark.parametrize("kind", INTERACTIONS)
@pytest.mark.parametrize(("vectors", "dim"), [(1, 8), (7, 20), (27, 64)])
def test_every_candidate_of_the_diagonal_passes_its_check(kind: type[Interaction], vectors: int, dim: int) -> None:
    operator = kind("x", 70, vectors, dim, True)
    assert operator.shape != kind("x", 70, vectors, dim).shape  # raced apart
    case = operator.case(seed=3)
    for knobs in operator.candidates(machine(), THREADS):
        case.run(knobs, THREADS)
        assert case.check(knobs, THREADS).passed, knobs


@pytest.mark.parametrize("cores", [1, 2, 6, 28, 56])
def test_layer_candidates_fit_the_threads_and_half_of_l2(cores: int) -> None:
    op = LayerForward("top_mlp.0.forward", "layer", 2048, 479, 1024, "relu", masked=False)
    for knobs in op.candidates(machine(cores), cores):
        assert isinstance(knobs, LayerKnobs)
        assert cores % knobs.thread_columns == 0
        floats = knobs.bk * knobs.bc + knobs.bn * knobs.bc + knobs.bn * knobs.bk
        exempt = knobs.bc <= 128 or knobs.implementation != "blocked" or knobs == op.default(cores, vector_lanes(machine()))
        assert floats * 4 <= machine().l2_bytes // 2 or exempt


@pytest.mark.parametrize("direction", get_args(Direction))
def test_panels_are_as_wide_as_a_microtile_where_vectors_are_short(direction: Direction) -> None:
    gemm = Gemm(direction, 2048, 1024, 1024)
    assert (default_knobs(gemm, 2, lanes=8).bk, default_knobs(gemm, 2, lanes=16).bk) == (16, 64)


def test_few_rows_get_a_thread_grid_with_columns() -> None:
    assert default_knobs(Gemm("forward", 64, 4096, 4096), 16, lanes=16).thread_columns > 1
    assert default_knobs(Gemm("forward", 4096, 4096, 4096), 16, lanes=16).thread_columns == 1


def test_moving_tables_to_other_pages_keeps_their_values() -> None:
    bags = EmbeddingBags([50, 7], 8, huge_pages=True, seed=4)
    before = [table.clone() for table in bags.weights]
    bags.move(False, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, bags.weights, strict=True))
    out = torch.empty(1, 2, 8)
    with target("reference"):
        bags.forward(Lookups(torch.tensor([49, 6]), torch.tensor([0, 1, 2])), out, EmbeddingForwardKnobs(), 1)
    assert torch.equal(out[0, 0], before[0][49])


@pytest.mark.parametrize("strategy", ["race_free_range", "race_free_modulo", "bucketed", "unfused"])
def test_initial_weights_and_updates_are_the_same_at_any_thread_count(strategy: str) -> None:
    lookups = Lookups(torch.randint(0, 30, (200,), generator=torch.Generator().manual_seed(0)), torch.arange(0, 201, 10))
    gradient = torch.randn(10, 2, 24, generator=torch.Generator().manual_seed(1))
    tables = []
    for threads in (1, 2, 3, 5):
        bags = EmbeddingBags([30, 30], 24, threads=threads, seed=9)
        bags.update(lookups, gradient, 0.1, EmbeddingUpdateKnobs(strategy=strategy), threads)
        tables.append(torch.cat(bags.weights))
    assert all(torch.equal(tables[0], other) for other in tables[1:])


def test_rows_of_an_activation_never_share_one_cache_set() -> None:
    for columns in (1, 13, 256, 512, 1024, 1040, 4096):
        stride = leading_dimension(columns)
        assert stride >= columns
        assert stride % 16 == 0
        assert stride % 256 != 0
        assert empty_rows(3, columns).stride() == (stride, 1)


def test_cold_cases_rotate_through_more_than_the_caches() -> None:
    assert cold_sets(1 << 30) == 2
    assert cold_sets(1 << 20) >= 64


def test_updates_go_on_after_their_workspace_is_released() -> None:
    lookups = Lookups(torch.tensor([1, 1, 2]), torch.tensor([0, 2, 3]))
    bags = EmbeddingBags([4], 8)
    before = bags.weights[0].clone()
    for strategy in ("unfused", "bucketed"):
        bags.update(lookups, torch.ones(2, 1, 8), 1.0, EmbeddingUpdateKnobs(strategy=strategy), 2)
        bags.release_workspace()
    assert torch.allclose(bags.weights[0][1], before[1] - 4)
