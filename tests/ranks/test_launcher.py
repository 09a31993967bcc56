"""What a rank finds out about its launcher: which CPUs it was given, by whom, and where ranks of one host meet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from autotune.ranks import launcher
from autotune.ranks.environment import Ranks
from autotune.ranks.launcher import Given, Process, given_by_launcher, launcher_of, meeting_place, undo_openmp_binding

DAEMON = 10
"""Number of the launcher's process; ranks are 100, 101, ..."""


class Host:
    """A /proc with a launcher, below it ranks of Open MPI, and affinities of all."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.affinity = folder, dict[int, set[int]]()
        self.add(1, 0, range(8))

    def add(self, pid: int, parent: int, cpus: Iterable[int], maps: str = "/usr/lib/libc.so.6", **environ: str) -> Process:
        folder = self.folder / str(pid)
        folder.mkdir()
        (folder / "status").write_text(f"Name:\tsome\nPPid:\t{parent}\n")
        (folder / "environ").write_text("".join(f"{name}={value}\0" for name, value in environ.items()))
        (folder / "maps").write_text(f"7f00-7f01 r-xp 0 00:00 1   {maps}\n")
        self.affinity[pid] = set(cpus)
        return self.process(pid)

    def process(self, pid: int) -> Process:
        return Process(pid, self.folder, self.affinity.__getitem__)

    def ranks(self, *given: Iterable[int], daemon: Iterable[int] = range(8)) -> list[Process]:
        """A launcher that has started ranks on these CPUs."""
        self.add(DAEMON, 1, daemon)
        return [self.add(100 + i, DAEMON, cpus, **variables(i, len(given))) for i, cpus in enumerate(given)]


def variables(rank: int, world: int) -> dict[str, str]:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    return {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in zip(names, (rank, world, rank, world), strict=True)}


def of(rank: int, world: int) -> Ranks:
    return Ranks(rank, world, rank, world, "Open MPI")


def given(process: Process, rank: int, world: int) -> Given | None:
    return given_by_launcher(of(rank, world), process.cpus, process, wait_s=0.0)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(launcher, "SYSFS", tmp_path / "sys")
    monkeypatch.setattr(launcher, "PROC", tmp_path)
    return Host(tmp_path)


def test_a_rank_bound_to_cpus_of_its_own_has_all_of_them(host: Host) -> None:
    first, second = host.ranks(range(4), range(4, 8))
    assert given(first, 0, 2) == Given(frozenset(range(8)), frozenset(range(4)), place=0, sharing=1)
    assert given(second, 1, 2) == Given(frozenset(range(8)), frozenset(range(4, 8)), place=0, sharing=1)


def test_ranks_bound_to_the_same_cpus_part_them(host: Host) -> None:
    processes = host.ranks(range(4), range(4, 8), range(4), range(4, 8))
    found = [given(process, rank, 4) for rank, process in enumerate(processes)]
    assert [(each.place, each.sharing) for each in found if each] == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_a_rank_that_has_bound_itself_already_still_shares(host: Host) -> None:
    _, second = host.ranks(range(2), range(4))
    assert given(second, 1, 2) == Given(frozenset(range(8)), frozenset(range(4)), place=1, sharing=2)


def test_ranks_that_nobody_bound_are_told_nothing(host: Host) -> None:
    first, _ = host.ranks(range(8), range(8))
    assert given(first, 0, 2) is None


def test_what_confined_the_launcher_is_no_binding_of_its_ranks(host: Host) -> None:
    first, _ = host.ranks(range(4), range(4), daemon=range(4))
    assert given(first, 0, 2) is None


def test_a_cgroup_of_the_step_is_no_binding(host: Host) -> None:
    first, _ = host.ranks(range(4), range(4))
    cpuset = host.folder / "sys/fs/cgroup/cpuset.cpus.effective"
    cpuset.parent.mkdir(parents=True)
    cpuset.write_text("0-3")
    assert given(first, 0, 2) is None


def test_a_shell_between_belongs_to_the_rank(host: Host) -> None:
    shell, _ = host.ranks(range(4), range(4, 8))
    program = host.add(200, shell.pid, range(4), **variables(0, 2))
    assert launcher_of(of(0, 2), program) == host.process(DAEMON)
    assert given(program, 0, 2) == given(shell, 0, 2)


def test_a_launcher_out_of_sight_tells_nothing(host: Host) -> None:
    inside = host.add(100, 0, range(4), **variables(0, 2))
    assert launcher_of(of(0, 2), inside) is None
    assert given(inside, 0, 2) is None
    assert meeting_place(of(0, 2), {}, inside) == {}


def test_ranks_of_one_host_meet_there_on_a_port_of_their_launcher(host: Host) -> None:
    first, second = host.ranks(range(8), range(8))
    place = meeting_place(of(0, 2), {}, first)
    assert place == meeting_place(of(1, 2), {}, second) == {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "20010", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.mark.parametrize(
    ("ranks", "environ"),
    [
        (of(0, 2), {"MASTER_ADDR": "node-a"}),
        (of(0, 2), {"MASTER_PORT": "29500"}),
        (of(0, 2), {"AUTOTUNE_RANKS_FOLDER": "/tmp/x"}),
        (Ranks(0, 4, 0, 2, "Open MPI"), {}),
        (Ranks(0, 2, 0, 2, "MPICH", note="not told"), {}),
    ],
)
def test_others_meet_where_they_are_told(host: Host, ranks: Ranks, environ: dict[str, str]) -> None:
    first, _ = host.ranks(range(8), range(8))
    assert meeting_place(ranks, environ, first) == {}


BINDING = {"OMP_PLACES": "{0},{1}"}


def test_the_core_that_torchruns_own_openmp_left_is_widened_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    widened: dict[int, frozenset[int]] = {}
    monkeypatch.setattr(os, "sched_setaffinity", widened.__setitem__)
    host.add(10, 1, range(4))
    host.add(20, 10, {0}, maps="/venv/torch/lib/libgomp-a34b3233.so.1", **BINDING)
    wrapper = host.add(30, 20, {0}, **BINDING)
    rank = host.add(40, wrapper.pid, {0}, **BINDING)
    assert undo_openmp_binding(BINDING, rank) == frozenset(range(4))
    assert widened == {40: frozenset(range(4))}


@pytest.mark.parametrize(
    ("environ", "told", "agent", "maps", "rank"),
    [
        pytest.param({}, {}, {0}, "/lib/libgomp.so.1", {0}, id="no variable binds"),
        pytest.param(BINDING, BINDING, {0}, "/lib/libc.so.6", {0}, id="no OpenMP above: somebody's taskset"),
        pytest.param(BINDING, {}, {0}, "/lib/libgomp.so.1", {0}, id="taskset above an OpenMP that was not told to bind"),
        pytest.param(BINDING, BINDING, {0}, "/lib/libgomp.so.1", {2, 3}, id="bound anew below"),
        pytest.param(BINDING, BINDING, range(8), "/lib/libgomp.so.1", range(8), id="not bound"),
    ],
)
def test_any_other_binding_stays(
    host: Host, environ: dict[str, str], told: dict[str, str], agent: Iterable[int], maps: str, rank: Iterable[int]
) -> None:
    host.add(20, 1, agent, maps=maps, **told)
    assert undo_openmp_binding(environ, host.add(40, 20, rank)) == frozenset()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two CPUs are needed to bind a process to one of them")
def test_proc_of_this_system_tells_the_same() -> None:
    code = f"""
import os
os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})
from autotune.ranks.environment import from_environment
from autotune.ranks.launcher import given_by_launcher, launcher_of
ranks = from_environment()
given = given_by_launcher(ranks, os.sched_getaffinity(0), wait_s=0.0)
print(launcher_of(ranks).pid, len(given.host), len(given.own), given.place, given.sharing)
"""
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env=os.environ | variables(1, 2), capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(os.getpid()), str(len(os.sched_getaffinity(0))), "1", "0", "1"]
