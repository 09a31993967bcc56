"""Where the public data files are, for the tests that read them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def public_file() -> Callable[[str], Path]:
    """Name to path of a file in the folder AUTOTUNE_DATA or ../shared/data beside the repository; skips the test where it is absent."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("AUTOTUNE_DATA") or Path(__file__).parents[3] / "shared" / "data")
        if not (folder / name).is_file():
            pytest.skip(f"{name} is not there; set AUTOTUNE_DATA to the folder that holds it")
        return folder / name

    return find
