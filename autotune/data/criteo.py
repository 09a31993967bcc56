"""Rows of the Criteo click logs: a label, 13 integer features, 26 categories, read in chunks and cycled over."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from autotune.errors import InputError

DENSE_FEATURES = 13
CATEGORIES = 26
COLUMNS = ("label", *(f"I{i + 1}" for i in range(DENSE_FEATURES)), *(f"C{i + 1}" for i in range(CATEGORIES)))

CHUNK_ROWS = 8192
"""Rows parsed at a time: about 2 MB of text, a few batches."""
_CACHED_CHUNKS = 4
_SCAN_BYTES = 4 * 1024**2
_HEX = re.compile(r"[0-9a-fA-F]{1,16}", re.ASCII)
_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, eq=False)
class Rows:
    """Parsed rows."""

    dense: npt.NDArray[np.float32]
    """[n, 13]: ``log(1 + max(x, 0))``; a missing value counts as 0."""
    indices: npt.NDArray[np.int64]
    """[26, n]: row of each table."""
    labels: npt.NDArray[np.float32]
    """[n]: 1 where the advertisement was clicked, else 0."""


@dataclass(frozen=True)
class _Layout:
    name: str
    separator: str
    header_lines: int
    header_bytes: int


@dataclass(frozen=True)
class _Flaw:
    """A field that breaks a rule; the first in file order is reported."""

    row: int
    column: int
    rule: str
    value: str
    step: str = "correct or delete that line"
    where: str = ""


class CriteoFile:
    """Random access to the rows of a file in either layout, told apart by its first line.

    The Kaggle layout is tab separated without a header; the CSV has the header ``label,I1,...,I13,C1,...,C26``. Fields other than
    the label may be empty. Byte offsets of the chunks are noted as far as the file has been read, so opening is immediate at any size.

    Args:
        path: the file.
        table_rows: rows of the 26 tables.
        hashed: True: a category is a hexadecimal string; 0 stands for a missing one, the others share ``1 .. rows - 1`` by a fixed hash
            (splitmix64 of the value), the same in every run. False: it is a decimal row number already, and must be there.

    Raises:
        InputError: the file cannot be read or is in neither layout.
    """

    def __init__(self, path: str | Path, table_rows: Sequence[int], hashed: bool = True) -> None:
        self.path = Path(path)
        self.table_rows = tuple(table_rows)
        self.hashed = hashed
        if len(self.table_rows) != CATEGORIES:
            rule = f"Criteo rows fill {CATEGORIES} tables"
            raise InputError(f"{rule}, got {len(self.table_rows)} ({path}); give the model {CATEGORIES} tables")
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"a Criteo file must be a regular file, got a folder or device ({path}); correct data.path")
        head = self._read(0, 65536)
        size = self.path.stat().st_size
        tail_start = max(0, size - 4096)
        self._end = tail_start + len(self._read(tail_start, size).rstrip(b"\r\n"))
        self._layout = self._detect(head)
        self._starts = [self._layout.header_bytes]
        self._scanned_bytes = self._layout.header_bytes
        self._scanned_rows = 0
        self._total: int | None = None
        self._chunk = lru_cache(maxsize=_CACHED_CHUNKS)(self._read_chunk)
        if self._end <= self._layout.header_bytes:
            raise InputError(f"a Criteo file must hold at least one row, got none ({path}); correct data.path")

    @property
    def layout(self) -> str:
        """``Kaggle TSV`` or ``CSV with header``."""
        return self._layout.name

    def rows(self, start: int, count: int) -> Rows:
        """`count` rows from row `start` on, beginning again at the first row after the last.

        Raises:
            InputError: a row is malformed; file, line, column and value are named.
        """
        parts = list(self._parts(start, count))
        return Rows(
            np.concatenate([part.dense for part in parts]),
            np.concatenate([part.indices for part in parts], axis=1),
            np.concatenate([part.labels for part in parts]),
        )

    def _parts(self, start: int, count: int) -> Iterator[Rows]:
        while count > 0:
            self._scan(start + 1)
            if self._total is not None:
                start %= self._total
            chunk = self._chunk(start // CHUNK_ROWS)
            first = start % CHUNK_ROWS
            last = min(first + count, len(chunk.labels))
            yield Rows(chunk.dense[first:last], chunk.indices[:, first:last], chunk.labels[first:last])
            start += last - first
            count -= last - first

    def _read(self, start: int, end: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(max(0, end - start))
        except (OSError, ValueError) as error:
            raise InputError(f"a Criteo file must be readable, got {error} ({self.path}); correct data.path") from error

    def _detect(self, head: bytes) -> _Layout:
        line = head.split(b"\n", 1)[0]
        text = line.removeprefix(_BYTE_ORDER_MARK).decode("latin-1").rstrip("\r")
        if "\t" in text:
            return _Layout("Kaggle TSV", "\t", 0, 0)
        names = text.split(",")
        if names[0] != COLUMNS[0]:
            rule = "a Criteo file must begin with a tab-separated row or with the header label,I1,...,I13,C1,...,C26"
            raise InputError(f"{rule}, got {_shown(text)} ({self.path}: line 1); convert the file or correct data.path")
        if tuple(names) != COLUMNS:
            column, got, want = next(
                (i, got, want) for i, (got, want) in enumerate(zip_longest(names, COLUMNS, fillvalue="nothing"), start=1) if got != want
            )
            raise InputError(f"column {column} of the header must be {want}, got {_shown(got)} ({self.path}: line 1); correct the header")
        return _Layout("CSV with header", ",", 1, len(line) + 1)

    def _scan(self, rows: int) -> None:
        """Note where chunks begin until `rows` rows or the end of the file have been seen."""
        while self._total is None and self._scanned_rows < rows:
            block = self._read(self._scanned_bytes, min(self._scanned_bytes + _SCAN_BYTES, self._end))
            if not block:
                raise InputError(f"a Criteo file must not shrink while it is read, got its end early ({self.path}); start again")
            after = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + self._scanned_bytes + 1
            complete = self._scanned_rows + np.arange(1, after.size + 1)
            self._starts.extend(int(start) for start in after[complete % CHUNK_ROWS == 0])
            self._scanned_rows += after.size
            self._scanned_bytes += len(block)
            if self._scanned_bytes >= self._end:
                # Trailing newlines lie beyond the end, so the last row is not counted yet.
                self._scanned_rows += 1
                self._total = self._scanned_rows

    def _read_chunk(self, number: int) -> Rows:
        self._scan((number + 1) * CHUNK_ROWS)
        end = self._starts[number + 1] if number + 1 < len(self._starts) else self._end
        return self._parse(self._read(self._starts[number], end), number * CHUNK_ROWS)

    def _parse(self, data: bytes, first_row: int) -> Rows:
        if first_row == 0:
            data = data.removeprefix(_BYTE_ORDER_MARK)
        data = data.replace(b"\r\n", b"\n").removesuffix(b"\n") + b"\n"
        self._check_fields(data, first_row)
        frame = pd.read_csv(
            io.BytesIO(data),
            sep=self._layout.separator,
            header=None,
            names=list(COLUMNS),
            dtype=str,
            na_filter=False,
            quoting=csv.QUOTE_NONE,
            lineterminator="\n",
            skip_blank_lines=False,
            encoding="latin-1",
        )
        flaws: list[_Flaw] = []
        labels = _numbers(frame["label"], 0, flaws)
        wrong = np.flatnonzero((labels != 0) & (labels != 1) | (frame["label"] == "").to_numpy())
        if wrong.size:
            flaws.append(_Flaw(int(wrong[0]), 0, "a label must be 0 or 1", frame["label"].iloc[wrong[0]]))
        dense = np.empty((len(frame), DENSE_FEATURES), dtype=np.float32)
        for i in range(DENSE_FEATURES):
            dense[:, i] = np.log1p(np.maximum(_numbers(frame[COLUMNS[1 + i]], 1 + i, flaws), 0.0))
        indices = np.empty((CATEGORIES, len(frame)), dtype=np.int64)
        for t in range(CATEGORIES):
            column = 1 + DENSE_FEATURES + t
            values, rows = frame[COLUMNS[column]].to_numpy(dtype=object), self.table_rows[t]
            indices[t] = _hashed(values, column, rows, flaws) if self.hashed else _exact(values, column, t, rows, flaws)
        if flaws:
            self._refuse(min(flaws, key=lambda flaw: (flaw.row, flaw.column)), first_row)
        return Rows(dense, indices, labels.astype(np.float32))

    def _check_fields(self, data: bytes, first_row: int) -> None:
        """Every line has all columns, and no byte that a text parser swallows."""
        raw = np.frombuffer(data, dtype=np.uint8)
        ends = np.flatnonzero(raw == ord("\n"))
        upto = np.searchsorted(np.flatnonzero(raw == ord(self._layout.separator)), ends)
        fields = np.diff(upto, prepend=0) + 1
        wrong = np.flatnonzero(fields != len(COLUMNS))
        if wrong.size:
            row = int(wrong[0])
            got = int(fields[row])
            rule = f"a row must have {len(COLUMNS)} fields (label, {DENSE_FEATURES} integers, {CATEGORIES} categories)"
            step = "correct or delete that line"
            if got == len(COLUMNS) - 1:
                step += "; a file of test rows has no label and cannot be trained on"
            self._refuse(_Flaw(row, min(got, len(COLUMNS) - 1), rule, f"{got} fields", step), first_row, quoted=False)
        if b"\0" in data:
            position = data.index(b"\0")
            row = int(np.searchsorted(ends, position))
            line_start = int(ends[row - 1]) + 1 if row else 0
            column = data.count(self._layout.separator.encode(), line_start, position)
            self._refuse(_Flaw(row, column, "a field must be text", "\0"), first_row)

    def _refuse(self, flaw: _Flaw, first_row: int, quoted: bool = True) -> None:
        line = self._layout.header_lines + first_row + flaw.row + 1
        got = _shown(flaw.value) if quoted else flaw.value
        raise InputError(f"{flaw.rule}, got {got} ({self.path}: line {line}, column {COLUMNS[flaw.column]}{flaw.where}); {flaw.step}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _numbers(field: pd.Series[str], column: int, flaws: list[_Flaw]) -> npt.NDArray[np.float64]:
    """float64 values of one column, 0 where empty."""
    texts = field.to_numpy(dtype=object)
    # A copy: pandas hands out read-only views.
    values = np.array(pd.to_numeric(pd.Series(np.where(texts == "", "0", texts)), errors="coerce"), dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        what = "an integer feature" if column else "a label"
        flaws.append(_Flaw(int(wrong[0]), column, f"{what} must be a number", texts[wrong[0]]))
        values[wrong] = 0
    return values


def _hashed(values: npt.NDArray[np.object_], column: int, rows: int, flaws: list[_Flaw]) -> npt.NDArray[np.int64]:
    """Rows of one table for hexadecimal categories: 0 where missing, else ``1 + hash % (rows - 1)``."""
    codes, texts = pd.factorize(values)
    keys = np.zeros(len(texts), dtype=np.uint64)
    for i, text in enumerate(texts):
        if _HEX.fullmatch(text):
            keys[i] = int(text, 16)
        elif text:
            rule, step = "a category must be a hexadecimal number of up to 16 digits", "correct or delete that line"
            flaws.append(_Flaw(int(np.argmax(codes == i)), column, rule, text, step))
    targets = 1 + (_splitmix64(keys) % np.uint64(rows - 1)).astype(np.int64) if rows > 1 else np.zeros(len(texts), dtype=np.int64)
    targets[np.asarray(texts == "")] = 0
    return np.asarray(targets[codes], dtype=np.int64)


def _exact(values: npt.NDArray[np.object_], column: int, table: int, rows: int, flaws: list[_Flaw]) -> npt.NDArray[np.int64]:
    """Rows of one table for categories that are row numbers already."""
    codes, texts = pd.factorize(values)
    targets = np.zeros(len(texts), dtype=np.int64)
    for i, text in enumerate(texts):
        row = int(np.argmax(codes == i))
        if not _INTEGER.fullmatch(text):
            step = "correct or delete that line, or have categories hashed (data.hashed: true)"
            flaws.append(_Flaw(row, column, "a category read as a row number must be a decimal integer", text, step))
        elif not 0 <= int(text) < rows:
            where = f", table {table}: limit {rows} rows"
            more = f"give table {table} more rows" if int(text) >= 0 else "correct or delete that line"
            step = f"{more}, or have categories hashed (data.hashed: true)"
            flaws.append(_Flaw(row, column, f"an index must be at least 0 and below {rows}", text, step, where))
        else:
            targets[i] = int(text)
    return np.asarray(targets[codes], dtype=np.int64)


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A fixed mixing of 64 bits, one-to-one. Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
