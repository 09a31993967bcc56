"""How the category of a Criteo row becomes a row of its table.

With x the value of a category, 0 where it is missing:

    hashed       0 where it is missing, else 1 + splitmix64(x) % (rows - 1)
    modulo       x % rows
    dictionary   the place of x in a list of all values, as the public DLRM numbers them while it prepares raw files
    rows         x itself, a decimal number that must be there

In the first three a category of a text file is a hexadecimal number.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from numpy.lib.npyio import NpzFile

from autotune.config.model import DataSpec
from autotune.config.words import CRITEO_TABLES, DICTIONARY_FILE, Categories
from autotune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

TABLES = CRITEO_TABLES
NUMPY_ERRORS = (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error)
"""What numpy raises of a file that is none of its own, or is damaged."""

_HEX = re.compile(r"[0-9a-fA-F]{1,16}", re.ASCII)
_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)

Keys = npt.NDArray[np.int64 | np.uint64]


class Refusal(NamedTuple):
    """A category that has no row."""

    position: int
    """Of the first among the categories given."""
    rule: str
    step: str
    where: str = ""


@dataclass(frozen=True, eq=False)
class CategoryMapping:
    """Rows of the tables for categories. Values are mapped one by one, so that the order of a file does not matter."""

    how: Categories = "hashed"
    dictionaries: tuple[pd.Index[Any], ...] = ()
    """With ``dictionary``: the values of every table in the order of their rows."""
    max_ind_range: int | None = None
    """With ``dictionary``: values are looked up modulo it."""

    @property
    def name(self) -> str:
        """What a checkpoint keeps of it; a dictionary by a digest of its values."""
        if self.how != "dictionary":
            return self.how
        digest = hashlib.sha256(str(self.max_ind_range).encode())
        for values in self.dictionaries:
            digest.update(values.to_numpy().tobytes())
        return f"dictionary {digest.hexdigest()[:12]}"

    def of_texts(self, texts: npt.NDArray[np.object_], table: int, rows: int) -> tuple[npt.NDArray[np.int64], Refusal | None]:
        """Rows of one table for the categories of a text file, and the first that has none."""
        import pandas as pd

        codes, distinct = pd.factorize(texts)
        keys: Keys = np.zeros(len(distinct), dtype=np.int64 if self.how == "rows" else np.uint64)
        refusal = None
        for i, text in enumerate(distinct):
            if (_INTEGER if self.how == "rows" else _HEX).fullmatch(text):
                keys[i] = int(text, 10 if self.how == "rows" else 16)
            elif (text or self.how == "rows") and refusal is None:
                refusal = Refusal(int(np.argmax(codes == i)), *self._format_rule())
        targets, bad = self._rows(keys, np.asarray(distinct == ""), table, rows)
        # The first in the file, of either kind: distinct values come in the order of their first appearance.
        if bad is not None and (refusal is None or np.argmax(codes == bad.position) < refusal.position):
            refusal = bad._replace(position=int(np.argmax(codes == bad.position)))
        return targets[codes], refusal

    def of_values(self, values: npt.NDArray[np.int64], table: int, rows: int) -> tuple[npt.NDArray[np.int64], Refusal | None]:
        """The same for categories that are numbers already; none is missing."""
        return self._rows(values, np.zeros(len(values), dtype=np.bool_), table, rows)

    def _format_rule(self) -> tuple[str, str]:
        if self.how == "rows":
            return "a category read as a row number must be a decimal integer", "correct or delete that line, or have categories hashed"
        return "a category must be a hexadecimal number of up to 16 digits", "correct or delete that line"

    def _rows(self, keys: Keys, missing: npt.NDArray[np.bool_], table: int, rows: int) -> tuple[npt.NDArray[np.int64], Refusal | None]:
        if self.how == "hashed":
            targets = 1 + (_splitmix64(keys.astype(np.uint64)) % np.uint64(max(1, rows - 1))).astype(np.int64)
            targets[missing | (rows == 1)] = 0
            return targets, None
        if self.how == "modulo":
            return (keys % keys.dtype.type(rows)).astype(np.int64), None
        targets = keys.astype(np.int64)
        if self.how == "dictionary":
            targets = self._looked_up(keys, table)
        wrong = np.flatnonzero((targets < 0) | (targets >= rows))
        if not wrong.size:
            return targets, None
        first = int(wrong[0])
        if self.how == "dictionary" and targets[first] < 0:
            return targets, Refusal(first, f"a category must be in the dictionary of table {table}", "take the dictionary of these rows")
        more = f"give table {table} more rows" if targets[first] >= 0 else "correct or delete that line"
        targets[wrong] = 0
        rule, where = f"an index must be at least 0 and below {rows}", f", table {table}: limit {rows} rows"
        return targets, Refusal(first, rule, f"{more}, or have categories hashed", where)

    def _looked_up(self, keys: Keys, table: int) -> npt.NDArray[np.int64]:
        import pandas as pd

        values = keys if self.max_ind_range is None else keys % keys.dtype.type(self.max_ind_range)
        wanted = pd.Index(values.astype(np.uint32).view(np.int32))
        return np.asarray(self.dictionaries[table].get_indexer(wanted), dtype=np.int64)


def mapping_of(spec: DataSpec, prepared: bool) -> CategoryMapping:
    """The mapping that `spec` asks for.

    Args:
        prepared: whether the file holds prepared numbers, which are row numbers unless something else is asked for.

    Raises:
        InputError: a dictionary cannot be read.
    """
    how = spec.categories or ("rows" if prepared or not spec.hashed else "hashed")
    dictionaries = () if spec.dictionary is None else _read_dictionaries(spec.dictionary)
    return CategoryMapping(how, dictionaries, spec.max_ind_range)


def _read_dictionaries(path: str) -> tuple[pd.Index[Any], ...]:
    match = DICTIONARY_FILE.fullmatch(path)
    if match is None:
        rule = "a dictionary must be named as the public DLRM names it, NAME_fea_dict_0.npz"
        raise InputError(f"{rule}, got {path} (data.dictionary); give one of its {TABLES} files")
    return tuple(_read_dictionary(Path(f"{match[1]}{table}.npz")) for table in range(TABLES))


def _read_dictionary(path: Path) -> pd.Index[Any]:
    import pandas as pd

    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, NpzFile):
            raise ValueError("a single array")
        with file:
            values = np.asarray(file["unique"]).ravel()
    except NUMPY_ERRORS as error:
        raise InputError(f"a dictionary must hold the array 'unique', got {error} ({path}); correct data.dictionary") from error
    # The public DLRM keeps values in 32 bits, with a sign or without.
    if values.dtype.kind not in "iu" or (values.size and not -(2**31) <= int(values.min()) <= int(values.max()) < 2**32):
        raise InputError(f"a dictionary must hold integers of 32 bits, got {values.dtype} ({path}); prepare it again")
    kept: pd.Index[Any] = pd.Index(values.astype(np.int64).astype(np.uint32).view(np.int32))
    if not kept.is_unique:
        raise InputError(f"a dictionary must hold different integers, got {values.dtype} with repeats ({path}); prepare it again")
    return kept


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A fixed mixing of 64 bits, one-to-one. Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
