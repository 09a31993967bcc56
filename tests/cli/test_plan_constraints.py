"""`autotune plan` with demands, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import invoke


def tables_of(*options: str) -> list[dict[str, object]]:
    result = invoke("plan", *options, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, object]] = json.loads(result.stdout)["partition"]["tables"]
    return found


def test_demands_are_kept() -> None:
    options = ["--pin", "3=2", "--pin", "9 = 0", "--forbid", "0=1,2", "--forbid", "0=3", "--together", "4,5,6", "--together", "7,8"]
    found = tables_of("mlperf", "--sockets", "8", *options)
    assert len(found) == 26
    assert found[3] == {"kind": "table_wise", "ranks": [2], "bounds": []}
    assert found[9]["ranks"] == [0]
    assert isinstance(found[0]["ranks"], list)
    assert not {1, 2, 3} & set(found[0]["ranks"])
    assert found[4] == found[5] == found[6]
    assert found[7] == found[8]


def test_kinds_are_kept() -> None:
    found = tables_of("mlperf", "--sockets", "8", "--memory-per-socket", "16GB", "--kinds", "table_wise, column_wise")
    assert {table["kind"] for table in found} == {"table_wise", "column_wise"}


def test_a_boundary_keeps_smaller_tables_whole() -> None:
    split = ("row_wise", "column_wise")
    small = [1]  # 39043 rows of 512 bytes
    found = tables_of("mlperf", "--sockets", "8", "--kinds", "table_wise,row_wise,column_wise", "--split-above", "25GB")
    assert not any(table["kind"] in split for table in found)
    found = tables_of("mlperf", "--sockets", "8", "--memory-per-socket", "16GB", "--split-above", "1GB")
    assert any(table["kind"] in split for table in found)
    assert not any(found[t]["kind"] in split for t in small)


def test_the_text_and_the_file_tell_what_was_kept(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    result = invoke("plan", "tiny", "--sockets", "2", "--pin", "0=1", "--split-above", "1GiB", "-o", str(file))
    assert result.exit_code == 0
    assert "kept: 1 pinned, tables up to 1.00 GiB not split" in result.stdout
    assert json.loads(file.read_text())["constraints"]["pin"] == {"0": 1}
    assert "kept" not in invoke("plan", "tiny", "--sockets", "2").stdout


BAD = [
    (["--pin", "x"], "a pin is TABLE=RANK, got 'x' (--pin); write for example --pin 3=0"),
    (["--pin", "0=-1"], "a pin is TABLE=RANK, got '0=-1' (--pin); write for example --pin 3=0"),
    (["--pin", "0=9999999999"], "a pin is TABLE=RANK, got '0=9999999999' (--pin); write for example --pin 3=0"),
    (["--pin", "0=0,1"], "a table is pinned to one rank, got 0, 1 for table 0 (--pin 0=0,1); keep one of them"),
    (["--pin", "0=0", "--pin", "0=1"], "a table is pinned to one rank, got 0, 1 for table 0 (--pin 0=1); keep one of them"),
    (["--forbid", "0="], "forbidden ranks are TABLE=RANK[,RANK], got '0=' (--forbid); write for example --forbid 3=0,1"),
    (["--together", "1;2"], "tables that lie together are TABLE,TABLE, got '1;2' (--together); write for example --together 3,4"),
    (["--together", "1"], "tables that lie together must be two or more, got 1 (--together 1); name another one"),
    (["--kinds", "table_wise,"], "kinds must be of table_wise, row_wise, column_wise, replicated, got '' (--kinds); correct it"),
    (["--split-above", "big"], "a size is a number with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, got 'big'"),
    (["--pin", "0=2"], "ranks are numbered 0 to 1, got 2 (--pin 0=2); name one of these, or raise --sockets"),
    (["--forbid", "99=0"], "got 99 (--forbid 99=0); name one of these"),
    (["--forbid", "0=0,1"], "a table must be left a rank, got all 2 forbidden for table 0 (--forbid 0=0,1); allow one"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_cannot_be_is_refused_in_one_line(options: list[str], message: str) -> None:
    result = invoke("plan", "tiny", "--sockets", "2", *options)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_the_same_pin_twice_is_one() -> None:
    assert tables_of("tiny", "--sockets", "2", "--pin", "0=1", "--pin", "0=1")[0]["ranks"] == [1]


def test_memory_that_demands_ask_for_is_the_users_to_correct_and_memory_that_is_missing_the_machines() -> None:
    pinned = invoke("plan", "mlperf", "--sockets", "8", "--memory-per-socket", "16GB", "--pin", "0=1")
    assert pinned.exit_code == 2
    assert "(table 0: --pin 0=1)" in pinned.stderr
    short = invoke("plan", "mlperf", "--sockets", "2", "--memory-per-socket", "16GB", "--pin", "0=1")
    assert short.exit_code == 3
    assert "short" in short.stderr
