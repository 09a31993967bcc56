from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.config.measured import TimeParts
from autotune.config.profile import Ceilings, ComputePoint, StreamPoint
from autotune.ops.base import Work
from autotune.ops.timing import TeamTimes
from autotune.perf.breakdown import parts_by_pass
from autotune.perf.roofline import reason, verdict

CEILINGS = Ceilings(
    fma=(ComputePoint(threads=2, flops_per_s=1e11),),
    gemm=(ComputePoint(threads=2, flops_per_s=1e11),),
    stream=(StreamPoint(kind="read", threads=2, bandwidth_bytes_per_s=1e10),),
    gather=(), scatter=(), fork_join=(),
)  # fmt: skip


def only(time_s: float, teams: TeamTimes) -> TimeParts:
    return parts_by_pass([({"pass": time_s}, {"pass": teams})])["pass"]


def test_each_part_by_itself() -> None:
    assert only(10.0, TeamTimes(1, 10.0, 10.0, 10.0)) == TimeParts(launch=0, off_core=0, imbalance=0, work=1)
    # One thread of two does all of it.
    assert only(10.0, TeamTimes(1, 10.0, 10.0, 5.0)) == TimeParts(launch=0, off_core=0, imbalance=0.5, work=0.5)
    # Both do as much, one of them on half a core.
    assert only(10.0, TeamTimes(1, 10.0, 5.0, 5.0)) == TimeParts(launch=0, off_core=0.5, imbalance=0, work=0.5)
    # Dispatch, forks and joins.
    assert only(10.0, TeamTimes(1, 6.0, 6.0, 6.0)) == TimeParts(launch=0.4, off_core=0, imbalance=0, work=0.6)


def test_medians_over_steps_and_passes_that_always_ran_a_team() -> None:
    always = TeamTimes(1, 1.0, 1.0, 1.0)
    steps = [({"a": 1.0, "b": 1.0}, {"a": TeamTimes(1, share, share, share), "b": always}) for share in (0.9, 0.2, 0.8)]
    steps[1][1].pop("b")
    found = parts_by_pass(steps)
    assert set(found) == {"a"}
    assert found["a"].launch == pytest.approx(0.2)
    assert parts_by_pass([]) == {}


@given(st.floats(1e-6, 10), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_parts_add_up_and_none_is_negative(time_s: float, shares: list[float]) -> None:
    longest_s = time_s * shares[0] * shares[1]
    teams = TeamTimes(1, longest_s, longest_s * shares[2], longest_s * shares[3])
    found = only(time_s, teams)
    assert found.launch + found.off_core + found.imbalance + found.work == pytest.approx(1.0, abs=5e-4)


@pytest.mark.parametrize(
    ("parts", "named", "words"),
    [
        (TimeParts(launch=0.5, off_core=0.1, imbalance=0.1, work=0.3), "overhead", "launch overhead"),
        (TimeParts(launch=0.1, off_core=0.5, imbalance=0.1, work=0.3), "cores", "waiting for a core"),
        (TimeParts(launch=0.1, off_core=0.1, imbalance=0.5, work=0.3), "imbalance", "imbalance"),
        (TimeParts(launch=0.1, off_core=0.0, imbalance=0.0, work=0.9), "latency", "latency inside the threads' work"),
    ],
)
def test_what_rules_below_every_ceiling_is_named_with_its_share(parts: TimeParts, named: str, words: str) -> None:
    work = Work(flops=2 * 10**8, bytes_read=10**6, bytes_written=0, parallel_regions=1)
    assert reason(parts, 0.2) == named
    found = verdict(work, 0.01, CEILINGS, 2, parts=parts)
    assert found.binder == "none"
    assert f"Most of the rest is {words}:" in found.detail
    assert f"waiting for a core {parts.off_core:.0%}" in found.detail


def test_a_bound_pass_tells_when_its_threads_lacked_cores() -> None:
    work = Work(flops=8 * 10**8, bytes_read=10**6, bytes_written=0)
    lacking = verdict(work, 0.01, CEILINGS, 2, parts=TimeParts(launch=0, off_core=0.15, imbalance=0, work=0.85))
    assert lacking.binder == "compute"
    assert "no core for 15% of the time" in lacking.detail
    quiet = verdict(work, 0.01, CEILINGS, 2, parts=TimeParts(launch=0, off_core=0.01, imbalance=0, work=0.99))
    assert "no core" not in quiet.detail
