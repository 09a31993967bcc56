from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.config import files
from autotune.config.files import cache_folder, check_writable, dump_yaml, load_model, load_yaml, write_text_atomic, write_yaml
from autotune.config.yaml_io import parse_yaml
from autotune.errors import InputError

GOOD = """\
schema: 1
name: x
source: test
description: test
minibatch: 64
learning_rate: 1e-2
bottom_mlp: [13, 32, 16]
top_mlp: [32, 1]
tables:
  - {rows: 1000, dim: 16, pooling: 3, count: 2}
  - rows: 10
    dim: 16
  - rows: 20
    dim: 16
"""


def refused(tmp_path: Path, text: str) -> str:
    """The message with which a model file is refused, its folder cut off."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_model(path)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_good_file_loads_and_comes_back_equal(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(GOOD)
    model = load_model(tmp_path / "x.yaml")
    assert (model.num_tables, model.learning_rate) == (4, 0.01)
    write_yaml(tmp_path / "y.yaml", model)
    assert load_model(tmp_path / "y.yaml") == model
    assert (tmp_path / "y.yaml").read_text().startswith("schema: 1\nname: x\n")
    assert "bottom_mlp: [13, 32, 16]\n" in dump_yaml(model)
    assert "  - {rows: 1000, dim: 16, pooling: 3, count: 2}\n" in dump_yaml(model)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # The place is the entry of the file: one with a count before it does not shift it.
        ("20\n    dim: 16", "20\n    dim: -4", "embedding dim must be positive, got -4 (x.yaml:14: tables[2].dim); set it to 1 or more"),
        ("20\n    dim: 16", "20\n    dim: 8", "last size of bottom_mlp (16), got 8 (x.yaml:14: tables[2].dim); set dim: 16 or"),
        ("minibatch", "minibach", "unknown key 'minibach' (x.yaml:5: minibach); did you mean 'minibatch'?"),
        ("rows: 10\n", "row: 10\n", "unknown key 'row' (x.yaml:11: tables[1].row); did you mean 'rows'?"),
        ("name: x", "name: x\nzzz: 1", "unknown key 'zzz' (x.yaml:3: zzz); the keys here are schema, name, source"),
        ("minibatch: 64\n", "", "missing key 'minibatch' (x.yaml:1: minibatch); add it"),
        ("  - rows: 10\n    dim", "  - dim", "missing key 'rows' (x.yaml:11: tables[1].rows); add it"),
        ("minibatch: 64", "minibatch: '64'", "minibatch should be a valid integer, got '64' (x.yaml:5: minibatch); correct it"),
        ("minibatch: 64", "minibatch: true", "minibatch should be a valid integer, got True"),
        ("minibatch: 64", "minibatch: 010", "minibatch should be a valid integer, got '010'"),
        ("minibatch: 64", "minibatch: 64.5", "minibatch should be a valid integer, got 64.5"),
        ("1e-2", ".inf", "got inf (x.yaml:6: learning_rate)"),
        ("[32, 1]", "[32, 2]", "must be 1, the click probability, got 2 (x.yaml:8: top_mlp[1]); end the list with 1"),
        ("[32, 1]", "[32, 1", "malformed YAML: expected ',' or ']', but got ':' (x.yaml:9:7); correct that line"),
        ("name: x", "name: *x", "aliases (*name) are not supported (x.yaml:2:7)"),
        ("name: x", "name: !!python/name:os.system", "malformed YAML: could not determine a constructor"),
        ("name: x", "name: x\nname: y", "duplicate key 'name', first on line 2 (x.yaml:3:1)"),
        ("name: x", "name: x\x01", "malformed YAML: character 1 is not allowed (x.yaml:2)"),
        ("name: x", "? [a, b]\n: 3", "a key must be a word or a whole number (x.yaml:2:3)"),
        ("schema: 1", "schema: 2", "schema 2 is newer than this autotune understands (1) (x.yaml:1: schema); upgrade"),
        ("schema: 1", "schema: 0", "schema must be 1 to 1, got 0"),
        ("schema: 1", "schema: one", "schema must be a whole number, got 'one'"),
        ("schema: 1\n", "", "schema is missing (x.yaml:1); begin the file with schema: 1"),
    ],
)
def test_a_bad_file_gets_one_error_with_place_and_next_step(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    assert message in refused(tmp_path, GOOD.replace(old, new))


def test_a_misspelt_key_is_not_also_called_missing(tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD.replace("minibatch", "minibach")).count("\n") == 0


def test_a_newer_schema_is_refused_before_its_unknown_keys(tmp_path: Path) -> None:
    assert "newer" in refused(tmp_path, GOOD.replace("schema: 1", "schema: 2\nfuture: 1"))


def test_many_problems_are_cut_to_the_first_few(tmp_path: Path) -> None:
    lines = refused(tmp_path, "schema: 1\n").split("\n")
    assert len(lines) == 4
    assert lines[-1] == "and 4 more"


@pytest.mark.parametrize(
    ("text", "message"), [("", "file is empty"), ("[1]", "must hold keys and values"), ("[" * 3000, "nested too deeply")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9t\xe9")
    for path, message in [("none.yaml", "file not found"), ("latin.yaml", "must be UTF-8"), (".", "cannot read")]:
        with pytest.raises(InputError, match=message):
            load_yaml(tmp_path / path)


def test_scalars_are_read_as_yaml_1_2_does() -> None:
    values, lines = parse_yaml("{a: no, b: 2024-01-01, c: 1e-3, d: 1:30, e: 1_000, f: null, g: true, 3: .5}", "x")
    assert values == {"a": "no", "b": "2024-01-01", "c": 0.001, "d": "1:30", "e": 1000, "f": None, "g": True, 3: 0.5}
    assert lines.place("c") == "x:1: c"


NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(st.characters(exclude_categories=["Cs"]))
KEYS = st.text("abno:#-~ 1e", min_size=1)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12)


@given(st.dictionaries(st.text("abcno1", min_size=1), VALUES))
def test_plain_values_survive_yaml_exactly(values: dict[str, object]) -> None:
    if values:
        assert parse_yaml(dump_yaml(values), "x")[0] == values


def test_a_write_replaces_the_file_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "out.yaml"
    write_text_atomic(path, "one")
    path.chmod(0o640)
    write_text_atomic(path, "two\n")
    assert path.read_text() == "two\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["out.yaml"]


def test_a_link_keeps_pointing_at_the_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to(tmp_path / "real.yaml")
    write_text_atomic(tmp_path / "link.yaml", "text")
    assert (tmp_path / "link.yaml").is_symlink()
    assert (tmp_path / "real.yaml").read_text() == "text"


def test_a_renamed_file_is_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced before the rename, and the folder after it."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda number: (done.append(os.path.isdir(f"/proc/self/fd/{number}")), fsync(number)))
    monkeypatch.setattr(files.os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    with files.replacing(tmp_path / "out.bin") as file:
        file.write(b"content")
    assert done == [False, "rename", True]
    assert (tmp_path / "out.bin").read_bytes() == b"content"


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "out.yaml"
    write_text_atomic(path, "old")
    monkeypatch.setattr(files.os, failing, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.yaml"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("none/out.yaml", "output folder does not exist: .*none .*; create it"),
        ("folder", "output must be a file, got the folder"),
        ("file/out.yaml", "cannot write out.yaml in the folder .*file"),
        ("/dev/null", "output must be a regular file"),
        ("/proc/out.yaml", "cannot write out.yaml in the folder /proc: .*; choose a folder you can write to"),
    ],
)
def test_an_unwritable_output_is_refused_before_the_work(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match=message):
        check_writable(tmp_path / target)
    with pytest.raises(InputError, match=message):
        write_text_atomic(tmp_path / target, "text")
    assert sorted(os.listdir(tmp_path)) == before


def test_checking_an_output_leaves_it_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "out.yaml").write_text("old")
    check_writable(tmp_path / "out.yaml")
    check_writable(tmp_path / "new.yaml")
    assert os.listdir(tmp_path) == ["out.yaml"]
    assert (tmp_path / "out.yaml").read_text() == "old"


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("AUTOTUNE_CACHE")
    assert cache_folder() == tmp_path / "xdg/autotune"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / "home/.cache/autotune"
