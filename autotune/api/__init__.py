"""The library front: every command as a function with a typed result.

A model is given as a `Model`, a shipped name or a file; a config as a `TunedConfig` or a file. With several sockets each function runs in
every rank: in processes that are started, bound and ended with the call, or, where a launcher made this process a rank, in those of the
launcher; it then returns the same on each. One rank runs in this process, whose threads are not bound here: that is decided before a
process starts (see `Launch`). Nothing heavy is imported before it is needed, so that a process can still choose its environment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.api.arguments import load_model, load_tuned
    from autotune.api.measured import probe, profile, run, tune
    from autotune.api.predicted import explain, export, frame, plan, scale, what_if
    from autotune.api.verified import compare, validate, verify

__all__ = [
    "compare", "explain", "export", "frame", "load_model", "load_tuned", "plan", "probe", "profile", "run", "scale", "tune", "validate",
    "verify", "what_if",
]  # fmt: skip
_ELSEWHERE = {name: "predicted" for name in ("explain", "export", "frame", "plan", "scale", "what_if")}
_ELSEWHERE |= dict.fromkeys(("compare", "validate", "verify"), "verified")
_ELSEWHERE |= {"load_model": "arguments", "load_tuned": "arguments"}


def __getattr__(name: str) -> Any:
    """What runs nothing does without the modules that measure."""
    if name not in __all__:
        raise AttributeError(f"module 'autotune.api' has no attribute {name!r}")
    return getattr(importlib.import_module(f"autotune.api.{_ELSEWHERE.get(name, 'measured')}"), name)
