"""What is kept when training ends early."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from command_line import invoke

from autotune.api.training import OnStep, train_and_save
from autotune.dlrm.checkpoint import read_checkpoint, save_checkpoint
from autotune.errors import InputError, NoSpaceError
from autotune.ranks import interrupt

FILE = Path("w.pt")


@pytest.fixture(autouse=True)
def command() -> Iterator[None]:
    """Signals as a command heeds them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    interrupt.install()
    with interrupt.raising():
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


def trained(steps: int, at: dict[int, Any]) -> Any:
    """A training of so many steps; in the middle of a step it does what `at` has for it."""

    def train(on_step: OnStep) -> Any:
        for step in range(steps):
            for action in at.get(step, ()):
                action()
            on_step(step, 0.0)
        return "result"

    return train


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def bad_row() -> None:
    raise InputError("a row must have 40 fields, got 3 (x.tsv: line 9); correct it")


def end(train: Any) -> tuple[list[int], BaseException]:
    saved: list[int] = []
    with pytest.raises((KeyboardInterrupt, InputError)) as raised:
        train_and_save(train, lambda step, loss: None, saved.append, FILE)
    return saved, raised.value


def test_after_the_last_step_it_is_saved_once() -> None:
    saved: list[int] = []
    assert cast(str, train_and_save(trained(5, {}), lambda step, loss: None, saved.append, FILE)) == "result"
    assert saved == [5]


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, interrupt.Terminated)])
def test_a_signal_waits_for_the_end_of_the_step_and_the_weights_are_kept(number: signal.Signals, kind: type[KeyboardInterrupt]) -> None:
    saved, error = end(trained(9, {3: [lambda: signal.raise_signal(number)]}))
    assert saved == [4]
    assert type(error) is kind
    assert str(error) == "the weights after 4 steps are in w.pt"


def test_a_second_signal_does_not_wait_and_nothing_is_written() -> None:
    saved, error = end(trained(9, {3: [ctrl_c, ctrl_c]}))
    assert (saved, str(error)) == ([], "")


def test_a_bad_row_after_some_steps_loses_none_of_them() -> None:
    saved, error = end(trained(9, {7: [bad_row]}))
    assert saved == [7]
    assert str(error) == "a row must have 40 fields, got 3 (x.tsv: line 9); correct it; the weights after 7 steps are in w.pt"


def test_a_bad_first_row_leaves_the_file_alone() -> None:
    saved, error = end(trained(9, {0: [bad_row]}))
    assert saved == []
    assert "w.pt" not in str(error)


def test_a_signal_while_the_weights_are_written_waits_for_that() -> None:
    saved: list[int] = []

    def save(steps: int) -> None:
        ctrl_c()
        saved.append(steps)

    with pytest.raises(KeyboardInterrupt, match=r"after 2 steps are in w\.pt"):
        train_and_save(trained(2, {}), lambda step, loss: None, save, FILE)
    assert saved == [2]


def test_ctrl_c_of_a_run_with_a_checkpoint_leaves_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advanced: list[float] = []

    def advance(_: object, amount: float, detail: str = "") -> None:
        advanced.append(amount)
        if len(advanced) == 5:
            ctrl_c()

    monkeypatch.setattr("autotune.cli.progress.Lines.advance", advance)
    file = tmp_path / "w.pt"
    result = invoke("run", "tiny", "--steps", "1000000", "--threads", "1", "--checkpoint-out", file)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == f"interrupted; the weights after 5 steps are in {file}"
    assert read_checkpoint(file).iterations == 5


@pytest.mark.parametrize(("failure", "kind"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), NoSpaceError)])
def test_what_ends_the_writing_of_a_checkpoint_is_told_as_it_is(
    failure: BaseException, kind: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch puts an error of its own in its place."""
    path = tmp_path / "w.pt"
    path.write_bytes(b"before")

    class Failing:
        def __init__(self, file: Any) -> None:
            self._file, self._left = file, 3

        def write(self, data: Any) -> int:
            self._left -= 1
            if not self._left:
                raise failure
            return int(self._file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            self._file.close()

    plain = open

    def opened(file: Any, *rest: Any, **named: Any) -> Any:
        made = plain(file, *rest, **named)
        return Failing(made) if isinstance(file, int) else made

    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(kind):
        save_checkpoint(path, {"x": torch.zeros(1000)})
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["w.pt"]
