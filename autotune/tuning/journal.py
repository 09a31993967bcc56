"""The study on disk: one Optuna journal file beside the output, that a kill at any moment leaves usable.

Optuna's journal takes an unfinished last line for not written when it reads, but appends behind it, which would spoil the file; so what
is broken at the end is cut off before the file is opened. Its lock is a file that a killed process leaves behind; here the journal itself
is locked by the kernel for as long as the process lives.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import TrialState

from autotune.config.files import write_bytes_atomic
from autotune.errors import NO_SPACE, AutotuneError, InputError, NoSpaceError

_ENCODING = "utf-8"


def journal_path(output: str | Path) -> Path:
    """``FILE.journal``, beside the output."""
    path = Path(os.path.realpath(output))
    return path.with_name(path.name + ".journal")


def trial_marker(output: str | Path) -> Path:
    """Beside the journal: holds the configuration of the trial that runs. What it holds after the ranks have ended is what ended them."""
    journal = journal_path(output)
    return journal.with_name(journal.name + ".trial")


class _HeldLock(JournalFileOpenLock):
    """Optuna's lock around each write; the whole journal is locked already."""

    def __init__(self) -> None:
        pass

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Journal:
    """One study in a journal file, created or gone on with. Use as a context: leaving it unlocks the file.

    Args:
        path: The file; made when it is not there.
        name: Name of the study: it carries all that makes earlier results valid.
        seed: Of the sampler.

    Raises:
        InputError: it cannot be opened, another process has it, or it is no journal.
    """

    def __init__(self, path: Path, name: str, seed: int = 0) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.path = path
        self.notes: list[str] = []
        self._descriptor = _open_locked(path)
        try:
            if repaired := _repair(self._descriptor, path):
                self.notes.append(repaired)
            self._storage = JournalStorage(JournalFileBackend(str(path), lock_obj=_HeldLock()))
            names = [study.study_name for study in self._storage.get_all_studies()]
            self.resumed = name in names
            if names and not self.resumed:
                self.notes.append(f"the journal {path.name} holds another study ({', '.join(names)}), which is left as it is")
            self.study = optuna.create_study(
                storage=self._storage, study_name=name, sampler=_sampler(seed), direction="minimize", load_if_exists=True
            )
            # Trials that were running when the process ended never finish.
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self.study.tell(trial.number, state=TrialState.FAIL)
            if self.resumed:
                self.study.sampler = _sampler(seed + len(self.finished_trials()))
        except BaseException as error:
            self.close()
            # A full disk says nothing about the journal.
            if isinstance(error, AutotuneError | OSError) or not isinstance(error, Exception):
                raise
            raise InputError(f"not a journal that can be gone on with: {path} ({error}); remove it to start anew") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def get(self, key: str) -> Any:
        """A stored value, None when there is none."""
        return self.study.user_attrs.get(key)

    def put(self, key: str, value: Any) -> None:
        """Store a JSON value; it is on disk when this returns."""
        self.study.set_user_attr(key, value)

    def finished_trials(self) -> list[optuna.trial.FrozenTrial]:
        """Measured trials, in their order."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def discard(self) -> None:
        """The study is done: remove it, and the file when nothing else is in it."""
        others = [study for study in self._storage.get_all_studies() if study.study_name != self.study.study_name]
        if others:
            optuna.delete_study(study_name=self.study.study_name, storage=self._storage)
        else:
            self.path.unlink(missing_ok=True)
        self.close()


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    # Planned trials come first; five measured ones are few, but a step is the only cost and the space is small.
    return cast(optuna.samplers.BaseSampler, optuna.samplers.TPESampler(seed=seed, n_startup_trials=5))


def _open_locked(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise NoSpaceError(f"the journal needs space, got none for {path}; free space there, or choose another output") from None
            raise InputError(f"cannot open the journal {path}: {error.strerror}; choose another output") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            step = "wait for it or choose another output"
            raise InputError(f"a journal serves one tuning run at a time, and another holds {path}; {step}") from None
        except OSError:
            pass  # a file system without locks: as safe as Optuna's own journal would be after a kill
        try:
            same = os.path.samestat(os.stat(path), os.fstat(descriptor))
        except FileNotFoundError:
            same = False
        if same:
            return descriptor
        os.close(descriptor)  # the run that held it has just finished and removed it


def _repair(descriptor: int, path: Path) -> str:
    """Leave nothing but whole entries in the journal; says in words what was taken out, empty where nothing was.

    A kill leaves a half last line, which is cut off. Anything else was done to the file from outside (network file systems fill gaps with
    zeros or empty lines): the whole entries behind it stay, and the file as it was is kept as a copy.

    Raises:
        InputError: there is no whole entry, although there are lines.
    """
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        data = file.read()
    lines = data.splitlines(keepends=True)
    entries = [line for line in lines if line.endswith(b"\n") and _is_entry(line)]
    good = sum(map(len, entries))
    if good == len(data):
        return ""
    if not entries and b"\n" in data:
        raise InputError(f"not a journal: {path}; remove it or choose another output")
    if entries != lines[: len(entries)] or b"\n" in data[good:]:
        names = (f"{path.name}.broken{number or ''}" for number in itertools.count())
        copy = next(copy for name in names if not (copy := path.with_name(name)).exists())
        write_bytes_atomic(copy, data)
        os.pwrite(descriptor, b"".join(entries), 0)
        said = f"{len(lines) - len(entries)} broken lines were taken out of the journal {path.name}; the file as it was is {copy.name}"
    else:
        said = f"the journal {path.name} ended in {len(data) - good} broken bytes, which were cut off"
    os.ftruncate(descriptor, good)
    os.fsync(descriptor)
    return said


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line.decode(_ENCODING))
    except ValueError:
        return False
    return isinstance(entry, dict) and "op_code" in entry
