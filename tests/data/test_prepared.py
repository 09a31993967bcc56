"""Prepared arrays: taken as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autotune.config.model import DataSpec, Model, Table
from autotune.data.batches import make_source
from autotune.data.categories import CategoryMapping
from autotune.data.prepared import PreparedFile
from autotune.errors import InputError

ROWS = [50] * 26


def write_arrays(folder: Path, count: int = 10) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "dense": rng.standard_normal((count, 13)).astype(np.float32),
        "sparse": rng.integers(0, 50, (count, 26)).astype(np.int32),
        "labels": rng.integers(0, 2, (count, 1)).astype(np.int32),
    }
    for name, array in arrays.items():
        np.save(folder / f"day_0_{name}.npy", array)
    return arrays


@pytest.mark.parametrize("part", ["dense", "sparse", "labels"])
def test_values_get_no_second_logarithm_and_categories_are_row_numbers(tmp_path: Path, part: str) -> None:
    arrays, at = write_arrays(tmp_path), [8, 9, 0, 1]
    tables = (Table(rows=50, dim=4),) * 26
    shape = {"name": "m", "source": "test", "description": "test", "bottom_mlp": (13, 4), "top_mlp": (1,), "tables": tables}
    model = Model.model_validate(
        {**shape, "minibatch": 4, "data": DataSpec(distribution="criteo", path=str(tmp_path / f"day_0_{part}.npy"))}
    )
    source = make_source(model)
    batch = source.batch(2)
    assert (source.rows_within(None), source.rows_within(4), source.mapping) == (10, 4, "rows")
    assert np.array_equal(batch.dense, arrays["dense"][at])
    assert np.array_equal(batch.indices.reshape(26, 4), arrays["sparse"][at].T)
    assert np.array_equal(batch.labels, arrays["labels"][at, 0])


def test_larger_values_fit_by_modulo(tmp_path: Path) -> None:
    arrays = write_arrays(tmp_path)
    read = PreparedFile(tmp_path / "day_0_dense.npy", [7] * 26, CategoryMapping("modulo")).rows(0, 10)
    assert np.array_equal(read.indices, arrays["sparse"].T % 7)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("dense", np.nan, r"a dense feature must be a finite number, got nan \(.*day_0_dense\.npy: row 2, column I4\)"),
        ("labels", 2, r"a label must be 0 or 1, got 2\.0 \(.*day_0_labels\.npy: row 2, column label\)"),
        ("sparse", 50, r"below 50, got 50 \(.*day_0_sparse\.npy: row 2, column C4, table 3: limit 50 rows\); give table 3 more rows"),
        ("sparse", -1, r"below 50, got -1 \(.*day_0_sparse\.npy: row 2, column C4"),
    ],
)
def test_a_bad_value_is_refused_with_file_row_and_column(tmp_path: Path, part: str, value: float, message: str) -> None:
    array = write_arrays(tmp_path)[part]
    array[2, min(3, array.shape[1] - 1)] = value
    np.save(tmp_path / f"day_0_{part}.npy", array)
    with pytest.raises(InputError, match=message):
        PreparedFile(tmp_path / "day_0_dense.npy", ROWS, CategoryMapping("rows")).rows(0, 10)


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("sparse", None, r"must be a readable \.npy file, got .*No such file"),
        ("sparse", np.zeros((10, 25), np.int32), r"array of sparse must hold numbers \[rows, 26\], got int32 \[10, 25\]"),
        ("dense", np.zeros((10, 13), "U3"), r"array of dense must hold numbers \[rows, 13\], got <U3"),
        ("labels", np.zeros(9, np.int32), r"as many rows each, .*got 10 dense, 10 sparse, 9 labels"),
        ("dense", np.array([None] * 10), "Python objects"),
    ],
)
def test_arrays_of_another_shape_are_refused(tmp_path: Path, part: str, content: np.ndarray | None, message: str) -> None:
    write_arrays(tmp_path)
    path = tmp_path / f"day_0_{part}.npy"
    path.unlink()
    if content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=message):
        PreparedFile(tmp_path / "day_0_labels.npy", ROWS, CategoryMapping("rows"))


@pytest.mark.parametrize(
    ("content", "message"), [(b"PK\x03\x04" + bytes(50), "not a zip file"), (b"", "must be a readable"), (None, "an archive of arrays")]
)
def test_a_file_that_is_no_array_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    write_arrays(tmp_path)
    path = tmp_path / "day_0_dense.npy"
    if content is None:
        with path.open("wb") as file:
            np.savez(file, dense=np.zeros((10, 13)))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        PreparedFile(path, ROWS, CategoryMapping("rows"))


def test_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be named NAME_dense\.npy.*got .*x\.npy"):
        PreparedFile(tmp_path / "x.npy", ROWS, CategoryMapping("rows"))
