"""The library front: every command as a function with a typed result.

A model is given as a `Model`, a shipped name or a file; a config as a `TunedConfig` or a file. With several sockets each function runs in
every rank: in processes that are started, bound and ended with the call, or, where a launcher made this process a rank, in those of the
launcher; it then returns the same on each. One rank runs in this process, whose threads are not bound here: that is decided before a
process starts (see `Launch`). Nothing heavy is imported before it is needed, so that a process can still choose its environment.
"""

from __future__ import annotations

from autotune.api.arguments import load_model, load_tuned
from autotune.api.measured import compare, probe, profile, run, tune, validate, verify
from autotune.api.predicted import explain, export, frame, plan, scale, what_if

__all__ = [
    "compare", "explain", "export", "frame", "load_model", "load_tuned", "plan", "probe", "profile", "run", "scale", "tune", "validate",
    "verify", "what_if",
]  # fmt: skip
