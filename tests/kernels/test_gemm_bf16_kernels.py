"""Fully connected layers in bf16 and with Adagrad on every target, against torch in double from rounded inputs and the reference target."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from autotune import _kernels as kernels
from autotune.ops.layer import join_weights, split_weights

DRAWN = settings(
    deadline=None,
    max_examples=int(os.environ.get("AUTOTUNE_TEST_EXAMPLES", "10")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAN = float("nan")
EPSILON = 2.0**-23
STATES = ("state", "bias_state")
RATE = 0.125
WIDTHS = (16, 32, 48, 64)

Blocking = tuple[int, int, int, bool, int, int]

extents = st.sampled_from((1, 2, 3, 13, 16, 33, 64, 101, 479))
samples = st.sampled_from((1, 2, 5, 13, 33, 100))
paddings = st.sampled_from((0, 1, 3, 16))
seeds = st.integers(0, 2**31)
# bn, bc, bk, columns_outer, and (thread_columns, threads).
blockings = st.builds(
    lambda bn, bc, bk, order, team: (bn, bc, bk, order, *team),
    st.sampled_from((1, 2, 5, 7, 16, 33, 128)),
    st.sampled_from((1, 2, 3, 16, 64, 1000, 2**63 - 1)),
    st.sampled_from(WIDTHS),
    st.booleans(),
    st.sampled_from(((1, 1), (1, 2), (2, 2), (3, 3), (2, 4), (3, 6))),
)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


def upper_of(w: Tensor) -> Tensor:
    """Its bf16 by truncation, in double."""
    return split_weights(w)[0].view(torch.bfloat16).double()


def pairs_of(upper: Tensor, width: int) -> Tensor:
    """int16 [columns, R] as panels [ceil(columns / width), ceil(R / 2), width, 2], zero outside."""
    columns, reduction = upper.shape
    panels, steps = -(-columns // width), -(-reduction // 2)
    padded = torch.zeros(panels * width, steps * 2, dtype=torch.int16)
    padded[:columns, :reduction] = upper
    return padded.view(panels, width, steps, 2).transpose(1, 2).contiguous()


@DRAWN
@given(k=extents, c=extents, threads=st.integers(1, 4), seed=seeds, widths=st.tuples(st.sampled_from(WIDTHS), st.sampled_from(WIDTHS)))
def test_pack_lays_halves_out_in_pairs(k: int, c: int, threads: int, seed: int, widths: tuple[int, int], target: str, guarded: Any) -> None:
    upper = guarded.of(split_weights(random(k, c, seed=seed))[0], shift=1).view
    expected = pairs_of(upper, widths[0]).flatten(), pairs_of(upper.t(), widths[1]).flatten()
    forward, backward = (guarded(of.numel(), dtype=torch.int16, shift=1) for of in expected)
    kernels.pack_weights_bf16(upper, forward.view, widths[0], backward.view, widths[1], threads)
    for packed, of in zip((forward, backward), expected, strict=True):
        assert torch.equal(packed.view, of)
        packed.assert_untouched()


@DRAWN
@given(n=samples, c=extents, k=extents, blocking=blockings, biased=st.booleans(), px=paddings, py=paddings, seed=seeds)
def test_forward(
    n: int, c: int, k: int, blocking: Blocking, biased: bool, px: int, py: int, seed: int,
    target: str, guarded: Any, close: Any, rounding_of: Any, on_target: Any,
) -> None:  # fmt: skip
    x, w = guarded.of(random(n, c, seed=seed), padding=(0, px), fill=NAN), random(k, c, seed=seed + 1)
    bias = random(k, seed=seed + 2) if biased else torch.zeros(k)
    packed = guarded.of(pairs_of(split_weights(w)[0], blocking[2]).flatten(), shift=1).view
    expected = (rounded(x.view) @ upper_of(w).t() + bias).relu()
    tolerance = rounding_of(c, rounded(x.view).abs() @ upper_of(w).abs().t() + bias.abs())

    def run() -> Tensor:
        y = guarded(n, k, padding=(0, py))
        kernels.linear_forward_bf16(x.view, packed, bias if biased else None, y.view, "relu", *blocking)
        y.assert_untouched()
        result: Tensor = y.view
        return result

    actual = run()
    close(actual, expected, tolerance, f"forward on {target}")
    with on_target("reference"):
        close(actual, run().double(), tolerance, f"forward on {target} against the reference")


@DRAWN
@given(n=samples, c=extents, k=extents, blocking=blockings, masked=st.booleans(), pd=paddings, px=paddings, seed=seeds)
def test_backward_data(
    n: int, c: int, k: int, blocking: Blocking, masked: bool, pd: int, px: int, seed: int,
    target: str, guarded: Any, close: Any, rounding_of: Any, on_target: Any,
) -> None:  # fmt: skip
    dy, w = guarded.of(random(n, k, seed=seed), padding=(0, pd), fill=NAN), random(k, c, seed=seed + 1)
    mask = guarded.of(random(n, c, seed=seed + 2), padding=(0, px), fill=NAN).view if masked else None
    kept = (mask > 0).double() if mask is not None else torch.ones(n, c, dtype=torch.float64)
    packed = guarded.of(pairs_of(split_weights(w)[0].t(), blocking[2]).flatten(), shift=1).view
    expected, tolerance = rounded(dy.view) @ upper_of(w) * kept, rounding_of(k, rounded(dy.view).abs() @ upper_of(w).abs())

    def run() -> Tensor:
        dx = guarded(n, c, padding=(0, px))
        kernels.linear_backward_data_bf16(dy.view, packed, mask, dx.view, *blocking)
        dx.assert_untouched()
        result: Tensor = dx.view
        return result

    actual = run()
    close(actual, expected, tolerance, f"backward data on {target}")
    with on_target("reference"):
        close(actual, run().double(), tolerance, f"backward data on {target} against the reference")


@DRAWN
@given(n=samples, c=extents, k=extents, blocking=blockings, pd=paddings, pw=paddings, seed=seeds, sums=st.sampled_from((0.0, 1e-3, 1.0)))
@pytest.mark.parametrize(("step", "bf16"), [("none", True), ("sgd", True), ("adagrad", True), ("adagrad", False)])
def test_backward_weights(
    step: str, bf16: bool, n: int, c: int, k: int, blocking: Blocking, pd: int, pw: int, seed: int, sums: float,
    target: str, guarded: Any, close: Any, rounding_of: Any, on_target: Any,
) -> None:  # fmt: skip
    """Gradients, or the state and the weights that follow from the state and gradient: after one step of SGD or Adagrad."""
    dy, x = (guarded.of(random(n, m, seed=seed + m), padding=(0, pd), fill=NAN).view for m in (k, c))
    w, b = random(k, c, seed=seed + 2), random(k, seed=seed + 3)
    read = rounded if bf16 else Tensor.double
    gradients = read(dy).t() @ read(x), dy.double().sum(0)
    errors = rounding_of(n, read(dy).abs().t() @ read(x).abs()), rounding_of(n, dy.double().abs().sum(0))
    pair = kernels.linear_backward_weights_bf16 if bf16 else kernels.linear_backward_weights

    def run() -> list[tuple[Tensor, Tensor, Tensor]]:
        """(weight or gradient, state) of weights and bias."""
        d_weights, d_bias = guarded(k, c, padding=(0, pw)), guarded(k)
        parts = [guarded.of(part) for part in split_weights(w)] if bf16 else [guarded.of(w, padding=(0, pw))]
        bias, states = guarded.of(b), [guarded.of(torch.full(shape, sums)) for shape in ((k, c), (k,))]
        live = [None] * (len(parts) + 1) if step == "none" else [part.view for part in (*parts, bias)]
        of_state = dict(zip(STATES, (state.view for state in states), strict=True)) if step == "adagrad" else {}
        pair(dy, x, d_weights.view, d_bias.view, *live, RATE, *blocking, **of_state)  # type: ignore[arg-type]
        for array in (d_weights, d_bias, *parts, bias, *states):
            array.assert_untouched()
        updated = [d_weights.view, d_bias.view]
        if step != "none":
            updated = [join_weights(*(part.view for part in parts)) if bf16 else parts[0].view, bias.view]
        return list(zip(updated, (state.view.double() for state in states), (w, b), strict=True))

    actual = run()
    with on_target("reference"):
        reference = run()
    for (value, state, before), (other, _, _), gradient, error in zip(actual, reference, gradients, errors, strict=True):
        if step == "none":
            close(value, gradient, error, f"gradient on {target}")
            close(value, other.double(), error, f"gradient on {target} against the reference")
            continue
        expected, tolerance = before.double() - RATE * gradient, RATE * error + EPSILON * (before.abs() + RATE * gradient.abs())
        if step == "adagrad":
            total = sums + gradient**2
            close(state, total, (2 * gradient.abs() + error) * error + 2 * EPSILON * total, f"state on {target}")
            # From the state that was reached: g / sqrt(s) turns at 0 with the sign of g, and no rounding of g bounds it there.
            reached = (state - sums).clamp(min=0).sqrt() * gradient.sign()
            expected = before.double() - RATE * reached / (state.sqrt() + 1e-10)
            off = (2 * error + (EPSILON * total).sqrt()) / (state.sqrt() + 1e-10)
            tolerance = RATE * (off.clamp(max=2.0) + 4 * EPSILON) + EPSILON * (before.abs() + RATE)
        close(value, expected, tolerance, f"{step} on {target}")


@DRAWN
@given(seed=seeds)
def test_rounding_is_to_nearest_even(seed: int, target: str) -> None:
    """Bit patterns of every exponent, ties among them, through one multiplication by 1."""
    bits = torch.randint(-(2**31), 2**31, (7, 45), generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    bits[:, ::3] = (bits[:, ::3] & ~0xFFFF) | 0x8000
    x = bits.view(torch.float32)
    x[~x.isfinite() | (x.abs() < 2.0**-126)] = 1.0  # native conversion takes denormals for zero
    one = torch.ones(1, 1)
    for column in range(x.shape[1]):
        y = torch.zeros(7, 1)
        packed = pairs_of(split_weights(one)[0], 16).flatten()
        kernels.linear_forward_bf16(x[:, column : column + 1], packed, None, y, "none", 4, 64, 16, False, 1, 1)
        assert torch.equal(y, x[:, column : column + 1].bfloat16().float())


def test_nan_and_infinity_stay_in_their_row(target: str) -> None:
    x, w = random(4, 21, seed=1), random(37, 21, seed=2).abs() + 0.1
    x[1, 20], x[2, 3] = NAN, float("inf")
    y = torch.zeros(4, 37)
    kernels.linear_forward_bf16(x, pairs_of(split_weights(w)[0], 32).flatten(), None, y, "none", 2, 8, 32, False, 1, 2)
    assert bool(y[1].isnan().all())
    assert bool((y[2] == float("inf")).all())
    assert bool(y[[0, 3]].isfinite().all())


@DRAWN
@given(seed=seeds, k=extents, c=extents, adagrad=st.booleans(), bf16=st.booleans(), threads=st.integers(1, 4))
def test_a_rate_of_zero_changes_neither_weights_nor_state(
    seed: int, k: int, c: int, adagrad: bool, bf16: bool, threads: int, target: str
) -> None:
    """Any finite weight, denormals too: halves rejoin bit for bit."""
    bits = torch.randint(-(2**31), 2**31, (k, c), generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    w = torch.where(bits.view(torch.float32).isfinite(), bits.view(torch.float32), torch.ones(()))
    assert torch.equal(join_weights(*split_weights(w)).view(torch.int32), w.view(torch.int32))
    parts, b = [part.clone() for part in (split_weights(w) if bf16 else (w,))], random(k, seed=seed)
    bias, states = b.clone(), (torch.full((k, c), 0.5), torch.full((k,), 0.5)) if adagrad else (None, None)
    dw, db, dy, x = random(k, c, seed=1), random(k, seed=2), random(5, k, seed=3), random(5, c, seed=4)
    descend = kernels.linear_descend_bf16 if bf16 else kernels.linear_descend
    descend(dw, db, *parts, bias, *states, 0.0, 1e-10, threads)  # type: ignore[arg-type]
    fused = kernels.linear_backward_weights_bf16 if bf16 else kernels.linear_backward_weights
    fused(dy, x, dw, db, *parts, bias, 0.0, 8, 64, 32, False, 1, threads, **dict(zip(STATES, states, strict=True)))  # type: ignore[arg-type]
    assert torch.equal(join_weights(*parts) if bf16 else parts[0], w)
    assert torch.equal(bias, b)
    for state in states:
        assert state is None or bool((state == 0.5).all())


@DRAWN
@given(seed=seeds, k=extents, c=extents, adagrad=st.booleans(), bf16=st.booleans(), pd=paddings, threads=st.integers(1, 4))
def test_descend_takes_the_step_of_the_fused_pass(
    seed: int, k: int, c: int, adagrad: bool, bf16: bool, pd: int, threads: int, target: str, guarded: Any
) -> None:
    """Bitwise the same: one sample, so that the gradient is one product."""
    w, b = random(k, c, seed=seed), random(k, seed=seed + 1)
    dy, x, blocking = random(1, k, seed=seed + 2), random(1, c, seed=seed + 3), (8, 64, 32, False, 1, threads)
    dw, db = guarded(k, c, padding=(0, pd)), guarded(k)
    gradients = kernels.linear_backward_weights_bf16 if bf16 else kernels.linear_backward_weights
    gradients(dy, x, dw.view, db.view, *[None] * (3 if bf16 else 2), 0.0, *blocking)  # type: ignore[arg-type]
    results = []
    for fused in (True, False):
        parts, bias = [guarded.of(part) for part in (split_weights(w) if bf16 else (w,))], guarded.of(b)
        states = [guarded.of(torch.full(shape, 0.5)) for shape in ((k, c), (k,))] if adagrad else []
        live, held = [array.view for array in (*parts, bias)], [state.view for state in states] or [None, None]
        if fused:
            gradients(dy, x, torch.zeros(k, c), torch.zeros(k), *live, RATE, *blocking, **dict(zip(STATES, held, strict=True)))  # type: ignore[arg-type]
        else:
            descend = kernels.linear_descend_bf16 if bf16 else kernels.linear_descend
            descend(dw.view, db.view, *live, *held, RATE, 1e-10, threads)  # type: ignore[arg-type]
        for array in (*parts, bias, *states):
            array.assert_untouched()
        results.append([array.view for array in (*parts, bias, *states)])
    assert target == "reference" or all(torch.equal(a, b) for a, b in zip(*results, strict=True))  # its fused gradient is in double


def test_no_samples_is_no_work_and_no_gradient(target: str) -> None:
    y, dx = torch.zeros(0, 3), torch.zeros(0, 5)
    kernels.linear_forward_bf16(torch.zeros(0, 5), torch.zeros(16 * 6, dtype=torch.int16), None, y, "relu", 8, 8, 16, False, 1, 2)
    kernels.linear_backward_data_bf16(torch.zeros(0, 3), torch.zeros(16 * 4, dtype=torch.int16), None, dx, 8, 8, 16, True, 1, 2)
    dw, db = torch.full((3, 5), NAN), torch.full((3,), NAN)
    kernels.linear_backward_weights_bf16(torch.zeros(0, 3), torch.zeros(0, 5), dw, db, None, None, None, 0.0, 8, 8, 16, False, 1, 2)
    assert not dw.any()
    assert not db.any()


def shorts(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int16)


def test_halves_are_refused_that_do_not_fit() -> None:
    blocking = (8, 8, 16, False, 1, 1)
    dy, x, dw, db = torch.zeros(4, 3), torch.zeros(4, 5), torch.zeros(3, 5), torch.zeros(3)
    upper, lower, bias = shorts(3, 5), shorts(3, 5), torch.zeros(3)
    step = kernels.linear_backward_weights_bf16
    with pytest.raises(ValueError, match="give all or none"):
        step(dy, x, dw, db, upper, None, bias, 0.1, *blocking)
    with pytest.raises(ValueError, match="lower must have size 3"):
        step(dy, x, dw, db, upper, shorts(5, 3), bias, 0.1, *blocking)
    with pytest.raises(ValueError, match="upper must be contiguous"):
        step(dy, x, dw, db, shorts(3, 6)[:, :5], lower, bias, 0.1, *blocking)
    with pytest.raises(ValueError, match="upper must not overlap lower"):
        step(dy, x, dw, db, upper, upper, bias, 0.1, *blocking)
    with pytest.raises(ValueError, match="give both states or neither"):
        step(dy, x, dw, db, upper, lower, bias, 0.1, *blocking, state=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="a state belongs to weights"):
        step(dy, x, dw, db, None, None, None, 0.1, *blocking, state=torch.zeros(3, 5), bias_state=torch.zeros(3))
    with pytest.raises(ValueError, match="state must not overlap d_weights"):
        step(dy, x, dw, db, upper, lower, bias, 0.1, *blocking, state=dw, bias_state=torch.zeros(3))
    with pytest.raises(ValueError, match="must not overlap bias_state"):
        kernels.linear_descend(dw, db, torch.zeros(3, 5), bias, torch.zeros(3, 5), bias, 0.1, 1e-10, 1)
    with pytest.raises(ValueError, match="d_bias must have size 3"):
        kernels.linear_descend(dw, torch.zeros(4), torch.zeros(3, 5), bias, None, None, 0.1, 1e-10, 1)
    with pytest.raises(ValueError, match="forward must have size 96"):
        kernels.pack_weights_bf16(upper, shorts(95), 16, shorts(64), 16, 1)
    with pytest.raises(ValueError, match="packed must have size 96"):
        kernels.linear_forward_bf16(x, shorts(80), None, torch.zeros(4, 3), "none", *blocking)
    with pytest.raises(TypeError):
        kernels.linear_forward_bf16(x, torch.zeros(96), None, torch.zeros(4, 3), "none", *blocking)
    memory = torch.zeros(64, 3)
    with pytest.raises(ValueError, match="y must not overlap packed"):
        kernels.linear_forward_bf16(x, memory.view(torch.int16).flatten()[:96], None, memory[:4], "none", *blocking)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_an_epsilon_that_is_not_positive_is_refused(epsilon: float) -> None:
    dw, db, w, b = torch.ones(2, 3), torch.ones(2), torch.ones(2, 3), torch.ones(2)
    with pytest.raises(ValueError, match="epsilon must be positive and finite"):
        kernels.linear_descend(dw, db, w, b, torch.zeros(2, 3), torch.zeros(2), 0.1, epsilon, 1)
    assert torch.equal(w, torch.ones(2, 3))
