from __future__ import annotations

import pytest

from autotune.bench.counters import Counters
from autotune.perf.counters_check import Witness, judge


@pytest.mark.parametrize(
    ("binder", "per_cycle", "missed", "agrees"),
    [
        ("memory", 0.3, 0.9, True),
        ("memory", 0.3, 0.2, False),
        ("compute", 2.0, 0.1, True),
        ("compute", 0.5, 0.1, True),
        ("compute", 0.5, 0.9, False),
        ("none", 2.0, 0.1, None),
    ],
)
def test_counters_are_held_against_the_verdict(binder: str, per_cycle: float, missed: float, agrees: bool | None) -> None:
    compulsory = 64 * 10**6
    counts = {"cycles": 1e9, "instructions": per_cycle * 1e9, "cache_misses": missed * 1e6}
    judged, words = judge(counts, binder, compulsory)
    assert judged is agrees
    assert f"{per_cycle:.1f} instructions a cycle" in words
    assert f"{missed:.0%} of its bytes missed" in words


def test_counters_that_are_not_there_tell_nothing() -> None:
    assert judge({}, "memory", 100)[0] is None
    assert judge({"cycles": 1e9, "instructions": 1e9}, "memory", 100)[0] is None
    absent = Witness(lambda: Counters({}))
    absent_calls: list[int] = []
    absent.absent = "no such machine"
    assert absent.of(lambda: absent_calls.append(1), "memory", 100) is None
    assert absent_calls == []
