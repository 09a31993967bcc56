"""Criteo rows as torchrec's scripts prepare them: three arrays, ``NAME_dense.npy``, ``NAME_sparse.npy``, ``NAME_labels.npy``.

The integer features in them have had their logarithm, ``log(x - m + 2)`` with m the least value of the file, and are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.config.words import PREPARED_FILE
from autotune.data.categories import NUMPY_ERRORS, TABLES, CategoryMapping
from autotune.data.criteo import COLUMNS, DENSE_FEATURES, Rows, checked_rows
from autotune.errors import InputError

PREPARED_SUFFIX = ".npy"


class PreparedFile:
    """Random access to the rows of prepared arrays, mapped, not read.

    Args:
        path: any of the three files.
        table_rows: rows of the 26 tables.
        mapping: of their values onto these.

    Raises:
        InputError: a file is missing, no array of numbers, or not of its shape.
    """

    layout = "prepared arrays"

    def __init__(self, path: str | Path, table_rows: Sequence[int], mapping: CategoryMapping) -> None:
        match = PREPARED_FILE.fullmatch(str(path))
        if match is None:
            rule = "prepared rows must be named NAME_dense.npy, NAME_sparse.npy and NAME_labels.npy"
            raise InputError(f"{rule}, got {path} (data.path); give one of the three")
        self._stem, self._table_rows, self._mapping = match[1], checked_rows(path, table_rows), mapping
        self._dense = self._array("dense", "fiu", DENSE_FEATURES)
        self._sparse = self._array("sparse", "iu", TABLES)
        self._labels = self._array("labels", "fiub", 1)
        counts = {"dense": len(self._dense), "sparse": len(self._sparse), "labels": len(self._labels)}
        if len(set(counts.values())) != 1 or not len(self._dense):
            got = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise InputError(f"prepared arrays must hold as many rows each, and at least one, got {got} ({path}); prepare them again")

    def count_within(self, limit: int | None) -> int:
        """Rows there are, at most `limit`."""
        return min(len(self._labels), len(self._labels) if limit is None else limit)

    def rows(self, start: int, count: int) -> Rows:
        """`count` rows from row `start` on, beginning again at the first row after the last.

        Raises:
            InputError: a value breaks a rule; file, row, column and value are named.
        """
        at = np.arange(start, start + count) % len(self._labels)
        dense = self._dense[at].astype(np.float32)
        for row, column in np.argwhere(~np.isfinite(dense))[:1]:
            self._refuse("dense", "a dense feature must be a finite number", dense[row, column], at[row], COLUMNS[1 + column])
        labels = self._labels[at, 0].astype(np.float32)
        for (row,) in np.argwhere((labels != 0) & (labels != 1))[:1]:
            self._refuse("labels", "a label must be 0 or 1", labels[row], at[row], COLUMNS[0])
        values = self._sparse[at].astype(np.int64)
        indices = np.empty((TABLES, count), dtype=np.int64)
        for t in range(TABLES):
            indices[t], refusal = self._mapping.of_values(values[:, t], t, self._table_rows[t])
            if refusal is not None:
                row, column = refusal.position, COLUMNS[1 + DENSE_FEATURES + t] + refusal.where
                self._refuse("sparse", refusal.rule, values[row, t], at[row], column, refusal.step)
        return Rows(dense, indices, labels)

    def _refuse(self, part: str, rule: str, got: object, row: int, column: str, step: str = "prepare the arrays again") -> None:
        raise InputError(f"{rule}, got {got} ({self._stem}{part}.npy: row {row}, column {column}); {step}")

    def _array(self, part: str, kinds: str, columns: int) -> npt.NDArray[Any]:
        """One of the arrays, [rows, columns]."""
        path = f"{self._stem}{part}.npy"
        try:
            array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("an archive of arrays")
        except NUMPY_ERRORS as error:
            raise InputError(f"a prepared array must be a readable .npy file, got {error} ({path}); correct data.path") from error
        array = array[:, None] if array.ndim == 1 and columns == 1 else array
        if array.dtype.kind not in kinds or array.ndim != 2 or array.shape[1] != columns:
            rule = f"a prepared array of {part} must hold numbers [rows, {columns}]"
            raise InputError(f"{rule}, got {array.dtype} {list(array.shape)} ({path}); prepare it again")
        return array
