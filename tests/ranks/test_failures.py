"""What cannot be had, and what nobody foresaw, in one rank and in several."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest

from autotune.errors import InternalError, MachineError, NoSpaceError, error_class
from autotune.machine.cgroups import Cgroups
from autotune.ranks.driver import run_apart
from autotune.ranks.failures import check_threads


def test_an_error_that_nobody_foresaw_in_one_of_two_ranks_is_one_error_and_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path))
    with pytest.raises(InternalError, match=r"rank \d: an error that nobody foresaw: TypeError: .* \(.*\.log\)") as raised:
        run_apart(json.loads, {"s": 5}, ranks=2)
    assert raised.value.exit_code == 70
    log = re.search(r"\((.*\.log)\)", str(raised.value))
    assert log is not None
    assert "in loads" in Path(log[1]).read_text()
    assert "Traceback" not in capfd.readouterr().err


def test_the_class_of_an_error_comes_over_from_a_rank() -> None:
    assert error_class(3, "NoSpaceError") is NoSpaceError
    assert error_class(3, "PeerLostError") is MachineError
    assert error_class(70) is InternalError


def test_a_thread_that_cannot_be_started_names_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(
        MachineError, match=r"threads must be allowed, got 2 of 5; the limit is .*(ulimit -u|pids\.max|threads-max).*raise it"
    ):
        check_threads(2)
    assert not any(thread.is_alive() for thread in started)


def test_threads_that_can_be_had_leave_nothing_behind() -> None:
    before = threading.active_count()
    check_threads(4)
    assert threading.active_count() == before


def test_the_least_limit_of_processes_on_the_path_counts(tmp_path: Path) -> None:
    proc, sysfs = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/a/b\n")
    (proc / "self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    folder = sysfs / "fs/cgroup/a/b"
    folder.mkdir(parents=True)
    (folder / "pids.max").write_text("max\n")
    assert Cgroups(sysfs, proc).pids is None
    (folder.parent / "pids.max").write_text("40\n")
    assert Cgroups(sysfs, proc).pids == 40
