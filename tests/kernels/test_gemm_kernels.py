"""Fully connected layers on every target: packing, the three passes, all blockings, against torch in double and the reference target."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from autotune import _kernels as kernels

DRAWN = settings(
    deadline=None,
    max_examples=int(os.environ.get("AUTOTUNE_TEST_EXAMPLES", "10")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAN = float("nan")
SIZES = (1, 2, 13, 16, 33, 64, 100, 479)
EPSILON = 2.0**-23

sizes = st.tuples(st.sampled_from((1, 2, 13, 33, 100)), st.sampled_from(SIZES), st.sampled_from(SIZES))
activations = st.sampled_from(("none", "relu", "sigmoid"))
seeds = st.integers(0, 2**31)
paddings = st.sampled_from((0, 1, 3, 16))


@dataclass(frozen=True)
class Blocking:
    bn: int
    bc: int
    bk: int
    columns_outer: bool
    thread_columns: int
    threads: int

    @property
    def arguments(self) -> tuple[int, int, int, bool, int, int]:
        return (self.bn, self.bc, self.bk, self.columns_outer, self.thread_columns, self.threads)


@st.composite
def blockings(draw: st.DrawFn) -> Blocking:
    threads, thread_columns = draw(st.sampled_from(((1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (6, 3))))
    return Blocking(
        bn=draw(st.sampled_from((1, 2, 5, 7, 16, 33, 128))),
        bc=draw(st.sampled_from((1, 3, 16, 64, 1000, 2**63 - 1))),
        bk=draw(st.sampled_from((16, 32, 48, 64))),
        columns_outer=draw(st.booleans()),
        thread_columns=thread_columns,
        threads=threads,
    )


def all_blockings(bk: int) -> Iterator[Blocking]:
    for bn, bc, order, (threads, columns) in itertools.product(
        (1, 5, 12, 64), (1, 16, 64, 128), (False, True), ((1, 1), (2, 1), (2, 2), (6, 3))
    ):
        yield Blocking(bn, bc, bk, order, columns, threads)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def panels_of(w: Tensor, width: int) -> Tensor:
    """w [columns, R] as panels [ceil(columns / width), R, width], zero beyond the last column."""
    panels = -(-w.shape[0] // width)
    padded = torch.zeros(panels * width, w.shape[1])
    padded[: len(w)] = w
    return padded.view(panels, width, w.shape[1]).transpose(1, 2).contiguous()


def activated(value: Tensor, tolerance: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    if activation == "relu":
        return value.relu(), tolerance
    if activation == "sigmoid":
        # The slope is at most 1/4; exp, the sum and the quotient round by a few units in the last place, of at most 1.
        return value.sigmoid(), tolerance / 4 + 6 * EPSILON
    return value, tolerance


@DRAWN
@given(k=st.sampled_from(SIZES), c=st.sampled_from(SIZES), padding=paddings, threads=st.integers(1, 4), seed=seeds)
@pytest.mark.parametrize(("forward_width", "backward_width"), [(16, 64), (32, 48), (48, 16), (64, 32)])
def test_pack_lays_weights_out_in_panels(
    forward_width: int, backward_width: int, k: int, c: int, padding: int, threads: int, seed: int, target: str, guarded: Any
) -> None:
    w = guarded.of(random(k, c, seed=seed), padding=(0, padding), fill=NAN)
    expected_forward, expected_backward = panels_of(w.view, forward_width), panels_of(w.view.t(), backward_width)
    forward, backward = guarded(expected_forward.numel()), guarded(expected_backward.numel())
    kernels.pack_weights(w.view, forward.view, forward_width, backward.view, backward_width, threads)
    assert torch.equal(forward.view, expected_forward.flatten())
    assert torch.equal(backward.view, expected_backward.flatten())
    forward.assert_untouched()
    backward.assert_untouched()


@DRAWN
@given(size=sizes, blocking=blockings(), activation=activations, biased=st.booleans(), px=paddings, py=paddings, seed=seeds)
def test_forward(
    size: tuple[int, int, int],
    blocking: Blocking,
    activation: str,
    biased: bool,
    px: int,
    py: int,
    seed: int,
    target: str,
    guarded: Any,
    close: Any,
    rounding_of: Any,
    on_target: Any,
) -> None:
    n, c, k = size
    x, w = guarded.of(random(n, c, seed=seed), padding=(0, px), fill=NAN), random(k, c, seed=seed + 1)
    bias = guarded.of(random(k, seed=seed + 2), fill=NAN).view if biased else None
    packed = guarded.of(panels_of(w, blocking.bk).flatten(), fill=NAN).view
    value, magnitude = x.view.double() @ w.double().t(), x.view.double().abs() @ w.double().abs().t()
    if bias is not None:
        value, magnitude = value + bias.double(), magnitude + bias.double().abs()
    expected, tolerance = activated(value, rounding_of(c, magnitude), activation)

    def run() -> Tensor:
        y = guarded(n, k, padding=(0, py))
        kernels.linear_forward(x.view, packed, bias, y.view, activation, *blocking.arguments)  # type: ignore[arg-type]
        y.assert_untouched()
        result: Tensor = y.view
        return result

    actual = run()
    close(actual, expected, tolerance, f"forward on {target}")
    with on_target("reference"):
        close(actual, run().double(), tolerance, f"forward on {target} against the reference")


@DRAWN
@given(size=sizes, blocking=blockings(), masked=st.booleans(), pd=paddings, pm=paddings, px=paddings, seed=seeds)
def test_backward_data(
    size: tuple[int, int, int],
    blocking: Blocking,
    masked: bool,
    pd: int,
    pm: int,
    px: int,
    seed: int,
    target: str,
    guarded: Any,
    close: Any,
    rounding_of: Any,
    on_target: Any,
) -> None:
    n, c, k = size
    dy, w = guarded.of(random(n, k, seed=seed), padding=(0, pd), fill=NAN), random(k, c, seed=seed + 1)
    mask = guarded.of(random(n, c, seed=seed + 2).relu(), padding=(0, pm), fill=NAN).view if masked else None
    packed = guarded.of(panels_of(w.t(), blocking.bk).flatten(), fill=NAN).view
    expected, magnitude = dy.view.double() @ w.double(), dy.view.double().abs() @ w.double().abs()
    if mask is not None:
        expected, magnitude = expected * (mask > 0), magnitude * (mask > 0)

    def run() -> Tensor:
        dx = guarded(n, c, padding=(0, px))
        kernels.linear_backward_data(dy.view, packed, mask, dx.view, *blocking.arguments)
        dx.assert_untouched()
        result: Tensor = dx.view
        return result

    actual, tolerance = run(), rounding_of(k, magnitude)
    close(actual, expected, tolerance, f"backward data on {target}")
    with on_target("reference"):
        close(actual, run().double(), tolerance, f"backward data on {target} against the reference")


@DRAWN
@given(size=sizes, blocking=blockings(), fused=st.booleans(), none=st.booleans(), pd=paddings, px=paddings, pw=paddings, seed=seeds)
def test_backward_weights(
    size: tuple[int, int, int],
    blocking: Blocking,
    fused: bool,
    none: bool,
    pd: int,
    px: int,
    pw: int,
    seed: int,
    target: str,
    guarded: Any,
    close: Any,
    rounding_of: Any,
    on_target: Any,
) -> None:
    n, c, k = (0 if none and size[0] == 1 else size[0]), size[1], size[2]
    dy, x = (
        guarded.of(random(n, k, seed=seed), padding=(0, pd), fill=NAN),
        guarded.of(random(n, c, seed=seed + 1), padding=(0, px), fill=NAN),
    )
    w, b = random(k, c, seed=seed + 2), random(k, seed=seed + 3)
    dw, dw_magnitude = dy.view.double().t() @ x.view.double(), dy.view.double().abs().t() @ x.view.double().abs()
    db, db_magnitude = dy.view.double().sum(0), dy.view.double().abs().sum(0)

    def run() -> tuple[Tensor, Tensor]:
        # What the gradients hold before the call must not matter: NaN.
        d_weights, d_bias = guarded(k, c, padding=(0, pw)), guarded(k)
        d_weights.view.fill_(NAN)
        d_bias.view.fill_(NAN)
        weights, bias = guarded.of(w, padding=(0, pw)), guarded.of(b)
        w_step, b_step = (weights.view, bias.view) if fused else (None, None)
        kernels.linear_backward_weights(dy.view, x.view, d_weights.view, d_bias.view, w_step, b_step, 0.125, *blocking.arguments)
        for array in (d_weights, d_bias, weights, bias):
            array.assert_untouched()
        if fused and blocking.bc >= n:
            assert bool(d_weights.view.isnan().all()), "a reduction in one pass needs no scratch"
        return (weights.view, bias.view) if fused else (d_weights.view, d_bias.view)

    if fused:
        dw, dw_magnitude = w.double() - 0.125 * dw, w.double().abs() + 0.125 * dw_magnitude
        db, db_magnitude = b.double() - 0.125 * db, b.double().abs() + 0.125 * db_magnitude
    actual, tolerances = run(), (rounding_of(n, dw_magnitude), rounding_of(n, db_magnitude))
    with on_target("reference"):
        reference = run()
    names = ("updated weights", "updated bias") if fused else ("weight gradient", "bias gradient")
    for name, value, expected, other, tolerance in zip(names, actual, (dw, db), reference, tolerances, strict=True):
        close(value, expected, tolerance, f"{name} on {target}")
        close(value, other.double(), tolerance, f"{name} on {target} against the reference")


@pytest.mark.parametrize("bk", [16, 32, 48, 64])
def test_every_blocking_of_every_pass(target: str, bk: int, close: Any, rounding_of: Any) -> None:
    n, c, k = 13, 100, 33
    x, w, b, dy = random(n, c, seed=1), random(k, c, seed=2), random(k, seed=3), random(n, k, seed=4)
    xd, wd, dyd = x.double(), w.double(), dy.double()
    packed, packed_back = panels_of(w, bk).flatten(), panels_of(w.t(), bk).flatten()
    y_expected, y_tolerance = (xd @ wd.t() + b).relu(), rounding_of(c, xd.abs() @ wd.abs().t() + b.abs())
    dx_expected, dx_tolerance = (dyd @ wd) * (x > 0), rounding_of(k, dyd.abs() @ wd.abs())
    dw_expected, dw_tolerance = dyd.t() @ xd, rounding_of(n, dyd.abs().t() @ xd.abs())
    for blocking in all_blockings(bk):
        y, dx, dw, db = torch.full((n, k), NAN), torch.full((n, c), NAN), torch.full((k, c), NAN), torch.full((k,), NAN)
        kernels.linear_forward(x, packed, b, y, "relu", *blocking.arguments)
        kernels.linear_backward_data(dy, packed_back, x, dx, *blocking.arguments)
        kernels.linear_backward_weights(dy, x, dw, db, None, None, 0.0, *blocking.arguments)
        close(y, y_expected, y_tolerance, f"forward, {blocking}")
        close(dx, dx_expected, dx_tolerance, f"backward data, {blocking}")
        close(dw, dw_expected, dw_tolerance, f"backward weights, {blocking}")
        close(db, dyd.sum(0), rounding_of(n, dyd.abs().sum(0)), f"bias gradient, {blocking}")


@pytest.mark.parametrize("columns_outer", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("c", "padding_of_x"), [(37, 0), (37, 27), (192, 0), (256, 0), (256, 16)])
@pytest.mark.parametrize("padding_of_dy", [0, 16])
def test_backward_weights_of_operands_that_are_read_in_place_and_copied(
    target: str, padding_of_dy: int, c: int, padding_of_x: int, shift: int, columns_outer: bool, guarded: Any, close: Any, rounding_of: Any
) -> None:
    """Copied: rows a multiple of 1 KiB apart, rows of x within cache lines, columns of x that fill no panel; else in place."""
    dy = guarded.of(random(21, 256, seed=1), padding=(0, padding_of_dy), fill=NAN).view
    x = guarded.of(random(21, c, seed=2), padding=(0, padding_of_x), shift=shift, fill=NAN).view
    dw, db = guarded(256, c), guarded(256)
    kernels.linear_backward_weights(dy, x, dw.view, db.view, None, None, 0.0, 60, 8, 32, columns_outer, 2, 4)
    close(dw.view, dy.double().t() @ x.double(), rounding_of(21, dy.abs().double().t() @ x.abs().double()), "weight gradient")
    close(db.view, dy.double().sum(0), rounding_of(21, dy.abs().double().sum(0)), "bias gradient")
    dw.assert_untouched()
    db.assert_untouched()


@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid"])
def test_nan_stays_nan_in_its_own_row(target: str, activation: str) -> None:
    """Also in the columns behind the last whole vector."""
    x, w = random(3, 20, seed=1), random(37, 20, seed=2)
    x[1, 7] = NAN
    y = torch.zeros(3, 37)
    kernels.linear_forward(x, panels_of(w, 32).flatten(), None, y, activation, 2, 8, 32, False, 1, 2)  # type: ignore[arg-type]
    assert bool(y[1].isnan().all())
    assert bool(y[[0, 2]].isfinite().all())


def test_a_nan_mask_lets_the_gradient_through_as_torch_does(target: str) -> None:
    dy, w, mask = random(2, 20, seed=1), random(20, 37, seed=2), torch.ones(2, 37)
    mask[0] = NAN
    mask[1] = -0.0
    dx = torch.zeros(2, 37)
    kernels.linear_backward_data(dy, panels_of(w.t(), 32).flatten(), mask, dx, 2, 8, 32, False, 1, 2)
    assert bool((dx[0] != 0).all())
    assert bool((dx[1] == 0).all())


def test_sigmoid_saturates_without_nan(target: str) -> None:
    x, w = torch.tensor([[1000.0], [-1000.0], [0.0]]), torch.ones(17, 1)
    y = torch.zeros(3, 17)
    kernels.linear_forward(x, panels_of(w, 16).flatten(), None, y, "sigmoid", 4, 4, 16, False, 1, 1)
    assert torch.equal(y, torch.tensor([[1.0], [0.0], [0.5]]).expand(3, 17))


def test_no_samples_is_no_work(target: str) -> None:
    kernels.linear_forward(torch.zeros(0, 5), torch.zeros(16 * 5), None, torch.zeros(0, 3), "relu", 8, 8, 16, False, 1, 2)
    kernels.linear_backward_data(torch.zeros(0, 3), torch.zeros(16 * 3), None, torch.zeros(0, 5), 8, 8, 16, False, 1, 2)


FORWARD: dict[str, dict[str, Any]] = {
    "x double": {"x": torch.zeros(4, 5, dtype=torch.float64)},
    "x transposed": {"x": torch.zeros(5, 4).t()},
    "x expanded": {"x": torch.zeros(1, 5).expand(4, 5)},
    "x of another height": {"x": torch.zeros(3, 5)},
    "x 1-d": {"x": torch.zeros(20)},
    "x without columns": {"x": torch.zeros(4, 0), "packed": torch.zeros(0)},
    "packed too short": {"packed": torch.zeros(16 * 5 - 1)},
    "packed for another width": {"packed": torch.zeros(32 * 5)},
    "packed strided": {"packed": torch.zeros(16 * 5 * 2)[::2]},
    "bias too long": {"bias": torch.zeros(4)},
    "bias strided": {"bias": torch.zeros(6)[::2]},
    "bias double": {"bias": torch.zeros(3, dtype=torch.float64)},
    "y double": {"y": torch.zeros(4, 3, dtype=torch.float64)},
    "y transposed": {"y": torch.zeros(3, 4).t()},
    "y expanded": {"y": torch.zeros(1, 3).expand(4, 3)},
    "activation unknown": {"activation": "tanh"},
    "no rows a task": {"bn": 0},
    "no steps at a time": {"bc": 0},
    "width no multiple of 16": {"bk": 24},
    "width too wide": {"bk": 80},
    "columns that do not divide the threads": {"threads": 3, "thread_columns": 2},
    "no thread columns": {"thread_columns": 0},
    "no threads": {"threads": 0},
}


@pytest.mark.parametrize("what", FORWARD)
def test_forward_refuses(what: str) -> None:
    arguments: dict[str, Any] = {
        "x": torch.ones(4, 5),
        "packed": torch.ones(16 * 5),
        "bias": None,
        "y": torch.zeros(4, 3),
        "activation": "none",
    }
    arguments |= {"bn": 8, "bc": 8, "bk": 16, "columns_outer": False, "thread_columns": 1, "threads": 2}
    arguments |= FORWARD[what]
    with pytest.raises((TypeError, ValueError)):
        kernels.linear_forward(**arguments)
    assert not arguments["y"].any()


def test_overlapping_arrays_are_refused() -> None:
    blocking = (8, 8, 16, False, 1, 1)
    memory = torch.zeros(16, 16)
    with pytest.raises(ValueError, match="y must not overlap x"):
        kernels.linear_forward(memory, torch.zeros(256), None, memory, "none", *blocking)
    with pytest.raises(ValueError, match="dx must not overlap mask"):
        kernels.linear_backward_data(torch.zeros(16, 16), torch.zeros(256), memory, memory, *blocking)
    with pytest.raises(ValueError, match="weights must not overlap d_weights"):
        kernels.linear_backward_weights(
            torch.zeros(4, 16), torch.zeros(4, 16), memory, torch.zeros(16), memory, torch.zeros(16), 0.1, *blocking
        )
    with pytest.raises(ValueError, match="must not overlap weights"):
        kernels.pack_weights(memory, memory.flatten(), 16, torch.zeros(256), 16, 1)


def test_backward_weights_refuses() -> None:
    blocking = (8, 8, 16, False, 1, 1)
    dy, x, dw, db = torch.zeros(4, 3), torch.zeros(4, 5), torch.zeros(3, 5), torch.zeros(3)
    with pytest.raises(ValueError, match="give both or neither"):
        kernels.linear_backward_weights(dy, x, dw, db, torch.zeros(3, 5), None, 0.1, *blocking)
    with pytest.raises(ValueError, match="d_weights"):
        kernels.linear_backward_weights(dy, x, torch.zeros(5, 3), db, None, None, 0.1, *blocking)
    with pytest.raises(ValueError, match="at least one input"):
        kernels.linear_backward_weights(dy, torch.zeros(4, 0), torch.zeros(3, 0), db, None, None, 0.1, *blocking)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.linear_backward_weights(dy.t().contiguous().t(), x, dw, db, None, None, 0.1, *blocking)


def test_pack_refuses_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="forward must have size 80"):
        kernels.pack_weights(torch.zeros(3, 5), torch.zeros(79), 16, torch.zeros(48), 16, 1)
    with pytest.raises(ValueError, match="backward must have size 48"):
        kernels.pack_weights(torch.zeros(3, 5), torch.zeros(80), 16, torch.zeros(49), 16, 1)
    with pytest.raises(ValueError, match="forward_width must be 16, 32, 48 or 64"):
        kernels.pack_weights(torch.zeros(3, 5), torch.zeros(80), 8, torch.zeros(48), 16, 1)
