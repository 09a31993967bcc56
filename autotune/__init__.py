"""Runs, measures, explains and autotunes the optimized DLRM on CPUs.

The commands of the command line as functions, with typed results:

    >>> import autotune
    >>> model = autotune.load_model("small")
    >>> config = autotune.tune(model, budget_s=60, output="small.tuned.yaml")  # doctest: +SKIP
    >>> autotune.explain(config).findings  # doctest: +SKIP

Attributes load on first use, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autotune.api import explain, export, load_model, load_tuned, probe, profile, run, tune, verify

__all__ = ["explain", "export", "load_model", "load_tuned", "probe", "profile", "run", "tune", "verify"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("autotune.api"), name)
    raise AttributeError(f"module 'autotune' has no attribute {name!r}")
