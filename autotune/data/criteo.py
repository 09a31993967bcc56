"""Rows of the Criteo click logs: a label, 13 integer features, 26 categories, read in chunks and cycled over.

Two preparations of the integer features are in use: ``log(1 + max(x, 0))``, the public DLRM's, which is applied here to text, and
``log(x - m + 2)`` with m the least value of the file, torchrec's, which its prepared ``.npy`` files already hold.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from autotune.data.categories import TABLES, CategoryMapping
from autotune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

DENSE_FEATURES = 13
COLUMNS = ("label", *(f"I{i + 1}" for i in range(DENSE_FEATURES)), *(f"C{i + 1}" for i in range(TABLES)))

CHUNK_ROWS = 8192
"""Rows parsed at a time: about 2 MB of text, a few batches."""
_CACHED_CHUNKS = 4
_DETECT_BYTES = 65536
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
"""First bytes of a file to what reads it; they are told apart by these, not by name."""
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "compressed with zstd"}
_TAR_MARK = slice(257, 262)  # of a tar's first header: "ustar"


@dataclass(frozen=True, eq=False)
class Rows:
    """Parsed rows."""

    dense: npt.NDArray[np.float32]
    """[n, 13]: ``log(1 + max(x, 0))`` where the file holds text; a missing value counts as 0. As they are where it is prepared."""
    indices: npt.NDArray[np.int64]
    """[26, n]: row of each table."""
    labels: npt.NDArray[np.float32]
    """[n]: 1 where the advertisement was clicked, else 0."""


@dataclass(frozen=True)
class _Layout:
    name: str
    separator: str
    header_lines: int


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
    """Random access to the rows of a text file in any layout, plain or compressed, told apart by its first bytes and its first line.

    The Kaggle layout is tab separated without a header; the CSV has the header ``label,I1,...,I13,C1,...,C26``. Fields other than
    the label may be empty. Places of the chunks are noted as far as the file has been read, so opening is immediate at any size;
    a compressed file is quick to read on in, and starts anew for rows before.

    Args:
        path: the file.
        table_rows: rows of the 26 tables.
        mapping: of categories onto them.

    Raises:
        InputError: the file cannot be read or is in no known layout.
    """

    def __init__(self, path: str | Path, table_rows: Sequence[int], mapping: CategoryMapping | None = None) -> None:
        self.path = Path(path)
        self.table_rows = checked_rows(path, table_rows)
        self._mapping = mapping or CategoryMapping()
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"a Criteo file must be a regular file, got a folder or device ({path}); correct data.path")
        with self._readable():
            with self.path.open("rb") as file:
                magic = file.read(8)
            opener, self._compression = next(
                ((opener, opener.__module__.strip("_")) for start, opener in _COMPRESSED.items() if magic.startswith(start)), (open, "")
            )
            self._file: Any = opener(self.path, "rb")
            self._layout, start = self._detect(self._file.read(_DETECT_BYTES))
        self._starts = [start]
        self._total: int | None = None
        self._chunk = lru_cache(maxsize=_CACHED_CHUNKS)(self._read_chunk)
        if not self._lines(0):
            raise InputError(f"a Criteo file must hold at least one row, got none ({path}); correct data.path")

    @property
    def layout(self) -> str:
        """``Kaggle TSV`` or ``CSV with header``, and how it is compressed."""
        return self._layout.name + (f", {self._compression}" if self._compression else "")

    def count_within(self, limit: int | None) -> int:
        """Rows of the file, at most `limit`; it is read as far for that, without a limit to its end."""
        while self._total is None:
            if limit is not None and (len(self._starts) - 1) * CHUNK_ROWS >= limit:
                return limit
            self._lines(len(self._starts) - 1)
        return self._total if limit is None else min(limit, self._total)

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
            while self._total is None and start // CHUNK_ROWS >= len(self._starts):
                self._lines(len(self._starts) - 1)
            if self._total is not None:
                start %= self._total
            chunk = self._chunk(start // CHUNK_ROWS)
            first = start % CHUNK_ROWS
            last = min(first + count, len(chunk.labels))
            if last > first:  # else the file has ended before: its rows are counted now
                yield Rows(chunk.dense[first:last], chunk.indices[:, first:last], chunk.labels[first:last])
                start += last - first
                count -= last - first

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"a Criteo file must be readable, got {error} ({self.path}); correct data.path") from error

    def _lines(self, number: int) -> list[bytes]:
        """The lines of a chunk whose place is known; notes the place of the next, or how many rows the file has."""
        with self._readable():
            self._file.seek(self._starts[number])
            lines = list(itertools.islice(self._file, CHUNK_ROWS))
            if self._total is None and number == len(self._starts) - 1:
                end = self._file.tell()
                if len(lines) == CHUNK_ROWS and self._more():
                    self._starts.append(end)
                else:
                    filled = [i for i, line in enumerate(lines, start=1) if line.strip(b"\r\n")]
                    self._total = number * CHUNK_ROWS + (filled[-1] if filled else 0)
        wanted = CHUNK_ROWS if self._total is None else min(CHUNK_ROWS, self._total - number * CHUNK_ROWS)
        if len(lines) < wanted:
            raise InputError(f"a Criteo file must not shrink while it is read, got its end early ({self.path}); start again")
        return lines[:wanted]

    def _more(self) -> bool:
        """Whether more than blank lines follow. Where a row does, nothing is read: going back in a compressed file starts it anew."""
        following = self._file.peek(1)[:1]
        return following not in b"\r\n" or any(line.strip(b"\r\n") for line in self._file)

    def _detect(self, head: bytes) -> tuple[_Layout, int]:
        """The layout, and where the first row begins."""
        line = head.split(b"\n", 1)[0]
        text = line.removeprefix(_BYTE_ORDER_MARK).decode("latin-1").rstrip("\r")
        archive = next((what for start, what in _ARCHIVES.items() if head.startswith(start)), None)
        if archive is not None or head[_TAR_MARK] == b"ustar":
            raise InputError(f"a Criteo file must be text or gzipped text, got {archive or 'a tar archive'} ({self.path}); unpack it")
        if text.count("\t") and not text.startswith(COLUMNS[0]):
            return _Layout("Kaggle TSV", "\t", 0), 0
        separator = "\t" if "\t" in text else ","
        names = text.split(separator)
        if names[0] != COLUMNS[0]:
            rule = "a Criteo file must begin with a tab-separated row or with the header label,I1,...,I13,C1,...,C26"
            raise InputError(f"{rule}, got {_shown(text)} ({self.path}: line 1); convert the file or correct data.path")
        if tuple(names) != COLUMNS:
            column, got, want = next(
                (i, got, want) for i, (got, want) in enumerate(zip_longest(names, COLUMNS, fillvalue="nothing"), start=1) if got != want
            )
            raise InputError(f"column {column} of the header must be {want}, got {_shown(got)} ({self.path}: line 1); correct the header")
        return _Layout("CSV with header" if separator == "," else "TSV with header", separator, 1), len(line) + 1

    def _read_chunk(self, number: int) -> Rows:
        return self._parse(b"".join(self._lines(number)), number * CHUNK_ROWS)

    def _parse(self, data: bytes, first_row: int) -> Rows:
        if first_row == 0:
            data = data.removeprefix(_BYTE_ORDER_MARK)
        data = data.replace(b"\r\n", b"\n").removesuffix(b"\n") + b"\n"
        self._check_fields(data, first_row)
        import pandas as pd  # 0.4 s that only readers of text pay

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
        indices = np.empty((TABLES, len(frame)), dtype=np.int64)
        for t in range(TABLES):
            column = 1 + DENSE_FEATURES + t
            texts = frame[COLUMNS[column]].to_numpy(dtype=object)
            indices[t], refusal = self._mapping.of_texts(texts, t, self.table_rows[t])
            if refusal is not None:
                flaws.append(_Flaw(refusal.position, column, refusal.rule, texts[refusal.position], refusal.step, refusal.where))
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
            rule = f"a row must have {len(COLUMNS)} fields (label, {DENSE_FEATURES} integers, {TABLES} categories)"
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


def checked_rows(path: str | Path, table_rows: Sequence[int]) -> tuple[int, ...]:
    """Rows of the tables that Criteo rows fill. Raises: InputError: there are not 26."""
    if len(table_rows) != TABLES:
        raise InputError(f"Criteo rows fill {TABLES} tables, got {len(table_rows)} ({path}); give the model {TABLES} tables")
    return tuple(table_rows)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _numbers(field: pd.Series[str], column: int, flaws: list[_Flaw]) -> npt.NDArray[np.float64]:
    """float64 values of one column, 0 where empty."""
    import pandas as pd

    texts = field.to_numpy(dtype=object)
    # A copy: pandas hands out read-only views.
    values = np.array(pd.to_numeric(pd.Series(np.where(texts == "", "0", texts)), errors="coerce"), dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        what = "an integer feature" if column else "a label"
        flaws.append(_Flaw(int(wrong[0]), column, f"{what} must be a number", texts[wrong[0]]))
        values[wrong] = 0
    return values
