from __future__ import annotations

import os
import sys

import pytest

from autotune.config.tuned import Launch
from autotune.errors import InputError
from autotune.ranks import launch as module
from autotune.ranks.launch import GUARD, ensure_environment, missing

LAUNCH = Launch(threads=2, cpus=(0, 1), environment={"OMP_NUM_THREADS": "2", "OMP_PROC_BIND": "true", "OMP_PLACES": "{0},{1}"})

Call = tuple[str, list[str], dict[str, str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Restarts that were asked for; the environment has none of the variables."""
    seen: list[Call] = []
    for name in (*LAUNCH.environment, GUARD):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "execve", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "autotune", "run", "tiny"])
    monkeypatch.setattr(module, "_restart_allowed", True)
    return seen


def test_the_same_command_starts_again_in_the_environment(calls: list[Call]) -> None:
    ensure_environment(LAUNCH)
    [(program, arguments, environment)] = calls
    assert program == sys.executable
    assert arguments == [sys.executable, "-m", "autotune", "run", "tiny"]
    assert LAUNCH.environment.items() <= environment.items()
    assert environment[GUARD] == str(os.getpid())


def test_nothing_happens_where_the_environment_stands(calls: list[Call], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCH.environment.items():
        monkeypatch.setenv(name, value)
    ensure_environment(LAUNCH)
    assert calls == []


def test_there_is_no_loop(calls: list[Call], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GUARD, str(os.getpid()))
    monkeypatch.setenv("OMP_PLACES", "x")
    with pytest.raises(InputError, match=r"something resets it at start: .*OMP_PLACES='x'"):
        ensure_environment(LAUNCH)
    assert calls == []


def test_a_guard_of_another_process_does_not_count(calls: list[Call], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GUARD, "1")
    ensure_environment(LAUNCH)
    assert len(calls) == 1


def test_a_library_user_is_never_replaced(calls: list[Call], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_restart_allowed", False)
    ensure_environment(LAUNCH)
    assert calls == []


def test_what_the_user_set_is_kept_when_asked(calls: list[Call], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PROC_BIND", "spread")
    assert missing(LAUNCH, keep=True).keys() == {"OMP_NUM_THREADS", "OMP_PLACES"}
    assert missing(LAUNCH).keys() == LAUNCH.environment.keys()
    assert calls == []
