"""Tests that judge real measurements: they need a quiet machine, look whether it is one, and skip saying so where it is not."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from autotune.bench.noise import NoiseMonitor

_LOOK_S = 0.5


def measured(test: Callable[..., None]) -> Callable[..., None]:
    """Runs with `pytest -m measured`, apart from the suite. Skips where other programs are at work before it begins, and where it fails
    after other programs disturbed it; what the test itself starts is its own load."""

    @functools.wraps(test)
    def judged(*arguments: Any, **named: Any) -> None:
        monitor = NoiseMonitor(os.sched_getaffinity(0))
        monitor.before()
        time.sleep(_LOOK_S)
        if reason := monitor.after():
            pytest.skip(f"needs a quiet machine: {reason}")
        monitor.before()
        try:
            test(*arguments, **named)
        except (AssertionError, pytest.fail.Exception) as error:
            if reason := monitor.after():
                pytest.skip(f"needs a quiet machine: {reason} ({error})")
            raise

    return pytest.mark.measured(judged)
