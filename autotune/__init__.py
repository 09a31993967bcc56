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
import sys
from types import ModuleType
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

_PACKAGES_TOO = ("compare", "explain", "export", "plan", "probe", "tune")
"""Names that are a function of the API and a package of the code: the package answers calls."""


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module("autotune.api"), self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Root(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        if name in _PACKAGES_TOO and isinstance(value, ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Root


def __getattr__(name: str) -> Any:
    if name in _PACKAGES_TOO:
        return importlib.import_module(f"autotune.{name}")
    if name in __all__:
        return getattr(importlib.import_module("autotune.api"), name)
    raise AttributeError(f"module 'autotune' has no attribute {name!r}")
