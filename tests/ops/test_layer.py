"""A layer in each dtype with each optimizer: its weights come and go whole, and its steps are those of torch.optim."""

import itertools
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from autotune.config.model import Dtype, Optimizer
from autotune.config.profile import Topology
from autotune.machine.topology import vector_lanes
from autotune.ops import layer_case
from autotune.ops.base import Operator
from autotune.ops.layer import Layer, LayerKnobs
from autotune.ops.layer_shapes import Direction
from autotune.ops.mlp import LayerBackwardWeights, LayerForward

KINDS = list(itertools.product(get_args(Dtype), get_args(Optimizer)))
RATE, SAMPLES, INPUTS, OUTPUTS, THREADS = 0.05, 40, 21, 33, 2
EPSILON = 2.0**-23
BLOCKED, TORCH = LayerKnobs(bn=16, bc=16, bk=32), LayerKnobs(implementation="torch")


def machine() -> Topology:
    return Topology(
        cpu_model="test", vendor="test", sockets=1, physical_cores=2, logical_cpus=2, allowed_cpus=(0, 1), core_cpus=((0,), (1,)),
        socket_of_core=(0, 0), numa_nodes={0: (0, 1)}, l1d_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=32 << 20, l3_instances=1, isa=(),
        cpu_quota=None, memory_bytes=1 << 34, memory_limit_bytes=None, huge_pages="madvise",
    )  # fmt: skip


def layer(dtype: Dtype = "fp32", optimizer: Optimizer = "sgd", seed: int = 0, knobs: LayerKnobs = BLOCKED) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    made = Layer(INPUTS, OUTPUTS, "relu", generator=generator, dtype=dtype, optimizer=optimizer)
    made.configure(knobs, knobs)
    return made


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(SAMPLES, OUTPUTS, generator=generator), torch.randn(SAMPLES, INPUTS, generator=generator)) for _ in range(count)]


def passes(of: Layer, knobs: LayerKnobs) -> tuple[torch.Tensor, torch.Tensor]:
    """What forward and backward-data give."""
    dy, x = batches(1)[0]
    y, dx = torch.zeros(SAMPLES, OUTPUTS), torch.zeros(SAMPLES, INPUTS)
    of.forward(x, y, knobs, THREADS)
    of.backward_data(dy, x, dx, knobs, THREADS)
    return y, dx


@pytest.mark.parametrize(("dtype", "optimizer"), KINDS)
def test_initial_weights_are_the_same_in_every_kind(dtype: Dtype, optimizer: Optimizer) -> None:
    for part, of_fp32 in zip(layer(dtype, optimizer).weights(), layer().weights(), strict=True):
        assert torch.equal(part, of_fp32)


@pytest.mark.parametrize(("dtype", "optimizer"), KINDS)
def test_a_layer_that_loads_another_goes_on_as_it_would(dtype: Dtype, optimizer: Optimizer) -> None:
    first, second = layer(dtype, optimizer), layer(dtype, optimizer, seed=1)
    steps = batches(3)
    first.backward_weights(*steps[0], RATE, BLOCKED, THREADS)
    second.load(*first.weights())
    for held, value in zip(second.state.values(), first.state.values(), strict=True):
        held.copy_(value)
    for knobs in (BLOCKED, TORCH):
        assert all(torch.equal(a, b) for a, b in zip(passes(first, knobs), passes(second, knobs), strict=True))
    for dy, x in steps[1:]:
        for of in (first, second):
            of.backward_weights(dy, x, RATE, BLOCKED, THREADS)
    assert all(torch.equal(a, b) for a, b in zip(first.weights(), second.weights(), strict=True))
    assert (not first.state) == (optimizer == "sgd")


def test_a_weight_in_halves_has_no_fp32_copy() -> None:
    of = layer("bf16")
    upper, lower = of.parts
    assert upper.numel() + lower.numel() == 2 * INPUTS * OUTPUTS
    assert upper.dtype == lower.dtype == torch.int16
    assert torch.equal(upper.view(torch.bfloat16).float().view(torch.int32), of.weights()[0].view(torch.int32) & ~0xFFFF)


@pytest.mark.parametrize("knobs", [BLOCKED, TORCH], ids=["blocked", "torch"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("dtype", "optimizer"), KINDS)
def test_five_steps_are_those_of_torch(dtype: Dtype, optimizer: Optimizer, fused: bool, knobs: LayerKnobs) -> None:
    """In double from the gradients as the layer takes them: rounded inputs in bf16, and torch rounds their product too.

    The first step of Adagrad is the sign of the gradient, so a gradient that rounding may turn is left out: both begin from sums of 1.
    """
    of = layer(dtype, optimizer)
    parameters = [torch.nn.Parameter(part.double()) for part in of.weights()]
    kind = torch.optim.Adagrad(parameters, RATE, eps=1e-10, initial_accumulator_value=1.0) if optimizer == "adagrad" else None
    for sums in of.state.values():
        sums.fill_(1.0)
    steps, allowed = batches(5), [0.0, 0.0]
    for dy, x in steps:
        read_dy, read_x = (tensor.double() if dtype == "fp32" else tensor.bfloat16().double() for tensor in (dy, x))
        parameters[0].grad, parameters[1].grad = read_dy.t() @ read_x, dy.double().sum(0)
        (kind or torch.optim.SGD(parameters, RATE)).step()
        rounding = 2.0**-8 if (dtype, knobs) == ("bf16", TORCH) else 0.0
        magnitude = float((read_dy.abs().t() @ read_x.abs()).max())
        # Of a step: the gradient's error, at most doubled by Adagrad's sums, and the roundings of the step and of the weight.
        gradient = SAMPLES * EPSILON * magnitude + rounding * float(parameters[0].grad.abs().max())
        allowed[0] += RATE * 2 * gradient + 8 * EPSILON
        allowed[1] += RATE * 2 * SAMPLES * EPSILON * float(dy.abs().sum(0).max()) + 8 * EPSILON
        if fused:
            of.backward_weights(dy, x, RATE, knobs, THREADS)
        else:
            of.gradients(dy, x, knobs, THREADS)
            of.descend(RATE, THREADS)
    for part, wanted, bound in zip(of.weights(), parameters, allowed, strict=True):
        assert float((part - wanted.detach()).abs().max()) <= bound
    for sums, parameter in zip(of.state.values(), parameters, strict=False):
        wanted = kind.state[parameter]["sum"] if kind else None
        assert torch.allclose(sums.double(), wanted, rtol=1e-5 if (dtype, knobs) != ("bf16", TORCH) else 0.02)


def test_adagrad_from_zero_sums_follows_torch_optim() -> None:
    of = layer(optimizer="adagrad")
    parameters = [torch.nn.Parameter(part.clone()) for part in of.weights()]
    optimizer = torch.optim.Adagrad(parameters, RATE)
    for dy, x in batches(4):
        parameters[0].grad, parameters[1].grad = dy.t() @ x, dy.sum(0)
        optimizer.step()
        of.backward_weights(dy, x, RATE, BLOCKED, THREADS)
    for part, parameter in zip(of.weights(), parameters, strict=True):
        assert torch.allclose(part, parameter.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", get_args(Direction))
@pytest.mark.parametrize(("dtype", "optimizer"), KINDS)
def test_every_candidate_passes_its_check_and_timing_changes_nothing(dtype: Dtype, optimizer: Optimizer, which: Direction) -> None:
    op = Operator.registry[f"mlp.{which}"]("x", "layer", 150, INPUTS, OUTPUTS, "relu", masked=True, dtype=dtype, optimizer=optimizer)
    case = op.case(seed=3)
    candidates = op.candidates(machine(), THREADS)
    assert op.default(THREADS, vector_lanes(machine())) in candidates
    for knobs in candidates[:2] + candidates[2::7]:
        check = case.check(knobs, THREADS)
        assert check.passed, (knobs, check)
        case.run(knobs, THREADS)
    layers = list(case._layers.values())
    assert all(torch.equal(a, b) for of in layers for a, b in zip(of.weights(), layers[0].weights(), strict=True))
    assert all(bool((sums == int(which == "backward_weights")).all()) for of in layers for sums in of.state.values())


@pytest.mark.parametrize("which", get_args(Direction))
def test_a_pass_of_a_model_is_timed_and_checked_on_the_models_weights(which: Direction) -> None:
    live = layer(optimizer="adagrad")
    before = [part.clone() for part in (*live.weights(), *live.state.values(), *(panels for _, panels in live._packed.values()))]
    op = Operator.registry[f"mlp.{which}"]("x", "layer", 150, INPUTS, OUTPUTS, "relu", masked=True, optimizer="adagrad")
    op.live = SimpleNamespace(memory=SimpleNamespace(modules={"layer": live}))
    case = op.case(seed=3)
    for width in (16, 64):
        knobs = LayerKnobs(bk=width)
        assert case.check(knobs, THREADS).passed
        case.run(knobs, THREADS)
        assert case._packed_for(knobs).parts[0].data_ptr() == live.parts[0].data_ptr()
    after = (*live.weights(), *live.state.values(), *(panels for _, panels in live._packed.values()))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_panels_of_many_widths_fit_only_while_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    case = LayerForward("x", "layer", 150, INPUTS, OUTPUTS).case(seed=3)
    widths = [LayerKnobs(bk=width) for width in (16, 32, 48, 64)]

    def fitting() -> list[bool]:
        case._layers.clear()
        return [case.fits(knobs) and bool(case._packed_for(knobs)) for knobs in widths]

    assert fitting() == [True] * 4
    monkeypatch.setattr(layer_case, "_PANELS_BYTES", 0)
    assert fitting() == [True, True, False, False]
    assert case.fits(widths[0]), "what is packed already takes no more"


@pytest.mark.parametrize("which", get_args(Direction))
def test_of_a_large_layer_a_part_is_checked_and_errors_are_seen(which: Direction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_case, "_CHECK_WEIGHTS", 200 * 100 // 7)
    columns = layer_case._checked_outputs(200, 100)
    assert {int(column) % 16 for column in columns} == set(range(16))
    assert set(range(136, 200)) <= set(columns.tolist())
    assert len(columns) < 100
    op = Operator.registry[f"mlp.{which}"]("x", "layer", 64, 100, 200, "none", masked=False)
    case = op.case(seed=3)
    assert case.check(BLOCKED, THREADS).passed
    case._reference[1][0].value.view(-1)[7] += 1.0
    assert not case.check(BLOCKED, THREADS).passed


@pytest.mark.parametrize("part", ["weight", "bias", "weight state", "bias state"])
def test_a_check_sees_every_part_of_an_adagrad_step(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = LayerBackwardWeights("x", "layer", 150, INPUTS, OUTPUTS, "relu", masked=False, dtype="bf16", optimizer="adagrad")
    case = op.case(seed=3)
    call = case._call

    def spoiled(of: Layer, *rest) -> None:
        call(of, *rest)
        weight, bias = of.weights()
        if part.endswith("state"):
            of.state[part.split()[0]][-1] += 1.0
        else:
            {"weight": weight, "bias": bias}[part][-1] += 1e-2
            of.load(weight, bias)

    assert case.check(BLOCKED, THREADS).passed
    monkeypatch.setattr(case, "_call", spoiled)
    assert not case.check(BLOCKED, THREADS).passed
    monkeypatch.setattr(case, "_call", call)
    assert case.check(BLOCKED, THREADS).passed


def test_candidates_in_bf16_have_an_even_reduction() -> None:
    op = LayerForward("x", "layer", 2048, 479, 1024, "relu", masked=False, dtype="bf16")
    assert all(knobs.bc % 2 == 0 for knobs in op.candidates(machine(), THREADS))


@pytest.mark.parametrize(
    ("which", "dtype", "optimizer", "weights_bytes"),
    [
        ("forward", "bf16", "sgd", 2),
        ("backward_data", "bf16", "adagrad", 2),
        ("backward_weights", "bf16", "sgd", 8),
        ("backward_weights", "fp32", "adagrad", 16),
        ("backward_weights", "bf16", "adagrad", 16),
    ],
)
def test_a_pass_counts_the_bytes_of_its_weights(which: Direction, dtype: Dtype, optimizer: Optimizer, weights_bytes: int) -> None:
    work = Operator.registry[f"mlp.{which}"]("x", "layer", 6, 5, 7, "relu", masked=False, dtype=dtype, optimizer=optimizer).work()
    assert work.bytes == 4 * (6 * 5 + 6 * 7) + weights_bytes * 5 * 7
    assert work.flops == 2 * 5 * 6 * 7
