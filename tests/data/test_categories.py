"""Categories onto rows: as they are asked for, and as the public DLRM does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autotune.config.model import DataSpec
from autotune.data.categories import CategoryMapping, mapping_of
from autotune.errors import InputError

TEXTS = np.array(["05db9164", "", "ffffffff", "a", "05db9164"], dtype=object)
VALUES = (0x05DB9164, 0, 0xFFFFFFFF, 10, 0x05DB9164)


def write_dictionaries(folder: Path, values: list[int]) -> str:
    """The 26 files of the public DLRM: 32-bit values in the order of their rows. The other tables begin with another value."""
    for table in range(26):
        own = values if table == 3 else [7, *values]
        np.savez_compressed(folder / f"kaggle_fea_dict_{table}.npz", unique=np.array(own, dtype=np.uint32).view(np.int32))
    return str(folder / "kaggle_fea_dict_0.npz")


def spec(**options: object) -> DataSpec:
    return DataSpec.model_validate({"distribution": "criteo", "path": "rows.tsv", **options})


def test_modulo_takes_the_value_by_the_rows_of_each_table() -> None:
    for rows in (1, 3, 1000):
        assert CategoryMapping("modulo").of_texts(TEXTS, 0, rows)[0].tolist() == [value % rows for value in VALUES]


def test_a_dictionary_gives_the_place_of_the_value_in_the_list_of_its_table(tmp_path: Path) -> None:
    path = write_dictionaries(tmp_path, [10, 0, 0xFFFFFFFF, 0x05DB9164])
    mapping = mapping_of(spec(categories="dictionary", dictionary=path), prepared=False)
    assert mapping.of_texts(TEXTS, 3, 4)[0].tolist() == [3, 1, 2, 0, 3]
    assert mapping.of_texts(TEXTS, 4, 5)[0].tolist() == [4, 2, 3, 1, 4]


def test_a_dictionary_of_reduced_values_is_looked_up_with_reduced_values(tmp_path: Path) -> None:
    path = write_dictionaries(tmp_path, sorted({value % 1000 for value in VALUES}, reverse=True))
    mapping = mapping_of(spec(categories="dictionary", dictionary=path, max_ind_range=1000), prepared=False)
    places = sorted({value % 1000 for value in VALUES}, reverse=True)
    assert mapping.of_texts(TEXTS, 3, 10)[0].tolist() == [places.index(value % 1000) for value in VALUES]


def test_what_has_no_row_is_refused_at_its_first_place(tmp_path: Path) -> None:
    mapping = mapping_of(spec(categories="dictionary", dictionary=write_dictionaries(tmp_path, [0, 0x05DB9164, 10])), prepared=False)
    _, refusal = mapping.of_texts(TEXTS, 3, 3)
    assert refusal is not None
    assert (refusal.position, refusal.rule) == (2, "a category must be in the dictionary of table 3")
    _, refusal = mapping.of_texts(TEXTS[[0, 1, 3]], 3, 2)
    assert refusal is not None
    assert (refusal.position, refusal.rule) == (2, "an index must be at least 0 and below 2")


def test_mappings_are_known_by_name_and_a_dictionary_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    one, two = write_dictionaries(tmp_path, [0, 1]), write_dictionaries(tmp_path / "b", [1, 0])
    names = {mapping_of(spec(categories="dictionary", dictionary=path), prepared=False).name for path in (one, two, one)}
    assert len(names) == 2
    assert [mapping_of(spec(**options), prepared).name for options, prepared in (({}, False), ({}, True), ({"hashed": False}, False))] == [
        "hashed",
        "rows",
        "rows",
    ]


def test_dictionaries_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    path = write_dictionaries(tmp_path, [0, 1])
    with pytest.raises(InputError, match=r"must be named as the public DLRM names it.*got words\.txt"):
        mapping_of(spec(categories="dictionary", dictionary="words.txt"), prepared=False)
    for break_it, got in (
        (lambda file: file.unlink(), "No such file"),
        (lambda file: file.write_bytes(b"x"), "kaggle_fea_dict_5"),
        (lambda file: np.savez(file, other=np.zeros(1)), "'unique'"),
        (lambda file: np.savez(file, unique=np.zeros(2, dtype=np.int32)), "with repeats"),
        (lambda file: np.savez(file, unique=np.array([None])), "allow_pickle"),
        (lambda file: np.savez(file, unique=np.array([5, 2**32 + 5])), "integers of 32 bits"),
        (lambda file: np.savez(file, unique=np.array([-1, 2**32 - 1])), "with repeats"),
        (lambda file: file.open("wb").write(b"PK\x03\x04" + bytes(50)), "not a zip file"),
        (lambda file: np.save(file.open("wb"), np.arange(3)), "a single array"),
    ):
        break_it(tmp_path / "kaggle_fea_dict_5.npz")
        with pytest.raises(InputError, match=rf"a dictionary must .*{got}"):
            mapping_of(spec(categories="dictionary", dictionary=path), prepared=False)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"categories": "dictionary"}, "a dictionary goes with categories: dictionary"),
        ({"dictionary": "x_fea_dict_0.npz"}, "a dictionary goes with categories: dictionary"),
        ({"hashed": False, "categories": "modulo"}, "hashed: false means categories: rows"),
        ({"max_ind_range": 5}, "max_ind_range belongs to categories: dictionary"),
        ({"categories": "dictionary", "dictionary": "x_fea_dict_0.npz", "max_ind_range": 0}, "max_ind_range must be positive"),
        ({"distribution": "uniform", "path": None, "categories": "modulo"}, "categories belongs to criteo, not to uniform"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        spec(**options)
