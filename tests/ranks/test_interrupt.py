from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from autotune.ranks import interrupt


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in kept.items():
        signal.signal(number, handler)


class _Tensor:
    """Read through the protocol, as the bindings read a tensor."""

    left = False

    def __dlpack__(self) -> None:
        self._work()
        self.left = True

    def _work(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)


def swallow(tensor: _Tensor) -> None:
    """What the bindings do with an exception."""
    try:
        tensor.__dlpack__()
    except KeyboardInterrupt:
        pytest.fail("the interrupt fell into the conversion, where it is lost")


def test_an_interrupt_during_a_conversion_comes_after_it() -> None:
    interrupt.install()
    tensor = _Tensor()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it comes a moment later
        swallow(tensor)
        time.sleep(1)
    assert tensor.left


def test_any_other_interrupt_comes_at_once() -> None:
    interrupt.install()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_an_ignored_interrupt_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.install()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
