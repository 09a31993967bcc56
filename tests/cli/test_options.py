from __future__ import annotations

from pathlib import Path

import pytest

from autotune.cli.options import DEFAULT_ALPHA, data_of, parse_data
from autotune.config.model import DataSpec
from autotune.errors import InputError

BASE = DataSpec()


def test_distributions_by_name() -> None:
    assert parse_data("uniform", BASE).distribution == "uniform"
    assert parse_data("zipf", BASE).alpha == DEFAULT_ALPHA
    assert parse_data("zipf:1.2", BASE).alpha == 1.2


def test_files_by_kind_or_alone(tmp_path: Path) -> None:
    file = tmp_path / "day_0.tsv"
    file.touch()
    assert parse_data(str(file), BASE) == parse_data(f"criteo:{file}", BASE) == DataSpec(distribution="criteo", path=str(file))
    assert parse_data(f"histogram:{file}", BASE) == DataSpec(distribution="histogram", path=str(file))


def test_categories_are_those_of_the_model_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.tsv", "a_fea_dict_0.npz"):
        Path(name).touch()
    modulo = DataSpec(distribution="criteo", path="old.tsv", categories="modulo")
    assert parse_data("rows.tsv", modulo) == modulo.model_copy(update={"path": "rows.tsv"})
    for text, changes in (
        ("hashed", {"categories": "hashed"}),
        ("rows", {"categories": "rows"}),
        ("dictionary:a_fea_dict_0.npz", {"categories": "dictionary", "dictionary": "a_fea_dict_0.npz"}),
    ):
        assert data_of("rows.tsv", "tiny", text) == DataSpec(distribution="criteo", path="rows.tsv", **changes)


@pytest.mark.parametrize("text", ["", "hash", "dictionary", "dictionary:nowhere", "modulo:3"])
def test_other_categories_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows.tsv"
    file.touch()
    with pytest.raises(InputError, match="--categories"):
        data_of(str(file), "tiny", text)


def test_categories_without_rows_are_refused() -> None:
    with pytest.raises(InputError, match="categories belong to Criteo rows, got --categories modulo with uniform data"):
        data_of(None, "tiny", "modulo")


def test_the_kind_of_pooling_stays_the_models() -> None:
    varying = DataSpec(pooling_kind="varying")
    assert parse_data("zipf", varying).pooling_kind == "varying"


BAD = ["", "gauss", "zipf:", "zipf:0", "zipf:nan", "zipf:inf", "histogram:", "criteo:nowhere", "uniform:1", "histogram"]


@pytest.mark.parametrize("text", BAD)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--data"):
        parse_data(text, BASE)
