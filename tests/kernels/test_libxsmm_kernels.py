"""libxsmm's kernels in our loops: the three passes on every target between guards, against torch in double; nothing outside is read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from autotune import _kernels as kernels
from autotune.ops import libxsmm

DRAWN = settings(
    deadline=None,
    max_examples=int(os.environ.get("AUTOTUNE_TEST_EXAMPLES", "15")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAN = float("nan")
Blocking = tuple[int, int, int, bool, int, int]

needs_libxsmm = pytest.mark.skipif(not libxsmm.available(), reason=f"libxsmm does not serve here: {libxsmm.missing()}")
sizes = st.tuples(st.sampled_from((1, 2, 13, 33, 100)), st.sampled_from((1, 13, 16, 64, 100, 479)), st.sampled_from((1, 2, 33, 64, 100)))
paddings = st.sampled_from((0, 1, 16))


@st.composite
def blockings(draw: Callable[..., Any]) -> Blocking:
    """bn, bc, bk, columns_outer, thread_columns, threads."""
    threads = draw(st.integers(1, 4))
    columns = draw(st.sampled_from([c for c in range(1, threads + 1) if threads % c == 0]))
    bn, bc = draw(st.sampled_from((1, 7, 16, 64, 1000))), draw(st.sampled_from((1, 8, 37, 64, 10_000)))
    return bn, bc, draw(st.sampled_from((16, 32, 48, 64))), draw(st.booleans()), columns, threads


def random(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def packed_of(w: Tensor, bk: int) -> tuple[Tensor, Tensor]:
    """The panels of a forward and of a backward-data pass."""
    k, c = w.shape
    forward, backward = torch.empty(-(-k // bk) * bk * c), torch.empty(-(-c // bk) * bk * k)
    kernels.pack_weights(w, forward, bk, backward, bk, 1)
    return forward, backward


@needs_libxsmm
@DRAWN
@given(
    size=sizes,
    blocking=blockings(),
    activation=st.sampled_from(("none", "relu", "sigmoid")),
    padding=st.tuples(paddings, paddings),
    seed=st.integers(0, 2**31),
)
def test_forward_and_backward_data(
    size: tuple[int, int, int],
    blocking: Blocking,
    activation: Any,
    padding: tuple[int, int],
    seed: int,
    target: str,
    guarded: Any,
    close: Any,
    rounding_of: Any,
) -> None:
    n, c, k = size
    x = guarded.of(random(n, c, seed=seed), padding=(0, padding[0]), fill=NAN).view
    dy = guarded.of(random(n, k, seed=seed + 1), padding=(0, padding[1]), fill=NAN).view
    w, b = random(k, c, seed=seed + 2), random(k, seed=seed + 3)
    forward, backward = (guarded.of(part, fill=NAN).view for part in packed_of(w, blocking[2]))
    y, dx = guarded(n, k, padding=(0, padding[1])), guarded(n, c, padding=(0, padding[0]))
    kernels.linear_forward(x, forward, b, y.view, activation, *blocking, libxsmm=True)
    kernels.linear_backward_data(dy, backward, x, dx.view, *blocking, libxsmm=True)
    y.assert_untouched()
    dx.assert_untouched()
    activated = {"none": lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation]
    magnitude = x.double().abs() @ w.double().abs().t() + b.double().abs()
    wanted = activated(x.double() @ w.double().t() + b.double())
    close(y.view, wanted, rounding_of(c, magnitude + (activation == "sigmoid")), f"forward on {target}")
    wanted = (dy.double() @ w.double()) * (x > 0)
    close(dx.view, wanted, rounding_of(k, dy.double().abs() @ w.double().abs()), f"backward data on {target}")


@needs_libxsmm
@DRAWN
@given(
    size=sizes,
    none=st.booleans(),
    blocking=blockings(),
    step=st.sampled_from(("none", "sgd", "adagrad")),
    padding=paddings,
    seed=st.integers(0, 2**31),
)
def test_backward_weights(
    size: tuple[int, int, int],
    none: bool,
    blocking: Blocking,
    step: str,
    padding: int,
    seed: int,
    target: str,
    guarded: Any,
    close: Any,
    rounding_of: Any,
) -> None:
    n, c, k = (0 if none and size[0] == 1 else size[0]), size[1], size[2]
    dy = guarded.of(random(n, k, seed=seed), padding=(0, padding), fill=NAN).view
    x = guarded.of(random(n, c, seed=seed + 1), padding=(0, padding), fill=NAN).view
    w, b = random(k, c, seed=seed + 2), random(k, seed=seed + 3)
    weights, bias = guarded.of(w, padding=(0, padding)), guarded.of(b)
    d_weights, d_bias = guarded(k, c, padding=(0, padding)), guarded(k)
    d_weights.view.fill_(NAN)
    d_bias.view.fill_(NAN)
    state, bias_state = guarded.of(torch.ones(k, c)), guarded.of(torch.ones(k))
    along = (weights.view, bias.view, 0.125) if step != "none" else (None, None, 0.0)
    states = {"state": state.view, "bias_state": bias_state.view} if step == "adagrad" else {}
    kernels.linear_backward_weights(dy, x, d_weights.view, d_bias.view, *along, *blocking, libxsmm=True, **states)
    for array in (weights, bias, d_weights, d_bias, state, bias_state):
        array.assert_untouched()
    dw, dw_magnitude = dy.double().t() @ x.double(), dy.double().abs().t() @ x.double().abs()
    db, db_magnitude = dy.double().sum(0), dy.double().abs().sum(0)
    if step == "none":
        close(d_weights.view, dw, rounding_of(n, dw_magnitude), f"weight gradient on {target}")
        close(d_bias.view, db, rounding_of(n, db_magnitude), f"bias gradient on {target}")
        return
    if step == "adagrad":
        # Sums from 1 on: their square is no further off than twice the gradient's error times its magnitude, and the step no more than it.
        for sums, g, magnitude in ((state, dw, dw_magnitude), (bias_state, db, db_magnitude)):
            close(sums.view, 1 + g**2, rounding_of(n + 4, 1 + 3 * magnitude**2 + g**2), f"sums of squares on {target}")
        dw, db, dw_magnitude, db_magnitude, n = dw / (1 + dw**2).sqrt(), db / (1 + db**2).sqrt(), dw_magnitude + 1, db_magnitude + 1, n + 4
    close(weights.view, w.double() - 0.125 * dw, rounding_of(n, w.double().abs() + 0.125 * dw_magnitude), f"updated weights on {target}")
    close(bias.view, b.double() - 0.125 * db, rounding_of(n, b.double().abs() + 0.125 * db_magnitude), f"updated bias on {target}")


# Arrays that end where the next page may not be touched: generated code is beyond what a sanitizer sees.
_AT_THE_END_OF_A_PAGE = """
import ctypes, mmap, sys
import torch
from autotune import _kernels as kernels
from autotune.ops import libxsmm
assert libxsmm.available()
libc, held = ctypes.CDLL(None, use_errno=True), []
def ending(*shape):
    count = 1
    for size in shape: count *= size
    pages = -(-4 * count // mmap.PAGESIZE)
    area = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert libc.mprotect(ctypes.c_void_p(at + pages * mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    held.append(area)
    flat = torch.frombuffer(area, dtype=torch.float32, count=pages * mmap.PAGESIZE // 4)
    view = flat[len(flat) - count:].view(*shape)
    view.fill_(0.5)
    return view
for n, c, k in ((1, 1, 1), (13, 37, 50), (65, 100, 33), (7, 479, 65)):
    x, dy, w, b, y, dx, dw, db = (ending(*s) for s in ((n, c), (n, k), (k, c), (k,), (n, k), (n, c), (k, c), (k,)))
    for bk in (16, 48, 64):
        forward, backward = ending(-(-k // bk) * bk * c), ending(-(-c // bk) * bk * k)
        kernels.pack_weights(w, forward, bk, backward, bk, 1)
        for bn, bc in ((64, 64), (8, 1000), (5, 7)):
            blocking = (bn, bc, bk, False, 1, 2, True)
            kernels.linear_forward(x, forward, b, y, "relu", *blocking)
            kernels.linear_backward_data(dy, backward, None, dx, *blocking)
            kernels.linear_backward_weights(dy, x, dw, db, None, None, 0.0, *blocking)
            assert torch.allclose(y, torch.full((n, k), 0.25 * c + 0.5)) and torch.allclose(dx, torch.full((n, c), 0.25 * k))
            assert torch.allclose(dw, torch.full((k, c), 0.25 * n))
print("whole", flush=True)
import os
os._exit(0)  # past destructors that would touch the protected pages
"""


@needs_libxsmm
def test_generated_code_reads_nothing_behind_its_arrays() -> None:
    done = subprocess.run([sys.executable, "-c", _AT_THE_END_OF_A_PAGE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "whole" in done.stdout


def test_without_the_library_a_pass_refuses_and_writes_nothing() -> None:
    code = (
        "import numpy as np; from autotune import _kernels as k\n"
        "x, w, y = np.ones((4, 5), 'f'), np.ones(80, 'f'), np.zeros((4, 3), 'f')\n"
        "assert 'no-such' in k.libxsmm_open('/no-such/libxsmm.so') and not k.libxsmm_opened()\n"
        "try: k.linear_forward(x, w, None, y, 'none', 8, 8, 16, False, 1, 2, True)\n"
        "except RuntimeError as error: assert 'must be opened' in str(error) and not y.any()\n"
        "else: raise SystemExit('it ran')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_library_that_is_another_is_refused_by_name() -> None:
    code = "from autotune import _kernels as k; print(k.libxsmm_open('libm.so.6'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "libm.so.6 has no libxsmm_smmdispatch_reducebatch_strd" in done.stdout, done.stderr[-2000:]


@needs_libxsmm
def test_halves_of_bf16_are_refused_and_nothing_is_written() -> None:
    y = torch.zeros(4, 16)
    with pytest.raises(ValueError, match="libxsmm serves fp32 alone"):
        kernels.linear_forward_bf16(
            torch.ones(4, 6), torch.ones(96, dtype=torch.int16), None, y, "none", 8, 8, 16, False, 1, 2, libxsmm=True
        )
    assert not y.any()
