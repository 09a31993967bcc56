"""What the kernel tests share: every target in turn, arrays between guard values, and errors held against what rounding allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor

from autotune import _kernels as kernels

EPSILON = 2.0**-23
GUARD = -12345.678
MARGIN = 32  # elements before and after: two vectors of the widest target


class Guarded:
    """A view of the given shape inside a larger buffer; `assert_untouched` tells whether anything outside the view was written.

    `padding` widens each dimension by as many elements as it says; `shift` moves the view off the alignment of the allocator.
    """

    def __init__(
        self, *shape: int, padding: tuple[int, ...] = (), shift: int = 0, fill: float = GUARD, dtype: torch.dtype = torch.float32
    ) -> None:
        wide = [size + extra for size, extra in zip(shape, padding or (0,) * len(shape), strict=True)]
        count = int(torch.tensor(wide).prod())
        self.buffer = torch.full((MARGIN + shift + count + MARGIN,), fill if dtype.is_floating_point else int(fill), dtype=dtype)
        view = self.buffer[MARGIN + shift : MARGIN + shift + count].view(wide)
        for dimension, size in enumerate(shape):
            # The rows of the view begin behind the padding in all dimensions but the last, where alignment would suffer.
            begin = 0 if dimension + 1 == len(shape) else wide[dimension] - size
            view = view.narrow(dimension, begin, size)
        self.view = view
        self._fill = self.buffer[:1].clone()

    @classmethod
    def of(cls, values: Tensor, padding: tuple[int, ...] = (), shift: int = 0, fill: float = GUARD) -> Guarded:
        guarded = cls(*values.shape, padding=padding, shift=shift, fill=fill if values.is_floating_point() else GUARD, dtype=values.dtype)
        guarded.view.copy_(values)
        return guarded

    def assert_untouched(self) -> None:
        inside = self.view.clone()
        self.view.copy_(self._fill.expand(self.view.shape))
        bits = torch.int32 if self.buffer.is_floating_point() else torch.int16  # since a NaN differs from itself
        written = (self.buffer.view(bits) != self._fill.view(bits)).nonzero().flatten()
        self.view.copy_(inside)
        assert not len(written), f"written outside the view, at elements {written[:8].tolist()} of {len(self.buffer)}"


def assert_close(actual: Tensor, expected: Tensor, tolerance: Tensor, what: str) -> None:
    """|actual - expected| <= tolerance everywhere; `expected` and `tolerance` in double. A failure names the worst element."""
    assert actual.shape == expected.shape == tolerance.shape, f"{what}: {actual.shape} {expected.shape} {tolerance.shape}"
    if not actual.numel():
        return
    error = (actual.double() - expected).abs()
    excess = torch.where(error.isnan(), torch.inf, error - tolerance)
    worst = int(excess.argmax())
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), actual.shape))
    assert float(excess.flatten()[worst]) <= 0, (
        f"{what}: worst element {at} is {float(actual[at])!r}, expected {float(expected[at])!r}: "
        f"error {float(error[at]):.3e}, tolerance {float(tolerance[at]):.3e}; {int((excess > 0).sum())} of {actual.numel()} are off"
    )


def rounding(length: int, magnitude: Tensor) -> Tensor:
    """What fp32 may lose in a sum of `length` products: (length + 3) * epsilon * the sum of their magnitudes (double).

    Twice the classical bound n*u/(1 - n*u), u = epsilon / 2; the 3 are the final store, a bias and a scale. The last term covers
    products below the smallest normal number.
    """
    return (length + 3) * (EPSILON * magnitude + 2.0**-149)


@contextmanager
def use_target(name: str) -> Iterator[None]:
    before = kernels.target()
    kernels.set_target(name)
    try:
        yield
    finally:
        kernels.set_target(before)


@pytest.fixture(params=kernels.targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every target of this CPU."""
    with use_target(request.param):
        yield request.param


@pytest.fixture(scope="session")
def on_target() -> Callable[[str], AbstractContextManager[None]]:
    """``with on_target("reference"):``."""
    return use_target


@pytest.fixture(scope="session")
def guarded() -> type[Guarded]:
    return Guarded


@pytest.fixture(scope="session")
def close() -> Callable[[Tensor, Tensor, Tensor, str], None]:
    return assert_close


@pytest.fixture(scope="session")
def rounding_of() -> Callable[[int, Tensor], Tensor]:
    return rounding
