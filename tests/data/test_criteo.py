from __future__ import annotations

import bz2
import gzip
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from autotune.data import criteo
from autotune.data.categories import CategoryMapping
from autotune.data.criteo import COLUMNS, CriteoFile
from autotune.errors import InputError

ROWS = [1000] * 26
HEADER = ",".join(COLUMNS)
Row = list[str]


def random_rows(count: int, seed: int = 0, category: Callable[[random.Random], str] | None = None) -> list[Row]:
    """Rows as the public files have them: empty fields, negative integers, eight hexadecimal digits."""
    rng = random.Random(seed)

    def integer() -> str:
        return rng.choice(["", "-1", "0", str(rng.randrange(5000))])

    draw = category or (lambda r: "" if r.random() < 0.2 else f"{r.randrange(500) * 7919:08x}")
    return [[str(rng.randrange(2)), *(integer() for _ in range(13)), *(draw(rng) for _ in range(26))] for _ in range(count)]


def write_tsv(path: Path, rows: Sequence[Row], end: str = "\n") -> Path:
    path.write_bytes(("".join("\t".join(row) + end for row in rows)).encode("latin-1"))
    return path


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("\n".join([HEADER, *(",".join(row) for row in rows)]) + "\n", encoding="latin-1")
    return path


def test_dense_features_and_labels_of_one_row(tmp_path: Path) -> None:
    row = ["1", "", "-3", "0", "9", "260.0", *["1"] * 8, *["05db9164"] * 26]
    read = CriteoFile(write_tsv(tmp_path / "d", [row]), ROWS).rows(0, 1)
    assert read.labels.tolist() == [1.0]
    assert read.dense.dtype == np.float32
    assert read.dense[0, :5] == pytest.approx(np.log([1, 1, 1, 10, 261]))


def test_both_layouts_hold_the_same_rows(tmp_path: Path) -> None:
    rows = random_rows(40)
    tsv, csv = CriteoFile(write_tsv(tmp_path / "a", rows), ROWS), CriteoFile(write_csv(tmp_path / "b", rows), ROWS)
    assert (tsv.layout, csv.layout) == ("Kaggle TSV", "CSV with header")
    one, two = tsv.rows(0, 40), csv.rows(0, 40)
    assert np.array_equal(one.dense, two.dense)
    assert np.array_equal(one.indices, two.indices)
    assert np.array_equal(one.labels, two.labels)


def test_categories_stay_in_their_tables_and_a_missing_one_has_its_own_row(tmp_path: Path) -> None:
    sizes = [1, 2, 3, 10, *[1000] * 22]
    rows = random_rows(300)
    indices = CriteoFile(write_tsv(tmp_path / "d", rows), sizes).rows(0, 300).indices
    for t, size in enumerate(sizes):
        missing = np.array([row[14 + t] == "" for row in rows])
        assert indices[t].min() >= 0
        assert indices[t].max() < size
        if size > 1:
            assert np.array_equal(indices[t] == 0, missing)
    # Of about 190 values in 999 rows a tenth collide.
    assert len(np.unique(indices[5])) > 0.8 * len({row[19] for row in rows})


def test_the_hash_is_the_same_in_every_release(tmp_path: Path) -> None:
    row = ["0", *[""] * 13, "00000000", "00000001", "05db9164", "FFFFFFFF", "ffffffff", *[""] * 21]
    indices = CriteoFile(write_tsv(tmp_path / "d", [row]), [40_000_000] * 26).rows(0, 1).indices[:, 0]
    # splitmix64 of 0 and 1, published test values, modulo rows - 1.
    assert indices[0] == 1 + 0xE220A8397B1DCDAF % 39_999_999
    assert indices[1] == 1 + 0x910A2DEC89025CC1 % 39_999_999
    assert indices[3] == indices[4]
    assert not indices[5:].any()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("tail", [b"", b"\n\n"])
def test_line_ends_and_trailing_blank_lines_do_not_matter(tmp_path: Path, end: str, tail: bytes) -> None:
    rows = random_rows(7)
    plain = CriteoFile(write_tsv(tmp_path / "a", rows), ROWS).rows(0, 14)
    path = write_tsv(tmp_path / "b", rows, end)
    path.write_bytes(path.read_bytes() + tail)
    other = CriteoFile(path, ROWS).rows(0, 14)
    assert np.array_equal(plain.indices, other.indices)
    assert np.array_equal(plain.dense, other.dense)
    unended = tmp_path / "c"
    unended.write_bytes(path.read_bytes().rstrip(b"\r\n"))
    assert np.array_equal(plain.indices, CriteoFile(unended, ROWS).rows(0, 14).indices)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_holds_the_same_rows_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]
) -> None:
    whole = CriteoFile(write_csv(tmp_path / "d", random_rows(40)), ROWS).rows(0, 40)
    (tmp_path / "e").write_bytes(compress((tmp_path / "d").read_bytes() + b"\n\n"))
    monkeypatch.setattr(criteo, "CHUNK_ROWS", 16)
    file = CriteoFile(tmp_path / "e", ROWS)
    for start, length in [(35, 3), (0, 5), (38, 9), (1000, 2)]:  # forward, back, and round the end
        read, at = file.rows(start, length), (start + np.arange(length)) % 40
        assert np.array_equal(read.indices, whole.indices[:, at])
        assert np.array_equal(read.labels, whole.labels[at])
    assert file.count_within(None) == 40
    assert file.layout.startswith("CSV with header, ")


def test_a_cut_gzip_file_is_refused_where_it_ends(tmp_path: Path) -> None:
    data = gzip.compress(write_tsv(tmp_path / "d", random_rows(4000)).read_bytes())
    (tmp_path / "e").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"must be readable, got Compressed file ended .*\(.*e\); correct data\.path"):
        CriteoFile(tmp_path / "e", ROWS).rows(0, 4000)


def test_archives_are_refused_by_what_they_are(tmp_path: Path) -> None:
    rows = write_tsv(tmp_path / "train.txt", random_rows(3))
    with tarfile.open(tmp_path / "dac.tar.gz", "w:gz") as tar:
        tar.add(rows, "train.txt")
    with zipfile.ZipFile(tmp_path / "dac.zip", "w") as archive:
        archive.write(rows, "train.txt")
    for name, what in (("dac.tar.gz", "a tar archive"), ("dac.zip", "a zip archive")):
        with pytest.raises(InputError, match=rf"must be text or gzipped text, got {what} .*{name}\); unpack it"):
            CriteoFile(tmp_path / name, ROWS)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("header", [b"", b"\t".join(name.encode() for name in COLUMNS) + b"\r\n"], ids=["rows", "header"])
def test_marks_headers_and_decimal_counts_do_not_matter(tmp_path: Path, mark: bytes, header: bytes) -> None:
    rows = random_rows(5)
    plain = CriteoFile(write_tsv(tmp_path / "a", rows), ROWS).rows(0, 5)
    decimal = [[row[0] + ".0", *(value and f"{value}.0" for value in row[1:14]), *row[14:]] for row in rows]
    path = write_tsv(tmp_path / "b", decimal, "\r\n")
    path.write_bytes(mark + header + path.read_bytes())
    other = CriteoFile(path, ROWS).rows(0, 5)
    assert np.array_equal(plain.dense, other.dense)
    assert np.array_equal(plain.indices, other.indices)
    assert np.array_equal(plain.labels, other.labels)


@pytest.mark.parametrize("count", [15, 16, 17, 48, 50])
def test_rows_across_chunks_and_round_the_end_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    rows = random_rows(count)
    whole = CriteoFile(write_csv(tmp_path / "d", rows), ROWS).rows(0, count)
    monkeypatch.setattr(criteo, "CHUNK_ROWS", 16)
    chunked = CriteoFile(tmp_path / "d", ROWS)
    for start, length in [(10, 12), (0, 5), (count - 3, 9), (3, 3 * count), (1000 * count + 1, 2)]:
        at = (start + np.arange(length)) % count
        read = chunked.rows(start, length)
        assert np.array_equal(read.indices, whole.indices[:, at])
        assert np.array_equal(read.dense, whole.dense[at])
        assert np.array_equal(read.labels, whole.labels[at])


def test_a_file_is_counted_only_as_far_as_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the end of a day of the logs it is minutes."""
    monkeypatch.setattr(criteo, "CHUNK_ROWS", 16)
    file = CriteoFile(write_csv(tmp_path / "d", random_rows(100)), ROWS)
    assert file.count_within(32) == 32
    assert (len(file._starts), file._total) == (3, None)
    assert file.count_within(200) == file.count_within(None) == 100


def test_a_flaw_in_a_later_chunk_has_its_line_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteo, "CHUNK_ROWS", 16)
    rows = random_rows(40)
    rows[33][3] = "x"
    file = CriteoFile(write_csv(tmp_path / "d", rows), ROWS)
    file.rows(0, 32)
    with pytest.raises(InputError, match=r"line 35, column I3"):
        file.rows(32, 1)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, "2", r"a label must be 0 or 1, got '2' .*line 3, column label"),
        (0, "", r"a label must be 0 or 1, got '' .*line 3, column label"),
        (0, "yes", r"a label must be a number, got 'yes'"),
        (5, "many", r"an integer feature must be a number, got 'many' .*line 3, column I5\).*correct or delete"),
        (5, "nan", r"got 'nan' .*column I5"),
        (5, "1e999", r"got '1e999' .*column I5"),
        (20, "1\r", r"got '1\\r' .*line 3, column C7"),
        (16, "zz", r"a category must be a hexadecimal number .*got 'zz' .*line 3, column C3"),
        (39, '"05db9164"', r"column C26"),
        (20, "\0", r"a field must be text, got '\\x00' .*line 3, column C7"),
        (39, "1\t2", r"40 fields .*got 41 fields .*line 3, column C26"),
    ],
)
def test_a_bad_field_is_refused_with_line_column_and_value(tmp_path: Path, column: int, value: str, message: str) -> None:
    rows = random_rows(5)
    rows[2][column] = value
    with pytest.raises(InputError, match=message):
        CriteoFile(write_tsv(tmp_path / "d", rows), ROWS).rows(0, 1)


def test_the_first_flaw_of_a_file_is_the_one_reported(tmp_path: Path) -> None:
    rows = random_rows(5)
    rows[3][1], rows[2][39], rows[2][30] = "late", "zz", "yy"
    with pytest.raises(InputError, match=r"got 'yy' .*line 3, column C17"):
        CriteoFile(write_tsv(tmp_path / "d", rows), ROWS).rows(0, 1)


def test_a_short_row_is_refused(tmp_path: Path) -> None:
    rows = random_rows(4)
    rows[1] = rows[1][:20]
    with pytest.raises(InputError, match=r"got 20 fields .*line 3, column C7"):
        CriteoFile(write_csv(tmp_path / "d", rows), ROWS).rows(0, 1)
    with pytest.raises(InputError, match=r"got 39 fields .*a file of test rows has no label"):
        CriteoFile(write_tsv(tmp_path / "e", [row[1:] for row in random_rows(2)]), ROWS).rows(0, 1)


def test_row_numbers_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = random_rows(20, category=lambda rng: str(rng.randrange(100)))
    indices = CriteoFile(write_tsv(tmp_path / "d", rows), [100] * 26, CategoryMapping("rows")).rows(0, 20).indices
    assert indices.T.tolist() == [[int(value) for value in row[14:]] for row in rows]


@pytest.mark.parametrize(
    ("value", "step"),
    [("100", "give table 2 more"), ("-1", "correct or delete that line"), ("999999999999999999", "give table 2 more")],
)
def test_a_row_number_outside_its_table_is_refused(tmp_path: Path, value: str, step: str) -> None:
    rows = random_rows(6, category=lambda rng: str(rng.randrange(100)))
    rows[4][16] = value
    with pytest.raises(InputError, match=rf"below 100, got '{value}' .*d: line 5, column C3, table 2: limit 100 rows\); {step}"):
        CriteoFile(write_tsv(tmp_path / "d", rows), [100] * 26, CategoryMapping("rows")).rows(0, 1)


@pytest.mark.parametrize("value", ["", "0a", "1.0", "1" * 30])
def test_what_is_no_row_number_is_refused(tmp_path: Path, value: str) -> None:
    rows = random_rows(2, category=lambda rng: "1")
    rows[1][14] = value
    with pytest.raises(InputError, match=r"must be a decimal integer, got .*line 2, column C1"):
        CriteoFile(write_tsv(tmp_path / "d", rows), [100] * 26, CategoryMapping("rows")).rows(0, 1)


def test_files_of_no_layout_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d"
    for content, message in [
        (b"", "must begin with a tab-separated row"),
        (b"\x1f\x8b\x08", "must be readable"),
        (HEADER.encode(), "at least one row"),
        (HEADER.encode() + b"\n\n", "at least one row"),
        (HEADER.replace("I3", "X3").encode() + b"\n", "column 4 of the header must be I3, got 'X3'"),
        (HEADER.removesuffix(",C26").encode() + b"\n", "column 40 of the header must be C26, got 'nothing'"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            CriteoFile(path, ROWS)
    with pytest.raises(InputError, match="must be readable"):
        CriteoFile(tmp_path / "missing", ROWS)
    with pytest.raises(InputError, match="regular file"):
        CriteoFile(tmp_path, ROWS)
    with pytest.raises(InputError, match="26 tables, got 3"):
        CriteoFile(path, [1, 2, 3])


def test_the_public_sample_is_read(public_file: Callable[[str], Path]) -> None:
    file = CriteoFile(public_file("criteo_sample.csv"), ROWS)
    read = file.rows(0, 400)
    assert file.layout == "CSV with header"
    assert np.array_equal(read.indices[:, :200], read.indices[:, 200:])
    # First row: I2 is 3, I3 is 260, C1 and C22 differ, C19 is missing.
    assert read.dense[0, :3] == pytest.approx(np.log([1, 4, 261]))
    assert read.indices[18, 0] == 0
    assert 0 < read.labels.mean() < 0.5
