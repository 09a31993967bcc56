"""A rank that dies, hangs or disagrees ends the whole run with one error that names it, and leaves no process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import autotune
from autotune.errors import InputError, MachineError
from autotune.machine.activity import advanced, busy
from autotune.ranks.supervisor import AwakeClock, _Watch, beat, supervise

# What each rank does, by `sys.argv[1]` on rank 1; rank 0 waits for it, as in training: in a collective where `sys.argv[3]` is "torch",
# which loads for seconds; else in a pipe, whose end is noticed as a lost peer is.
_RANK = """
import os, signal, sys, time
from contextlib import nullcontext
from pathlib import Path
from autotune.machine.activity import busy
from autotune.ranks import interrupt
from autotune.ranks.environment import FOLDER, from_environment
from autotune.ranks.group import PeerLostError, barrier, joined
from autotune.ranks.supervisor import beat, report_error
from autotune.errors import AutotuneError, InputError
ranks = from_environment()
interrupt.install()
beat(Path(os.environ[FOLDER]), ranks.rank)
Path(sys.argv[2], f"pid.{ranks.rank}").write_text(str(os.getpid()))
what = sys.argv[1] if ranks.rank == 1 else ""
collective = sys.argv[3] == "torch"
def wait():
    if collective:
        barrier()
    elif ranks.rank == 1:
        pipe.write("met")
    elif pipe.read() != "met":
        raise PeerLostError("rank 0 lost its peers: connection closed")
try:
    with joined(ranks) if collective else nullcontext():
        if not collective:
            with busy("joining the other ranks", waits=True):
                pipe = open(Path(sys.argv[2], "pipe"), "w" if ranks.rank else "r")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "stop":
            time.sleep(1.2)  # it has been heard since it loaded
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "refuse":
            raise InputError("a value must be right, got a wrong one; correct it")
        if what in ("crash", "abort"):
            print("something broke", file=sys.stderr, flush=True)
            # Not by sys.exit: on its way out torch may abort or not.
            os.abort() if what == "abort" else os._exit(1)
        wait()
except AutotuneError as error:
    report_error(Path(os.environ[FOLDER]), ranks.rank, error)
    os._exit(error.exit_code)
"""


def run(folder: Path, what: str, waits_in: str, script: str = _RANK) -> None:
    root = str(Path(autotune.__file__).parents[1])
    environ = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    meeting = folder / "meeting-place"
    meeting.mkdir()
    os.mkfifo(folder / "pipe")
    supervise(2, [sys.executable, "-c", script, what, str(folder), waits_in], meeting, environ=environ)


def left_over(folder: Path) -> list[int]:
    """Ranks that still run."""
    pids = [int(file.read_text()) for file in folder.glob("pid.*")]
    assert pids, "the ranks have started"
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).ppid() == os.getpid()]


def test_ranks_that_end_well_raise_nothing(tmp_path: Path) -> None:
    run(tmp_path, "", "pipe")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("what", "waits_in", "error", "says"),
    [
        ("die", "pipe", MachineError, "rank 1 killed by SIGKILL"),
        ("refuse", "pipe", InputError, "rank 1: a value must be right"),
        ("crash", "pipe", MachineError, r"exit code 1 of rank 1 \(something broke\)"),
        ("abort", "pipe", MachineError, r"rank 1 killed by SIGABRT \(something broke\)"),
    ],
)
def test_a_rank_that_fails_is_named(tmp_path: Path, what: str, waits_in: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run(tmp_path, what, waits_in)
    assert left_over(tmp_path) == []


def test_a_rank_that_is_stopped_is_named_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_HANG_S", "3")
    with pytest.raises(MachineError, match=r"within 3 s \(AUTOTUNE_HANG_S\), got no sign of rank 1"):
        run(tmp_path, "stop", "pipe")
    assert left_over(tmp_path) == []


class Ranks:
    """Ranks whose beats a test writes, and their supervisor, by a clock that a test sets."""

    def __init__(self, folder: Path, start_s: float = 100.0, hang_s: float = 20.0, stall_s: float = 3600.0) -> None:
        self.folder, self.now_s, self.beats = folder, 0.0, 0
        self.watch = _Watch(folder, start_s, hang_s, stall_s, AwakeClock(lambda: self.now_s))

    def tell(self, *told: str) -> None:
        self.beats += 1
        for rank, words in enumerate(told):
            (self.folder / f"beat.{rank}").write_text(f"{self.beats} {words}")

    def look(self, seconds: float = 0.0, ranks: int = 2) -> None:
        """The supervisor looks ten times a second for so long."""
        for _ in range(round(10 * seconds) + 1):
            self.watch.check({rank: 10 + rank for rank in range(ranks)})
            self.now_s += 0.1


@pytest.mark.parametrize(
    ("beats", "words"),
    [
        (["1 1 25.0 all_reduce", "0 1 25.0 step"], r"got rank 1 \(process 11\) in step for 25 s, the others waiting"),
        (["1 1 25.0 all_reduce", "0 0 3.0 making batch 7"], "got rank 1 .* in making batch 7"),
        (["1 1 25.0 all_reduce", "1 1 24.0 all_to_all.forward"], "got every rank waiting for another .*network"),
        (["0 0 900.0 building", "1 0 900.0 waiting for rank 0"], ""),
        (["0 1 19.0 step", "1 1 19.0 all_reduce"], ""),
        (
            ["1 0 3601.0 waiting for rank 0", "0 0 3700.0 making batch 7"],
            r"further within 3600 s, got rank 1 .* batch 7 for 3700 s",
        ),
        (["0 0 3.0 working", "0 0 3700.0 making batch 7"], ""),
        (["1 0 3601.0 waiting for rank 0", "1 0 3601.0 waiting for rank 0"], r"got every rank waiting .*AUTOTUNE_STALL_S"),
    ],
)
def test_a_step_that_lasts_names_the_rank_that_does_not_wait(tmp_path: Path, beats: list[str], words: str) -> None:
    ranks = Ranks(tmp_path)
    ranks.tell(*beats)
    if not words:
        ranks.look()
        return
    with pytest.raises(MachineError, match=words):
        ranks.look()


def test_loading_is_not_silence(tmp_path: Path) -> None:
    """A process that loads a library lets its own thread, which beats, not run."""
    ranks = Ranks(tmp_path)
    ranks.look(90)  # not even a beat
    ranks.tell("0 0 0.0 loading", "0 0 0.0 loading")
    ranks.look(99)
    with pytest.raises(MachineError, match=r"must load torch within 100 s \(AUTOTUNE_START_S\), got no sign of rank 0 \(process 10\)"):
        ranks.look(2)


def test_a_rank_that_has_loaded_must_beat(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path)
    ranks.tell("0 0 0.0 step", "0 0 0.0 loading")
    ranks.look(19)
    ranks.tell("0 0 0.0 loading")
    ranks.look(19)
    with pytest.raises(MachineError, match=r"must answer within 20 s \(AUTOTUNE_HANG_S\), got no sign of rank 0"):
        ranks.look(2)


def test_a_pause_of_the_whole_run_is_no_hang(tmp_path: Path) -> None:
    """All processes stop and go on together: Ctrl-Z and fg, a frozen cgroup, a machine that sleeps."""
    ranks = Ranks(tmp_path)
    for _ in range(15):
        ranks.tell("0 1 0.5 step", "1 1 0.5 all_reduce")
        ranks.look(0.5)
        ranks.now_s += 3600
        ranks.look(0.5)


def test_the_clock_counts_little_of_a_pause() -> None:
    readings = iter([5.0, 5.5, 6.0, 306.0, 306.5])
    clock = AwakeClock(lambda: next(readings))
    assert [clock() for _ in range(4)] == [0.5, 1.0, 2.0, 2.5]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Supervisor and ranks, for longer than any limit, in the middle of a step."""
    monkeypatch.setenv("AUTOTUNE_HANG_S", "5")
    script = _RANK.replace("        wait()\n", _SHORT_STEP)
    supervisor = "import sys; from pathlib import Path; from autotune.ranks.supervisor import supervise"
    command = f"[sys.executable, '-c', {script!r}, '', {str(tmp_path)!r}, 'torch']"
    supervisor += f"; supervise(2, {command}, Path({str(tmp_path / 'meeting-place')!r}))"
    (tmp_path / "meeting-place").mkdir()
    environ = {**os.environ, "PYTHONPATH": str(Path(autotune.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", supervisor], env=environ, start_new_session=True, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("in-step.*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(6)
        os.killpg(process.pid, signal.SIGCONT)
        assert process.communicate(timeout=60)[1].decode().count("MachineError") == 0
    assert process.returncode == 0


def test_a_rank_tells_how_long_ago_it_came_further(tmp_path: Path) -> None:
    folder = tmp_path / "meeting-place"
    folder.mkdir()

    def wait_until(wanted: Callable[[float], bool]) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(FileNotFoundError):
                if wanted(float((folder / "beat.0").read_text().split(" ")[3])):
                    return
            time.sleep(0.05)
        raise AssertionError

    beat(folder, 0)
    with busy("making tables"):
        wait_until(lambda lasting_s: lasting_s >= 1.0)
        advanced()
        wait_until(lambda lasting_s: lasting_s < 1.0)
    shutil.rmtree(folder)  # which ends the beat


_SHORT_STEP = """        with busy("step", waits=ranks.rank != 1, limited=True):
            Path(sys.argv[2], f"in-step.{ranks.rank}").touch()
            time.sleep(0.8 if ranks.rank == 1 else 0)
            wait()
"""

_HANG = """        with busy("step", waits=ranks.rank != 1, limited=True):
            time.sleep(60 if ranks.rank == 1 else 0)
            wait()
"""


def test_a_rank_that_hangs_inside_a_step_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_HANG_S", "2")
    with pytest.raises(MachineError, match=r"rank 1 .* in step"):
        run(tmp_path, "", "pipe", _RANK.replace("        wait()\n", _HANG))
    assert left_over(tmp_path) == []
