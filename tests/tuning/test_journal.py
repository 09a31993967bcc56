from __future__ import annotations

import errno
from pathlib import Path

import pytest
from optuna.trial import TrialState

from autotune.errors import InputError, NoSpaceError
from autotune.tuning.journal import Journal, journal_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.yaml.journal"


def filled(path: Path) -> bytes:
    with Journal(path, "study") as journal:
        journal.put("race:x", {"a": [1, 2]})
        trial = journal.study.ask()
        trial.suggest_categorical("threads", [1, 2])
        journal.study.tell(trial, 0.5)
    return path.read_bytes()


def test_the_journal_stands_beside_the_output(tmp_path: Path) -> None:
    assert journal_path(tmp_path / "a.tuned.yaml") == tmp_path / "a.tuned.yaml.journal"


def test_what_was_stored_is_there_again(path: Path) -> None:
    filled(path)
    with Journal(path, "study") as journal:
        assert journal.resumed
        assert journal.get("race:x") == {"a": [1, 2]}
        assert len(journal.finished_trials()) == 1
        assert journal.get("other") is None


def test_cut_at_any_byte_it_opens_and_goes_on(path: Path) -> None:
    data = filled(path)
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with Journal(path, "study") as journal:
            journal.put("more", length)
        with Journal(path, "study") as journal:
            assert journal.get("more") == length
            assert journal.notes == []


def test_a_broken_tail_is_noted(path: Path) -> None:
    data = filled(path)
    path.write_bytes(data + b'{"op_code": 2, "wor')
    with Journal(path, "study") as journal:
        assert "19 broken bytes" in journal.notes[0]
    path.write_bytes(data + b"\0" * 100 + b"\n")
    with Journal(path, "study") as journal:
        assert journal.get("race:x") is not None


@pytest.mark.parametrize("broken", [b"\n", b"\0" * 40 + b"\n", b'{"op_code": 2, "wor\n', b"\xff\xfe\n"])
def test_whole_entries_behind_a_broken_line_are_kept_and_so_is_the_file_as_it_was(path: Path, broken: bytes) -> None:
    lines = filled(path).splitlines(keepends=True)
    damaged = b"".join([*lines[:3], broken, *lines[3:]])
    path.write_bytes(damaged)
    with Journal(path, "study") as journal:
        assert "1 broken lines" in journal.notes[0]
        assert "a.yaml.journal.broken" in journal.notes[0]
        assert journal.get("race:x") == {"a": [1, 2]}
        assert len(journal.finished_trials()) == 1
        journal.put("more", 1)
    assert path.with_name("a.yaml.journal.broken").read_bytes() == damaged
    with Journal(path, "study") as journal:
        assert journal.notes == []
        assert journal.get("more") == 1
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n", 1))
    with Journal(path, "study") as journal:
        assert "a.yaml.journal.broken1" in journal.notes[0]
    assert path.with_name("a.yaml.journal.broken").read_bytes() == damaged, "an earlier copy stays"


@pytest.mark.parametrize("failing", ["autotune.tuning.journal.optuna.create_study", "autotune.tuning.journal.os.open"])
def test_a_full_disk_says_nothing_about_the_journal(path: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = filled(path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(failing, full)
        with pytest.raises((OSError, NoSpaceError), match=r"space") as raised:
            Journal(path, "study")
    assert "remove it" not in str(raised.value)
    assert path.read_bytes() == data


def test_a_running_trial_of_a_killed_process_is_failed(path: Path) -> None:
    with Journal(path, "study") as journal:
        journal.study.ask()
    with Journal(path, "study") as journal:
        assert [trial.state for trial in journal.study.trials] == [TrialState.FAIL]


def test_another_study_is_left_as_it_is(path: Path) -> None:
    filled(path)
    with Journal(path, "other hardware") as journal:
        assert not journal.resumed
        assert "holds another study (study)" in journal.notes[0]
        journal.discard()
    with Journal(path, "study") as journal:
        assert journal.resumed
        journal.discard()
    assert not path.exists()


def test_two_runs_never_share_a_journal(path: Path) -> None:
    with Journal(path, "study"), pytest.raises(InputError, match="one tuning run at a time"):
        Journal(path, "study")
    Journal(path, "study").close()


def test_a_lock_file_left_by_a_kill_delays_nothing(path: Path) -> None:
    filled(path)
    Path(f"{path}.lock").symlink_to(path)
    with Journal(path, "study") as journal:
        journal.put("a", 1)


def test_a_file_that_is_no_journal_is_not_touched(path: Path) -> None:
    path.write_text("schema: 1\nmodel: tiny\n")
    with pytest.raises(InputError, match="not a journal"):
        Journal(path, "study")
    assert path.read_text() == "schema: 1\nmodel: tiny\n"


def test_an_entry_that_makes_no_sense_is_one_clear_error(path: Path) -> None:
    path.write_text('{"op_code": 2, "study_id": 7}\n')
    with pytest.raises(InputError, match="remove it to start anew"):
        Journal(path, "study")


def test_a_folder_in_its_place_is_an_input_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(InputError, match="cannot open the journal"):
        Journal(path, "study")
