from __future__ import annotations

import io
import sys
import threading

import pytest

from autotune.bench.progress import Progress
from autotune.cli.progress import Lines, reporting


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


def test_a_pipe_gets_the_first_phase_at_once_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting() as progress:
        work(progress)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "progress: racing [bold]\nnote: a round was disturbed\n")


def test_a_log_shows_life_while_the_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(every_s=0.01)
    lines.phase("building", None)
    lines.phase("comparing", 3.0)
    shown = ""
    while shown.count("progress: comparing") < 2:
        shown += capsys.readouterr().err
    lines.end()
    assert shown.startswith("progress: building\n")
    capsys.readouterr()
    assert "autotune-progress" not in {thread.name for thread in threading.enumerate()}


def test_a_log_that_cannot_be_written_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    lines = Lines(every_s=0.001)
    lines.phase("building", None)
    lines.note("a note reaches nobody either")
    assert lines._thread is not None
    lines.end()
    assert not lines._thread.is_alive()


def test_a_line_tells_phase_part_time_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("autotune.cli.progress.time.monotonic", lambda: now_s)
    lines = Lines(every_s=1000.0)
    lines.phase("racing", 60.0)
    now_s += 10.0
    assert lines.line() == "progress: racing, for 10.0 s"
    now_s += 16.0
    lines.advance(24.0, "top_mlp.0.forward")
    assert lines.line() == "progress: racing, 40% after 26.0 s, about 39.0 s left (top_mlp.0.forward)"
    lines.advance(60.0)
    assert lines.line() == "progress: racing, 100% after 26.0 s, about 0 s left"
    lines.end()


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
