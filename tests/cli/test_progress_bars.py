from __future__ import annotations

import io
import sys

import pytest

from autotune.bench.progress import Progress
from autotune.cli.progress import reporting


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress: Progress) -> None:
    progress.phase("racing [bold]", 3.0)
    progress.advance(1.0, "small[max_rows=10]")
    progress.note("a round was disturbed")
    progress.phase("of unknown length", None)
    progress.advance(1.0)


def stopped() -> None:
    with reporting() as progress:
        progress.phase("racing", 3.0)
        raise KeyboardInterrupt


def test_a_pipe_gets_notes_only(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting() as progress:
        work(progress)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "note: a round was disturbed\n")


def test_a_terminal_gets_bars_on_standard_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with reporting() as progress:
        work(progress)
    shown = terminal.getvalue()
    assert capsys.readouterr().out == ""
    for piece in ("racing [bold]", "left", "note: a round was disturbed", "of unknown length"):
        assert piece in shown


def test_the_bar_is_taken_down_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert terminal.getvalue().rstrip("\n").endswith("\x1b[?25h")
