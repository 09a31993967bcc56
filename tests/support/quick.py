"""What tests of commands share."""

from __future__ import annotations

QUICK_PROBE = """
from functools import partial
from autotune.probe.cache import load_or_probe
from autotune.probe.probe import probe
load_or_probe(measure=partial(probe, quick=True))
"""
"""The structure of a profile in two seconds, stored; its numbers are no measurement."""
