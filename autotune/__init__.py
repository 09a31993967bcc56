"""Runs, measures, explains and autotunes the optimized DLRM on CPUs.

The commands of the command line are functions here, with typed results (see `autotune.api`):

    >>> import autotune
    >>> autotune.run("tiny", steps=3).steps
    3
    >>> config = autotune.tune("small", budget_s=60, output="small.tuned.yaml")  # doctest: +SKIP
    >>> autotune.explain(config).findings  # doctest: +SKIP

They load on first use, so that importing the package is quick.
"""

from __future__ import annotations

import os
import sys

__version__ = "0.1.0"

TYPE_CHECKING = False  # for type checkers; `typing` itself is left out, since every command begins here

if TYPE_CHECKING:
    from autotune.api import (
        compare,
        explain,
        export,
        frame,
        load_model,
        load_tuned,
        plan,
        probe,
        profile,
        run,
        scale,
        tune,
        validate,
        verify,
        what_if,
    )

__all__ = [
    "compare",
    "explain",
    "export",
    "frame",
    "load_model",
    "load_tuned",
    "plan",
    "probe",
    "profile",
    "run",
    "scale",
    "tune",
    "validate",
    "verify",
    "what_if",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        from autotune import api

        return getattr(api, name)
    raise AttributeError(f"module 'autotune' has no attribute {name!r}")


def _take_installed() -> None:
    """In the folder of a clone Python finds these sources first, without compiled kernels: where a package that has them is installed, its
    modules count."""

    def holds(module: str, folders: list[str]) -> bool:
        return any(finder.find_spec(f"autotune.{module}", folders) for finder in sys.meta_path)

    if not holds("_kernels", __path__):
        elsewhere = [os.path.join(entry, "autotune") for entry in sys.path]
        __path__[:] = [folder for folder in elsewhere if holds("_kernels", [folder]) and holds("__main__", [folder])][:1] or __path__


_take_installed()
