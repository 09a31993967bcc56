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

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

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


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("autotune.api"), name)
    raise AttributeError(f"module 'autotune' has no attribute {name!r}")
