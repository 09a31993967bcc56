"""A rank that dies, hangs or disagrees ends the whole run with one error that names it, and leaves no process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import autotune
from autotune.errors import InputError, MachineError
from autotune.ranks.supervisor import _check_progress, supervise

# What each rank does, by `sys.argv[1]` on rank 1; rank 0 waits for it in a collective, as in training.
_RANK = """
import os, signal, sys, time
from pathlib import Path
from autotune.ranks.environment import FOLDER, from_environment
from autotune.ranks.group import agree, joined
from autotune.ranks.supervisor import beat, report_error
from autotune.errors import AutotuneError, InputError
ranks = from_environment()
beat(Path(os.environ[FOLDER]), ranks.rank)
Path(sys.argv[2], f"pid.{ranks.rank}").write_text(str(os.getpid()))
what = sys.argv[1] if ranks.rank == 1 else ""
try:
    import torch.distributed as dist
    with joined(ranks):
        agree("config", "b" if what == "disagree" else "a")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "refuse":
            raise InputError("a value must be right, got a wrong one; correct it")
        if what in ("crash", "abort"):
            print("something broke", file=sys.stderr, flush=True)
            # Not by sys.exit: on its way out torch may abort or not.
            os.abort() if what == "abort" else os._exit(1)
        dist.barrier()
except AutotuneError as error:
    report_error(Path(os.environ[FOLDER]), ranks.rank, error)
    os._exit(error.exit_code)
"""


def run(folder: Path, what: str, silent_s: float = 12.0, ranks: int = 3) -> None:
    root = str(Path(autotune.__file__).parents[1])
    environ = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    meeting = folder / "meeting-place"
    meeting.mkdir()
    supervise(ranks, [sys.executable, "-c", _RANK, what, str(folder)], meeting, environ=environ, silent_s=silent_s)


def left_over(folder: Path) -> list[int]:
    """Ranks that still run."""
    pids = [int(file.read_text()) for file in folder.glob("pid.*")]
    assert pids, "the ranks have started"
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).ppid() == os.getpid()]


def test_ranks_that_end_well_raise_nothing(tmp_path: Path) -> None:
    run(tmp_path, "")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("die", MachineError, "rank 1 killed by SIGKILL"),
        ("refuse", InputError, "rank 1: a value must be right"),
        ("crash", MachineError, r"exit code 1 of rank 1 \(something broke\)"),
        ("abort", MachineError, r"rank 1 killed by SIGABRT \(something broke\)"),
        ("disagree", InputError, "same config, got b on rank 1 and a on the others"),
    ],
)
def test_a_rank_that_fails_is_named(tmp_path: Path, what: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run(tmp_path, what)
    assert left_over(tmp_path) == []


def test_a_rank_that_is_stopped_is_named_and_ended(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no sign of rank 1"):
        run(tmp_path, "stop", silent_s=6.0)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("beats", "words"),
    [
        (["1 1 25.0 all_reduce", "0 1 25.0 step"], r"got rank 1 \(process 11\) in step for 25 s, the others waiting"),
        (["1 1 25.0 all_reduce", "0 0 3.0 making batch 7"], "got rank 1 .* in making batch 7"),
        (["1 1 25.0 all_reduce", "1 1 24.0 all_to_all.forward"], "got every rank waiting for another .*network"),
        (["0 0 900.0 building", "1 0 900.0 waiting for rank 0"], ""),
        (["0 1 19.0 step", "1 1 19.0 all_reduce"], ""),
    ],
)
def test_a_step_that_lasts_names_the_rank_that_does_not_wait(tmp_path: Path, beats: list[str], words: str) -> None:
    files = [tmp_path / f"beat.{rank}" for rank in range(len(beats))]
    for file, told in zip(files, beats, strict=True):
        file.write_text(told)
    processes: Any = [SimpleNamespace(pid=10 + rank) for rank in range(len(beats))]
    if not words:
        _check_progress(files, processes, 20.0)
        return
    with pytest.raises(MachineError, match=words):
        _check_progress(files, processes, 20.0)


_HANG = """        from autotune.dlrm.activity import busy
        with busy("step", waits=ranks.rank != 1, limited=True):
            time.sleep(60 if ranks.rank == 1 else 0)
            dist.barrier()
"""


def test_a_rank_that_hangs_inside_a_step_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = _RANK.replace("        dist.barrier()\n", _HANG)
    monkeypatch.setenv("AUTOTUNE_HANG_S", "2")
    environ = {**os.environ, "PYTHONPATH": str(Path(autotune.__file__).parents[1])}
    (tmp_path / "meeting-place").mkdir()
    with pytest.raises(MachineError, match=r"rank 1 .* in step"):
        supervise(2, [sys.executable, "-c", script, "", str(tmp_path)], tmp_path / "meeting-place", environ=environ)
    assert left_over(tmp_path) == []
