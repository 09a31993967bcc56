"""Starts a module of this package in a process of its own: a rank, a contestant, a probe.

A child imports the very package that its parent imported, and libraries from where its parent has them. The folder where the user stands is
not searched, so that a file there (`random.py`) never takes the place of a module. A child ends with its parent, whatever ended that.

This file is also the program that a child runs, before it knows where the package is: only the standard library is imported here.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import json
import os
import signal
import site
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ENDINGS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1


def command_line(module: str, *arguments: str) -> list[str]:
    """The command line of a child that calls `main` of a module of the package, with these further arguments in `sys.argv`."""
    package = sys.modules["autotune"]
    where = {"package": [os.path.abspath(folder) for folder in package.__path__], "path": import_path(), "parent": os.getpid()}
    return [sys.executable, "-P", os.path.abspath(__file__), json.dumps(where), module, *arguments]


def import_path() -> list[str]:
    """Where this process looks for modules, without the folder where the user stands.

    That folder stays where it was named on purpose: in PYTHONPATH, or as the one that Python's packages are installed in.
    """
    here = os.path.realpath(os.curdir)
    named = () if sys.flags.ignore_environment else _named(os.environ)
    kept = {os.path.realpath(entry) for entry in (*named, *site.getsitepackages(), site.getusersitepackages())}
    return [os.path.abspath(entry) for entry in sys.path if entry and (os.path.realpath(entry) != here or here in kept)]


def start(line: Sequence[str], environ: Mapping[str, str], **streams: Any) -> subprocess.Popen[Any]:
    """Start a child. Ctrl-C and SIGTERM wait until it has begun: it then ignores the one, since its parent ends it, and heeds the other."""
    # An empty entry, as a line of a shell's profile may leave it, stands for the folder where the user stands.
    with held_back():
        return subprocess.Popen(line, env={**environ, "PYTHONPATH": os.pathsep.join(_named(environ))}, **streams)


def _named(environ: Mapping[str, str]) -> list[str]:
    return [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait inside; what is started inside begins with them waiting."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """The program of a child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)
    where, module = json.loads(sys.argv[1]), sys.argv[2]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != where["parent"]:
        sys.exit(3)  # the parent has ended meanwhile, and nobody wants the result
    sys.path[:] = where["path"]
    sys.argv[:] = [module, *sys.argv[3:]]
    init = next(file for folder in where["package"] if (file := Path(folder, "__init__.py")).exists())
    spec = importlib.util.spec_from_file_location("autotune", init, submodule_search_locations=where["package"])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["autotune"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    code = importlib.import_module(module).main()
    gc.freeze()  # see autotune/__main__.py
    sys.exit(code)


if __name__ == "__main__":
    _begin()
