"""What tests of commands share."""

from __future__ import annotations

QUICK_PROBE = """
from functools import partial
from autotune.probing.store import load_or_probe
from autotune.probing.probe import probe
load_or_probe(measure=partial(probe, quick=True))
"""
"""The structure of a profile in two seconds, stored; its numbers are no measurement."""


def model_yaml(name: str, minibatch: int, bottom: str, top: str, tables: str) -> str:
    """A model's file, uniform look-ups."""
    return f"""
schema: 1
name: {name}
source: made for this test
description: ""
seed: 0
index_dtype: int64
data: {{distribution: uniform, pooling_kind: fixed}}
minibatch: {minibatch}
learning_rate: 0.1
interaction: dot
bottom_mlp: {bottom}
top_mlp: {top}
tables: {tables}
"""
