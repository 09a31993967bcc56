"""A library function runs in processes of its own; its result, its errors and its progress come back to the caller."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.catalog import load_model_by_name
from autotune.config.knobs import RunConfig
from autotune.config.tuned import TunedConfig
from autotune.errors import FingerprintError, InputError, MachineError, VerificationError, error_class
from autotune.ranks import driver
from autotune.ranks.binding import topology_of
from autotune.ranks.driver import _Relay, on_every_rank, replaced_variables, run_apart, wanted_ranks
from autotune.ranks.environment import FOLDER
from autotune.ranks.worker import FileProgress


def test_a_result_comes_back() -> None:
    assert run_apart(load_model_by_name, {"name_or_path": "tiny"}) == load_model_by_name("tiny")


def test_what_a_rank_starts_lies_in_the_folder_of_its_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the supervisor removes, even where the rank was killed and could not."""
    used: list[Path] = []

    def supervised(ranks: int, line: object, folder: Path, **more: object) -> None:
        used.append(folder)
        (folder / driver.RESULT).write_bytes(pickle.dumps("done"))

    monkeypatch.setattr(driver, "supervise", supervised)
    assert run_apart(load_model_by_name, {}) == "done"
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert run_apart(load_model_by_name, {}) == "done"
    assert [folder.parent == tmp_path for folder in used] == [False, True]


@pytest.mark.parametrize(("sockets", "expected"), [(None, 1), (1, 1), (3, 3)])
def test_sockets_are_those_asked_for(sockets: int | None, expected: int) -> None:
    assert wanted_ranks(sockets) == wanted_ranks(sockets, RunConfig(threads=1)) == expected


def test_two_numbers_of_sockets_are_refused(tuned_config: TunedConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted_ranks(None, tuned_config.model_copy(update={"sockets": 4})) == 4
    with pytest.raises(InputError, match="--sockets: 2, sockets of the config: 1"):
        wanted_ranks(2, tuned_config)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert wanted_ranks(None) == 3
    with pytest.raises(InputError, match="the launcher's ranks: 3, --sockets: 2"):
        wanted_ranks(2)


def test_one_rank_and_a_rank_of_a_launcher_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(driver, "run_apart", lambda function, arguments, *, ranks: started.append(ranks))
    monkeypatch.setenv("AUTOTUNE_OVERSUBSCRIBE", "1")

    @on_every_rank
    def answer(*, sockets: int | None = None) -> str:
        return "here"

    assert answer() == answer(sockets=1) == "here"
    answer(sockets=2)
    assert started == [2]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert answer(sockets=2) == "here"
    assert started == [2]


def test_variables_of_openmp_that_ranks_replace_are_told_once(tuned_config: TunedConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = tuned_config.fingerprint.topology
    rank = topology_of(machine, machine.core_cpus[0][:1])
    assert replaced_variables([rank], {}) == replaced_variables([rank], {"OMP_NUM_THREADS": "1", "OMP_DYNAMIC": "x"}) == ""
    note = replaced_variables([rank, rank], {"OMP_NUM_THREADS": "7", "OMP_PLACES": "cores", "OMP_PROC_BIND": "true"})
    assert "OMP_NUM_THREADS='7' by '1'" in note
    assert f"OMP_PLACES='cores' by '{{{machine.core_cpus[0][0]}}}'" in note
    assert "OMP_PROC_BIND" not in note

    monkeypatch.setattr(driver, "run_apart", lambda function, arguments, *, ranks: None)
    monkeypatch.setenv("AUTOTUNE_OVERSUBSCRIBE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "777")
    heard: list[str] = []

    @on_every_rank
    def work(*, sockets: int | None = None, progress: Any = None) -> None:
        return None

    work(sockets=2, progress=SimpleNamespace(note=heard.append))
    assert len(heard) == 1
    assert "OMP_NUM_THREADS='777' by " in heard[0]


def test_progress_comes_back_whole_and_in_order(tmp_path: Path) -> None:
    heard: list[tuple[object, ...]] = []

    def hear(name: str) -> Any:
        return lambda *words: heard.append((name, *words))

    sender = FileProgress(tmp_path / "progress")
    relay = _Relay(tmp_path / "progress", SimpleNamespace(phase=hear("phase"), advance=hear("advance"), note=hear("note")))
    relay.poll()
    sender.phase("training", 100.0)
    relay.poll()
    for _ in range(100):
        sender.advance(1.0, "loss 0.5")
    sender.note("one\nof two lines")
    sender.phase("next", None)
    relay.poll()
    relay.poll()
    assert heard[0] == ("phase", "training", 100.0)
    assert sum(float(str(words[1])) for words in heard if words[0] == "advance") == 100.0
    assert sum(words[0] == "advance" for words in heard) < 100
    assert ("note", "one\nof two lines") in heard
    assert heard[-1] == ("phase", "next", None)


@pytest.mark.parametrize(("code", "kind"), [(1, VerificationError), (2, InputError), (3, MachineError), (77, MachineError)])
def test_an_exit_code_stands_for_one_class(code: int, kind: type[Exception]) -> None:
    assert error_class(code) is kind
    assert FingerprintError.exit_code == InputError.exit_code


def test_half_a_line_of_progress_is_left_out(tmp_path: Path) -> None:
    """A disk was full in its middle, and has space again."""
    heard: list[str] = []
    (tmp_path / "progress").write_text('["note", "one"]\n["no["note", "two"]\n["note", "three"]\n')
    _Relay(tmp_path / "progress", SimpleNamespace(note=heard.append)).poll()
    assert heard == ["one", "three"]


def test_progress_that_cannot_be_written_does_not_end_the_work(tmp_path: Path) -> None:
    FileProgress(tmp_path / "gone" / "progress").note("nobody hears it")
    assert not (tmp_path / "gone").exists()
