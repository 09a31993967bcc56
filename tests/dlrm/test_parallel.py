"""Several ranks compute what one process computes: for every partition kind, all-to-all form and update strategy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import pytest
import torch

import autotune
from autotune.config.knobs import RunConfig
from autotune.config.model import Changes, DataSpec, Model, Table
from autotune.config.partition import ALL_TO_ALL_FORMS, CommunicationKnobs, Kind, Partition, Placement
from autotune.data.batches import make_source
from autotune.dlrm.model import DLRM
from autotune.dlrm.train import evaluate
from autotune.ops.embedding_tables import EmbeddingUpdateKnobs

STEPS = 4
STRATEGIES = ("race_free_range", "race_free_modulo", "bucketed", "atomic", "unfused")
ROWS = (500, 7, 3, 120, 64)


def small_model(minibatch: int) -> Model:
    """Five tables, one row narrower than any split; bags of varying length, empty ones among them."""
    return Model(
        schema=1,
        name="parallel-test",
        source="test",
        description="test",
        minibatch=minibatch,
        learning_rate=0.1,
        data=DataSpec(pooling_kind="varying"),
        bottom_mlp=(5, 24, 32),
        top_mlp=(40, 1),
        tables=tuple(Table(rows=rows, dim=32, pooling=pooling) for rows, pooling in zip(ROWS, (3.0, 1.0, 2.0, 4.0, 0.5), strict=True)),
    )


def place(kind: Kind, table: int, ranks: int) -> Placement:
    if kind == "table_wise":
        return Placement(kind=kind, ranks=(table % ranks,))
    if kind == "replicated":
        return Placement(kind=kind)
    extent = ROWS[table] if kind == "row_wise" else 32
    owners = tuple(reversed(range(min(ranks, extent))))
    return Placement(kind=kind, ranks=owners, bounds=tuple(extent * i // len(owners) for i in range(len(owners) + 1)))


def partition(kinds: tuple[Kind, ...], ranks: int) -> Partition:
    return Partition(ranks=ranks, tables=tuple(place(kind, t, ranks) for t, kind in enumerate(islice(cycle(kinds), len(ROWS)))))


KINDS: tuple[tuple[Kind, ...], ...] = (
    ("table_wise",),
    ("row_wise",),
    ("column_wise",),
    ("replicated",),
    ("row_wise", "replicated", "table_wise", "column_wise"),
)


def cases(ranks: int, strategies: Sequence[str] = STRATEGIES) -> list[dict[str, Any]]:
    """Every pair of kind, form and strategy. The minibatch divides and does not."""
    model, uneven = small_model(12 * ranks), small_model(12 * ranks + ranks - 1)
    found = []
    for (k, kinds), (f, form), (s, strategy) in product(enumerate(KINDS), enumerate(ALL_TO_ALL_FORMS), enumerate(strategies)):
        if (k + s) % len(ALL_TO_ALL_FORMS) != f:
            continue
        overlap = form != "fused_scatter" or s % 2 == 0
        knobs = CommunicationKnobs(all_to_all=form, overlap=overlap, bucket_bytes=1024 if form == "native" else 1 << 20)
        found.append(_case(model if form == "native" else uneven, partition(kinds, ranks), knobs, strategy))
    return found


def _case(model: Model, where: Partition, knobs: CommunicationKnobs, strategy: str) -> dict[str, Any]:
    return {
        "model": model.model_dump(mode="json", by_alias=True),
        "partition": where.model_dump(mode="json"),
        "communication": knobs.model_dump(mode="json"),
        "strategy": strategy,
        "steps": STEPS,
    }


def run_ranks(folder: Path, ranks: int, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of rank 0, after `ranks` processes have trained every case."""
    (folder / "cases.json").write_text(json.dumps(given))
    script = Path(__file__).with_name("parallel_rank.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(Path(autotune.__file__).parents[1])}
    command = [sys.executable, str(script), str(folder / "cases.json"), str(folder / "out"), str(folder / "store"), str(ranks)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{folder}/out.{number}") for number in range(len(given))]


def train_alone(case: dict[str, Any]) -> tuple[DLRM, list[float]]:
    """The same training in this process."""
    model = Model.model_validate_json(json.dumps(case["model"]))
    dlrm = DLRM(model, RunConfig(threads=1, operators={"embedding_bag.update": EmbeddingUpdateKnobs()}))
    source = make_source(model)
    return dlrm, [dlrm.step(source.batch(i)) for i in range(case["steps"])]


PRECISIONS = [Changes(dtype="bf16"), Changes(optimizer="adagrad"), Changes(dtype="bf16", optimizer="adagrad")]
# Split rows, whole tables, and copies whose gradients travel densely and sparsely.
_PRECISE = [
    _case(small_model(24).changed(changes), partition(("row_wise", "replicated", "table_wise"), 2), CommunicationKnobs(), "bucketed")
    for changes in PRECISIONS
]
_WIRED = [
    _case(small_model(24), partition(KINDS[-1], 2), CommunicationKnobs(all_to_all=form, wire_dtype="bf16"), "bucketed")
    for form in ALL_TO_ALL_FORMS
]

# The minibatch does not divide; every kind of placement, and both ways in which the gradients of copies travel.
_INTERACTING = [
    _case(model, partition(kinds, 2), CommunicationKnobs(all_to_all=form), "bucketed")
    for model in (small_model(25).model_copy(update={"interaction": name}) for name in ("dot_with_diagonal", "concatenation"))
    for kinds, form in ((KINDS[-1], ALL_TO_ALL_FORMS[0]), (("replicated", "row_wise"), ALL_TO_ALL_FORMS[-1]))
]

Trained = list[tuple[dict[str, Any], dict[str, Any]]]
"""Cases with what the ranks made of them."""


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Trained]:
    """Cases in fp32, of other precisions, with bf16 on the wire and of other interactions: loading torch takes longer than all of them."""
    kinds = (cases(2), _PRECISE, _WIRED, _INTERACTING)
    results = iter(run_ranks(tmp_path_factory.mktemp("two"), 2, [case for given in kinds for case in given]))
    return [[(case, next(results)) for case in given] for given in kinds]


def test_two_ranks_train_as_one_process_does(on_two_ranks: list[Trained]) -> None:
    check_losses_and_weights(on_two_ranks[0])


def test_two_ranks_train_every_interaction_as_one_process_does(on_two_ranks: list[Trained]) -> None:
    check_losses_and_weights(on_two_ranks[3])


def test_four_ranks_train_as_one_process_does(tmp_path: Path) -> None:
    given = cases(4, STRATEGIES[1:4])  # who owns a row does not ask how many ranks there are
    check_losses_and_weights(list(zip(given, run_ranks(tmp_path, 4, given), strict=True)))


def check_losses_and_weights(trained: Trained) -> None:
    wanted: dict[tuple[int, str], tuple[list[float], dict[str, torch.Tensor]]] = {}
    for case, got in trained:
        key = case["model"]["minibatch"], case["model"]["interaction"]
        if key not in wanted:
            dlrm, losses = train_alone(case)
            wanted[key] = losses, dlrm.state_dict()
        losses, state = wanted[key]
        assert len(set(map(tuple, got["losses"]))) == 1, "every rank returns the loss of the whole minibatch"
        assert got["losses"][0] == pytest.approx(losses, rel=1e-5)
        assert set(got["state"]) == set(state)
        for name, weight in state.items():
            scale = float(weight.abs().max())
            worst = float((got["state"][name] - weight).abs().max())
            assert worst <= 1e-5 * scale, f"{name}: off by {worst:.2e} of {scale:.2e} in {case['partition']}, {case['communication']}"
        assert all(digest == got["copies"][0] for digest in got["copies"]), "copies of a replicated table stay equal"


def test_ranks_train_in_bf16_and_with_adagrad_as_one_process_does(on_two_ranks: list[Trained]) -> None:
    for changes, (case, got) in zip(PRECISIONS, on_two_ranks[1], strict=True):
        dlrm, losses = train_alone(case)
        # Sums in another order may round to another bf16, and Adagrad's first steps have the gradient's sign: equal up to that.
        exact = changes.dtype != "bf16"
        assert got["losses"][0] == pytest.approx(losses, rel=1e-4 if exact else 1e-2), changes
        source = make_source(dlrm.model)
        source.rows_within = lambda limit, rows=dlrm.model.minibatch + 1: rows
        alone = evaluate(dlrm, source).evaluation
        assert alone is not None
        assert alone.samples == dlrm.model.minibatch + 1
        assert got["loss"] == pytest.approx(alone.loss, rel=1e-4 if exact else 5e-2), changes
        assert set(got["sums"]) == set(dlrm.optimizer_state())
        for name, wanted in (dlrm.state_dict() | {f"sum of {name}": value for name, value in dlrm.optimizer_state().items()}).items():
            value = got["sums"][name.removeprefix("sum of ")] if name.startswith("sum of ") else got["state"][name]
            error = float((value - wanted).norm() / wanted.norm())
            assert error < (1e-3 if exact else 0.05), f"{name} with {changes}: off by {error:.1e}"
        assert all(digest == got["copies"][0] for digest in got["copies"]), "copies of a replicated table stay equal"


def test_bf16_on_the_wire_stays_near_fp32(on_two_ranks: list[Trained]) -> None:
    _, losses = train_alone(_WIRED[0])
    for _, got in on_two_ranks[2]:
        assert got["losses"][0] == pytest.approx(losses, rel=1e-2)
        assert got["losses"][0] != losses, "rounding to bf16 must show"
