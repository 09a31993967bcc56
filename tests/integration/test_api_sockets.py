"""The API on several sockets: ranks in processes of their own, results of the same types."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import autotune
from autotune.cli.options import parse_data
from autotune.config.knobs import RunConfig
from autotune.config.model import Changes
from autotune.config.partition import Partition, Placement
from autotune.errors import InputError, MachineError


@pytest.fixture(autouse=True)
def shared_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks may share cores, so that one core is enough; the package is found where it is."""
    monkeypatch.setenv("AUTOTUNE_OVERSUBSCRIBE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(autotune.__file__).parents[1]))
    for name in [name for name in os.environ if name.startswith(("OMP_", "GOMP_"))]:
        monkeypatch.delenv(name)


def test_run_on_two_sockets_takes_and_gives_what_one_does(tmp_path: Path) -> None:
    """A config of knobs alone, data that no option can say, and a progress that hears rank 0."""
    draw = random.Random(5)

    def row() -> list[object]:
        return [draw.randrange(2), *(draw.randrange(50) for _ in range(13)), *(f"{draw.randrange(9):08x}" for _ in range(26))]

    file = tmp_path / "rows.tsv"
    file.write_text("".join("\t".join(map(str, row())) + "\n" for _ in range(512)), encoding="utf-8")
    heard: list[tuple[object, ...]] = []
    progress: Any = SimpleNamespace(
        phase=lambda *words: heard.append(("phase", *words)),
        advance=lambda *words: heard.append(("advance", *words)),
        note=lambda *words: heard.append(("note", *words)),
    )
    model = autotune.load_model("mlperf-1m").model_copy(update={"name": "mine"})
    given: Any = {
        "steps": 4,
        "data": parse_data(f"criteo:{file}", model.data),
        "changes": Changes(max_rows=50, minibatch=64),
        "config": RunConfig(threads=1, huge_pages=False),
    }
    one, two = autotune.run(model, **given), autotune.run(model, **given, sockets=2, progress=progress)
    assert (type(two), two.model, two.steps) == (type(one), one.model, 4)
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert two.auc == pytest.approx(one.auc, abs=1e-3)
    assert two.config.partition is not None
    assert (two.config.partition.ranks, two.config.threads, two.config.huge_pages) == (2, 1, False)
    phases = [words[1] for words in heard if words[0] == "phase"]
    assert phases == ["starting 2 ranks", "loading torch", "building the model", "training"]
    assert sum(cast(float, words[1]) for words in heard if words[0] == "advance") == 4


def test_errors_of_ranks_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="sockets must be 1 or more, got 0"):
        autotune.run("tiny", sockets=0)
    of_three = Partition(ranks=3, tables=(Placement(kind="table_wise", ranks=(0,)),) * 4)
    with pytest.raises(InputError, match="rank 0: the partition is for 3 ranks, got 2"):
        autotune.run("tiny", sockets=2, config=RunConfig(threads=1, partition=of_three))
    monkeypatch.delenv("AUTOTUNE_OVERSUBSCRIBE")
    with pytest.raises(MachineError, match="every rank needs a core of its own"):
        autotune.tune("tiny", sockets=100_000, output=tmp_path / "out.yaml")
