"""Files that commands read."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune import catalog
from autotune.config.files import write_tuned
from autotune.config.tuned import TunedConfig


@pytest.fixture
def config_file(tmp_path: Path, tuned_config: TunedConfig) -> Path:
    write_tuned(tmp_path / "small.tuned.yaml", tuned_config)
    return tmp_path / "small.tuned.yaml"


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(catalog.find_model("tiny").read_text())
    return path
