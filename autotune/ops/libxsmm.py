"""Finds libxsmm, whose batch-reduce kernels are a third GEMM beside ours and torch's. Never required.

Looked for once a process: what AUTOTUNE_LIBXSMM names; libxsmm.so.1 or libxsmm.so where the loader looks; and the static archive that is
all Debian's libxsmm-dev has, made a shared library in the cache folder by the compiler.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

from autotune.config.files import cache_folder
from autotune.config.knobs import RunConfig
from autotune.errors import InputError, MachineError
from autotune.machine.scratch import scratch_folder
from autotune.ops.layer import LayerKnobs
from autotune.ops.native import kernels

VARIABLE = "AUTOTUNE_LIBXSMM"
_NAMES = ("libxsmm.so.1", "libxsmm.so")
_COMPILERS = ("cc", "gcc", "clang")
_LINK_S = 60


def available() -> bool:
    """Whether libxsmm serves here; the first call looks for it."""
    return kernels.libxsmm_opened() or not missing()


@functools.cache
def missing() -> str:
    """Why libxsmm does not serve, in words; empty when it does.

    Raises:
        InputError: the library that the user names does not load.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if reason := kernels.libxsmm_open(named):
            raise InputError(f"{VARIABLE} must name a shared library of libxsmm, got {named!r} ({reason}); correct it, or unset it")
        return ""
    reasons = []
    for name in _NAMES:
        reasons.append(kernels.libxsmm_open(name))
        if not reasons[-1]:
            return ""
    linked = _linked()
    return kernels.libxsmm_open(str(linked)) if linked else reasons[0]


def require_for(config: RunConfig, place: str) -> None:
    """Held before a configuration is used.

    Raises:
        MachineError: a pass is to run on libxsmm, and it does not serve here.
    """
    wanted = [key for key, knobs in config.operators.items() if isinstance(knobs, LayerKnobs) and knobs.implementation == "libxsmm"]
    if wanted and not available():
        more = f" and {len(wanted) - 1} more passes" if len(wanted) > 1 else ""
        raise MachineError(
            f"libxsmm must be installed for what {place} chooses ({wanted[0]}{more}), got none that serves: "
            f"{missing()}; apt-get install libxsmm-dev, or name the shared library in {VARIABLE}, or tune again here"
        )


def _linked() -> Path | None:
    """A shared library made of the static archive, kept in the cache folder; None without archive or compiler."""
    compiler = next((found for found in map(shutil.which, _COMPILERS) if found), None)
    if compiler is None:
        return None
    archive = _archive(compiler, "libxsmm.a")
    if archive is None:
        return None
    stat = archive.stat()
    try:
        library = cache_folder() / f"libxsmm-{stat.st_size}-{stat.st_mtime_ns}.so.1"
    except InputError:  # no home folder
        return None
    if library.exists():
        return library
    blas = _archive(compiler, "libxsmmnoblas.a")  # stands in for the BLAS that fallbacks name
    whole = ["-Wl,--whole-archive", str(archive), *([str(blas)] if blas else []), "-Wl,--no-whole-archive"]
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder("libxsmm-link-", library.parent) as work:
            made = work / library.name
            command = [compiler, "-shared", "-o", str(made), *whole, "-lpthread", "-lrt", "-ldl", "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=_LINK_S)
            made.replace(library)  # whole or not at all, whoever else is at it
    except (OSError, subprocess.SubprocessError):
        return None
    return library


def _archive(compiler: str, name: str) -> Path | None:
    """Where the linker would find it: a compiler answers with the bare name when it does not."""
    try:
        printed = subprocess.run([compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True, timeout=_LINK_S)
    except (OSError, subprocess.SubprocessError):
        return None
    path = Path(printed.stdout.strip())
    return path.resolve() if path.is_absolute() and path.exists() else None
