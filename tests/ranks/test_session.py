"""Ranks of unequal machines work as the smallest; what does not fit is refused before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machine_folders import Machine

from autotune.catalog import load_model_by_name
from autotune.config.knobs import RunConfig
from autotune.config.profile import Topology
from autotune.config.tuned import Launch
from autotune.errors import MachineError
from autotune.ranks import session as sessions
from autotune.ranks.environment import Ranks
from autotune.ranks.session import Cores, Session, open_session


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Callable[[Session, tuple[int, float]], Session]:
    """The session that a rank has once it has met another with so many cores, and such a quota."""

    @contextmanager
    def alone(ranks: Ranks, backend: str) -> Iterator[None]:
        yield

    def join(session: Session, other: tuple[int, float]) -> Session:
        monkeypatch.setattr(sessions, "joined", alone)
        monkeypatch.setattr(sessions, "gather", lambda own: [own, other])
        with session.joined() as (evened, _):
            return evened

    return join


def session_of(whole: Topology, threads: int, by_default: bool = True) -> Session:
    cores, launch = Cores(Ranks(0, 2, 0, 1, "mpirun"), whole, whole), Launch(threads=threads, cpus=(), environment={})
    return Session(cores, "tiny", load_model_by_name("tiny"), RunConfig(threads=threads), launch, ("before",), by_default=by_default)


@pytest.fixture
def eight(tmp_path: Path) -> Topology:
    return Machine(tmp_path).grid(1, 2, 4, interleaved=True).detect()


def test_equal_ranks_stay_as_they_are(eight: Topology, joined: Callable[..., Session]) -> None:
    session = session_of(eight, 8)
    assert joined(session, (8, math.inf)) is session


def test_a_larger_rank_works_with_the_cores_of_the_smallest(eight: Topology, joined: Callable[..., Session]) -> None:
    evened = joined(session_of(eight, 8), (4, math.inf))
    assert (evened.config.threads, evened.topology.physical_cores) == (4, 4)
    assert evened.topology.allowed_cpus == eight.numa_nodes[0], "of one node"
    assert evened.cores.whole == eight
    assert evened.notes == ("before", "every rank has 4 threads, as many as the smallest can use: ranks have 4, 8 cores")


def test_the_smallest_quota_counts(eight: Topology, joined: Callable[..., Session]) -> None:
    evened = joined(session_of(eight, 8), (8, 2.5))
    assert (evened.config.threads, evened.topology.cpu_quota) == (2, 2.5)


def test_threads_that_were_asked_for_are_kept(eight: Topology, joined: Callable[..., Session]) -> None:
    evened = joined(session_of(eight, 3, by_default=False), (4, math.inf))
    assert (evened.config.threads, evened.topology.physical_cores, evened.notes) == (3, 4, ("before",))


@pytest.mark.parametrize(("ranks", "mib", "rule"), [(2, 600, "of 2 ranks"), (1, 300, r"\(model tiny:")])
def test_a_model_that_does_not_fit_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, eight: Topology, ranks: int, mib: int, rule: str
) -> None:
    cores = Cores(Ranks(0, ranks, 0, ranks, ""), eight, eight)
    monkeypatch.setattr(sessions, "own_cores", lambda: cores)
    monkeypatch.setattr(sessions, "available_memory_bytes", lambda topology: mib << 20)
    monkeypatch.setattr(Cores, "start", lambda self, huge_pages=None: pytest.fail("started"))
    with pytest.raises(MachineError, match=rule):
        open_session("tiny")


def test_a_quota_bounds_the_threads_of_a_run_and_is_told(monkeypatch: pytest.MonkeyPatch, eight: Topology) -> None:
    granted = eight.model_copy(update={"cpu_quota": 2.5})
    cores = Cores(Ranks(0, 1, 0, 1, ""), granted, granted)
    monkeypatch.setattr(sessions, "own_cores", lambda: cores)
    monkeypatch.setattr(Cores, "start", lambda self, huge_pages=None: Launch(threads=2, cpus=(), environment={}))
    session = open_session("tiny")
    assert session.config.threads == 2
    assert session.notes == ("2 threads on 8 cores: the CPU quota grants 2.5 CPUs' worth of time",)
    asked = open_session("tiny", threads=8)
    assert asked.config.threads == 8
    assert "stopped whenever it is used up" in asked.notes[0]
