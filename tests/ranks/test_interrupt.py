from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import autotune
from autotune.ranks import interrupt


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
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
    with pytest.raises(KeyboardInterrupt), interrupt.raising():  # noqa: PT012 - it comes a moment later
        swallow(tensor)
        time.sleep(1)
    assert tensor.left


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_any_other_interrupt_comes_at_once(number: signal.Signals, code: int) -> None:
    interrupt.install()
    with pytest.raises(KeyboardInterrupt) as raised, interrupt.raising():
        os.kill(os.getpid(), number)
    assert interrupt.exit_code(raised.value) == code


def test_an_ignored_interrupt_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.install()
    with interrupt.raising():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_program_that_only_uses_the_library_keeps_its_handlers() -> None:
    with interrupt.raising():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


_BEFORE = "from autotune.ranks import interrupt; interrupt.install(); "
_INSIDE = """
import ctypes, threading
from autotune.ranks import interrupt
interrupt._UNHEARD_S = 0.2
interrupt.install()
with interrupt.raising():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    threading.Timer(0.5, lambda: print("ready", flush=True)).start()
    libc.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize(("number", "code", "line"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")])
@pytest.mark.parametrize("program", [f"{_BEFORE}print('ready', flush=True); import time; time.sleep(60)", _INSIDE])
def test_a_process_leaves_with_one_line(program: str, number: signal.Signals, code: int, line: str) -> None:
    """While it loads, and where a library has the main thread and heeds no signal."""
    environ = {**os.environ, "PYTHONPATH": str(Path(autotune.__file__).parents[1])}
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored
    with subprocess.Popen([sys.executable, "-c", program], env=environ, preexec_fn=heed, **streams) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=30)[1] == line
    assert process.returncode == code


def test_a_rank_leaves_the_words_to_its_supervisor() -> None:
    code = "import os, signal; from autotune.ranks import interrupt; interrupt.install(rank=True); os.kill(os.getpid(), signal.SIGTERM)"
    environ = {**os.environ, "PYTHONPATH": str(Path(autotune.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (143, "")


def test_the_first_signal_waits_for_the_end_of_a_step_however_long_a_pass_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    leaving: list[int] = []
    monkeypatch.setattr(interrupt, "_UNHEARD_S", 0.0)
    monkeypatch.setattr(interrupt, "_leave", lambda number, _frame: leaving.append(number))
    monkeypatch.setattr(interrupt, "_heard", 0)
    for count in (1, 2):
        reading, writing = os.pipe()
        os.write(writing, bytes([signal.SIGINT] * count))
        os.close(writing)
        with interrupt.at_boundaries():
            interrupt._watch(reading, 0)
        assert leaving == [signal.SIGINT] * (count - 1)


@pytest.mark.parametrize(("heard", "left"), [(1, []), (0, [signal.SIGINT])], ids=["held back", "inside a library"])
def test_a_process_leaves_for_a_signal_only_where_it_was_not_heard(heard: int, left: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    leaving: list[int] = []
    monkeypatch.setattr(interrupt, "_UNHEARD_S", 0.0)
    monkeypatch.setattr(interrupt, "_leave", lambda number, _frame: leaving.append(number))
    monkeypatch.setattr(interrupt, "_heard", 3 + heard)
    reading, writing = os.pipe()
    os.write(writing, bytes([signal.SIGINT]))
    os.close(writing)
    interrupt._watch(reading, 3)
    assert leaving == left
