from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import autotune
from autotune.machine.scratch import scratch_folder

_OWNER = """
import sys, time
from pathlib import Path
from autotune.machine.scratch import scratch_folder
with scratch_folder("some-", Path(sys.argv[1])) as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_folder_goes_with_its_block(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder("some-", tmp_path) as folder:  # noqa: PT012 - the file must be there when it ends
        (folder / "file").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_next_start_sweeps_what_a_killed_owner_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "other-folder").mkdir()
    (tmp_path / "some-file").touch()
    environ = {"PYTHONPATH": str(Path(autotune.__file__).parents[1])}
    line = [sys.executable, "-c", _OWNER, str(tmp_path)]
    with subprocess.Popen(line, env=environ, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        with scratch_folder("some-", tmp_path):
            assert folder.exists()  # its owner lives
        owner.kill()
        owner.wait()
    assert folder.exists()
    with scratch_folder("some-", tmp_path) as own:
        assert {path.name for path in tmp_path.iterdir()} == {"other-folder", "some-file", own.name}


def test_a_folder_of_the_user_that_begins_the_same_way_is_not_swept(tmp_path: Path) -> None:
    kept = [tmp_path / "ours-results", tmp_path / "ours-abcd1234"]
    for folder, mode in zip(kept, (0o700, 0o755), strict=True):
        folder.mkdir()
        folder.chmod(mode)
        (folder / "work").write_text("mine")
    with scratch_folder("ours-", tmp_path):
        pass
    assert all((folder / "work").read_text() == "mine" for folder in kept)
