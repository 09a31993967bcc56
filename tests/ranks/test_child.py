"""A child imports what its parent imported, wherever the user stands, and ends with its parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from autotune.ranks.child import command_line, import_path, start

# A package of this name that holds no more than what a child needs, so that a test is quick.
_SPEAKER = """
import json, os, random, signal, sys
def main():
    told = {"argv": sys.argv, "path": sys.path, "package": list(sys.modules["autotune"].__path__), "random": random.__file__}
    print(json.dumps(told | {"ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN}))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user stands: files there have the names of modules, and the sources of this package lie there uncompiled."""
    here = tmp_path / "clone"
    (here / "autotune").mkdir(parents=True)
    (here / "autotune" / "__init__.py").write_text("raise SystemExit('the sources were taken')")
    for name in ("yaml", "random", "json", "torch"):
        (here / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working folder was executed')")
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package that the parent has imported."""
    package = tmp_path / "site" / "autotune"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "speaker.py").write_text(_SPEAKER)
    monkeypatch.setattr(sys.modules["autotune"], "__path__", [str(package)])
    return package


def told_by(line: list[str], environ: dict[str, str]) -> dict[str, object]:
    process = start(line, environ, stdout=subprocess.PIPE, text=True)
    out = process.communicate(timeout=30)[0]
    assert process.returncode == 0
    told: dict[str, object] = json.loads(out)
    return told


@pytest.mark.parametrize("entry", ["", "."])
def test_a_child_takes_the_parents_package_and_nothing_from_the_working_folder(
    folder: Path, installed: Path, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry, str(folder), *sys.path])  # as `python -c`, `python -m` and an interpreter have it
    # An empty entry is the working folder to Python.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {"PYTHONPATH": ":/nowhere"}
    told = told_by(command_line("autotune.speaker", "3", "4"), environ)
    assert told["argv"] == ["autotune.speaker", "3", "4"]
    assert told["package"] == [str(installed)]
    assert told["path"] == import_path()
    assert str(folder) not in import_path()
    assert told["ignored"] is True


def test_a_folder_that_was_named_on_purpose_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", str(folder)])
    monkeypatch.setenv("PYTHONPATH", str(folder))
    assert import_path() == [str(folder)]


def test_a_child_ends_with_its_parent(installed: Path, tmp_path: Path) -> None:
    (installed / "sleeper.py").write_text("import time\ndef main():\n    print('ready', flush=True)\n    time.sleep(60)\n")
    program = "import subprocess, sys, time; child = subprocess.Popen(eval(sys.stdin.read())); print(child.pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        line = command_line("autotune.sleeper")
        parent.stdin.write(repr([*line[:3], line[3].replace(f'"parent": {os.getpid()}', f'"parent": {parent.pid}'), *line[4:]]))
        parent.stdin.close()
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
