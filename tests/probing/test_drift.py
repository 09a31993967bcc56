from __future__ import annotations

import pytest

from autotune.config.measured import MachineState, differs
from autotune.config.profile import Profile
from autotune.probing.drift import Drift, as_probed, ceilings_now


def test_a_look_is_a_share_of_what_was_probed(hardware_profile: Profile) -> None:
    first = Drift(hardware_profile, 1)
    assert first.state is None
    first.look()
    # The same machine under a profile that promises a hundred times as much of both.
    ceilings = hardware_profile.ceilings
    double = ceilings.model_copy(
        update={
            "stream": tuple(p.model_copy(update={"bandwidth_bytes_per_s": 100 * p.bandwidth_bytes_per_s}) for p in ceilings.stream),
            "fma": tuple(p.model_copy(update={"flops_per_s": 100 * p.flops_per_s}) for p in ceilings.fma),
        }
    )
    second = Drift(hardware_profile.model_copy(update={"ceilings": double}), 1)
    second.look()
    assert first.state is not None
    assert second.state is not None
    assert 0 < second.state.memory < first.state.memory
    assert 0 < second.state.compute < first.state.compute


def test_nothing_is_looked_at_where_the_profile_knows_no_such_team(hardware_profile: Profile) -> None:
    other = Drift(hardware_profile, 7)
    other.look()
    assert other.state is None


def test_ceilings_follow_what_differs_by_more_than_noise(hardware_profile: Profile) -> None:
    before = hardware_profile.ceilings
    assert ceilings_now(before, None) is before
    assert ceilings_now(before, MachineState(memory=0.95, rows=0.95, compute=1.05)) is before
    now = ceilings_now(before, MachineState(memory=0.5, rows=0.5, compute=0.97))
    assert (now.fma, now.gemm, now.fork_join) == (before.fma, before.gemm, before.fork_join)
    for kind in ("stream", "gather", "scatter"):
        pairs = zip(getattr(now, kind), getattr(before, kind), strict=True)
        assert all(one.bandwidth_bytes_per_s == 0.5 * other.bandwidth_bytes_per_s for one, other in pairs)
    slower = ceilings_now(before, MachineState(memory=1.0, rows=1.0, compute=0.6))
    assert slower.stream == before.stream
    assert [p.flops_per_s for p in slower.gemm] == pytest.approx([0.6 * p.flops_per_s for p in before.gemm])


def test_a_difference_is_told_from_noise_in_both_directions() -> None:
    assert [differs(ratio) for ratio in (0.5, 0.95, 1.0, 1.08, 1.3)] == [True, False, False, False, True]


def test_another_state_of_the_machine_is_told_from_looks_of_one() -> None:
    same, split = MachineState(memory=1.1, rows=0.9, compute=1.02), MachineState(memory=1.7, rows=1.0, compute=1.0)
    assert as_probed(same, same)
    assert as_probed(None, same)
    assert not as_probed(same, split)
    assert not as_probed(MachineState(memory=1.0, rows=1.0, compute=0.5))
