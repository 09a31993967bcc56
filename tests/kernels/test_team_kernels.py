"""The clocks of teams: what they add up to, whatever the machine does meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from autotune.ops.native import kernels
from autotune.ops.timing import Recorder, TeamTimes


@pytest.fixture
def watched() -> Iterator[None]:
    kernels.watch_teams(True)
    kernels.take_team_times()
    yield
    kernels.watch_teams(False)


def run(threads: int, times: int = 1) -> None:
    features, out = torch.rand(512, 9, 64), torch.empty(512, 64 + 36)
    for _ in range(times):
        kernels.interaction_forward(features, out, False, 8, threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_parts_of_a_region_lie_within_each_other(threads: int, watched: None) -> None:
    begin_s = time.perf_counter()
    run(threads, times=20)
    taken_s = time.perf_counter() - begin_s
    teams = TeamTimes(*kernels.take_team_times())
    assert teams.regions == 20
    assert 0 < teams.longest_s <= taken_s
    assert 0 < teams.longest_core_s <= teams.longest_s
    assert 0 < teams.mean_core_s <= teams.longest_s * (1 + 1e-9)
    if threads == 1:
        assert teams.mean_core_s == pytest.approx(teams.longest_core_s)


def test_taken_once_and_only_while_watched(watched: None) -> None:
    run(2)
    assert kernels.take_team_times()[0] == 1
    assert kernels.take_team_times() == (0, 0.0, 0.0, 0.0)
    kernels.watch_teams(False)
    run(2)
    assert kernels.take_team_times()[0] == 0


def test_a_recorder_keeps_the_teams_of_each_pass_and_of_no_other(watched: None) -> None:
    recorder = Recorder()
    recorder.watch(True)
    run(2)
    with recorder.measure("pass"):
        run(2, times=3)
    with recorder.measure("no team"):
        pass
    with recorder.measure("pass"):
        run(1)
    times_s = recorder.take()
    assert {key: teams.regions for key, teams in recorder.teams[-1].items()} == {"pass": 4}
    assert recorder.teams[-1]["pass"].longest_s <= times_s["pass"]
    recorder.watch(False)
    with recorder.measure("pass"):
        run(2)
    recorder.take()
    assert len(recorder.teams) == 1
