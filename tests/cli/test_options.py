from __future__ import annotations

from pathlib import Path

import pytest

from autotune.cli.options import DEFAULT_ALPHA, parse_data
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


def test_the_kind_of_pooling_stays_the_models() -> None:
    varying = DataSpec(pooling_kind="varying")
    assert parse_data("zipf", varying).pooling_kind == "varying"


BAD = ["", "gauss", "zipf:", "zipf:0", "zipf:nan", "zipf:inf", "histogram:", "criteo:nowhere", "uniform:1", "histogram"]


@pytest.mark.parametrize("text", BAD)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--data"):
        parse_data(text, BASE)
