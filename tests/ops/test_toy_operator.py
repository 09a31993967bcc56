"""An operator is one class, and a schedule that uses it: everything else takes it as it comes.

The toy scales what the interaction gives to the top MLP, forward and backward, with one knob. Nothing outside this file knows of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from machines import made_up_profile

from autotune.api import profile, tune
from autotune.catalog import load_model_by_name
from autotune.config.files import load_tuned_and_record
from autotune.config.interactions import INTERACTIONS
from autotune.config.knobs import Knobs, RunConfig
from autotune.config.model import FLOAT_BYTES, Model
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.config.profile import Topology
from autotune.data.batches import make_source
from autotune.dlrm import schedule as schedules
from autotune.dlrm.model import DLRM
from autotune.errors import InputError
from autotune.explaining.diagnosis import explain
from autotune.ops.base import Case, Check, Family, Features, Measured, Observation, Operator, Rates, Residence, Work
from autotune.ops.memory import Memory
from autotune.ops.schedule import Pass, Schedule
from autotune.perf.estimate import estimate
from autotune.report.html import page
from autotune.tuning.races import OperatorRace, group_operators

FACTOR = 0.5
KEYS = {"scale.forward", "scale.backward"}


class ScaleKnobs(Knobs):
    """How the toy scales."""

    kind: Literal["toy_scale"] = "toy_scale"
    pieces: int = 4
    """Slices of rows that are scaled one after another."""


def scaled(matrix: torch.Tensor, pieces: int) -> None:
    for piece in matrix.chunk(min(pieces, len(matrix))):
        piece.mul_(FACTOR)


@dataclass(eq=False)
class Scale(Operator):
    """``x *= 0.5`` of [N, K], in place."""

    buffer: str
    samples: int
    columns: int

    kind: ClassVar[str] = "scale"
    family: ClassVar[Family] = Family("toy", "#ff00ff")
    knobs_type: ClassVar[type[Knobs]] = ScaleKnobs
    prior: ClassVar[Mapping[str, float]] = {"moved": 2.0, "call": 5.0}

    @classmethod
    def is_key(cls, key: str) -> bool:
        return key in KEYS

    def work(self) -> Work:
        size = FLOAT_BYTES * self.samples * self.columns
        return Work(flops=self.samples * self.columns, bytes_read=size, bytes_written=size)

    def size(self) -> Mapping[str, float]:
        return {"elements": float(self.samples * self.columns)}

    def features(self, knobs: Knobs | None, residence: Residence, rates: Rates) -> Features:
        return {"moved": self.work().bytes / rates.stream_bytes_per_s}

    def default(self, threads: int, lanes: int) -> ScaleKnobs:
        return ScaleKnobs()

    def candidates(self, machine: Topology, threads: int) -> Sequence[ScaleKnobs]:
        return [ScaleKnobs(), ScaleKnobs(pieces=1)]

    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        scaled(memory.buffers[self.buffer], knobs.pieces)

    def case(self, seed: int, warm: bool = False) -> Case:
        return ScaleCase(self.samples, self.columns, seed)

    def findings(self, measured: Measured) -> Iterator[Observation]:
        yield Observation("toy", measured.time_s, "It scales, and nothing needs it.", "Leave the toy out.")


class ScaleCase(Case):
    def __init__(self, samples: int, columns: int, seed: int) -> None:
        self.matrix = torch.rand(samples, columns, generator=torch.Generator().manual_seed(seed))

    def run(self, knobs: Any, threads: int) -> None:
        scaled(self.matrix, knobs.pieces)

    def check(self, knobs: Any, threads: int) -> Check:
        got, wanted = self.matrix.clone(), self.matrix * FACTOR
        scaled(got, knobs.pieces)
        return Check(float((got - wanted).abs().max()), 0.0)


def with_scale(model: Model, partition: Partition | None, rank: int, communication: CommunicationKnobs) -> Schedule:
    """The DLRM's schedule with a scale between the interaction and the top MLP."""
    steps = schedules.dlrm_schedule(model, partition, rank, communication)
    passes: list[Pass] = []
    for each in steps.passes:
        if each.key == "interaction.backward":
            passes.append(scale_pass("scale.backward", "d_top.0", steps.model, each.reads[-1]))
        passes.append(each)
        if each.key == "interaction.forward":
            passes.append(scale_pass("scale.forward", "top.0", steps.model, each.writes[0]))
    return replace(steps, passes=tuple(passes), forward_passes=steps.forward_passes + 1)


def scale_pass(key: str, name: str, model: Model, buffer: Any) -> Pass:
    operator = Scale(key, name, model.minibatch, model.top_input)
    return Pass(key, operator, reads=(buffer,), writes=(buffer,))


@pytest.fixture(scope="module")
def toy() -> Iterator[Model]:
    schedules.register("scaled-dot", with_scale)
    model = load_model_by_name("tiny")
    yield Model.model_validate(model.model_dump() | {"name": "toy", "interaction": "scaled-dot"})
    del INTERACTIONS["scaled-dot"], schedules._BUILDERS["scaled-dot"], Operator.registry["scale"], Knobs.registry["toy_scale"]


def test_it_runs_and_changes_the_result(toy: Model) -> None:
    plain, dlrm = DLRM(load_model_by_name("tiny")), DLRM(toy)
    batch = make_source(toy).batch(0)
    assert dlrm.forward(batch).tolist() != plain.forward(batch).tolist()
    first = [dlrm.step(make_source(toy).batch(0)) for _ in range(30)]
    assert first[-1] < first[0]  # the gradient passes through it
    times = dlrm.recorder.take()
    assert times.keys() >= KEYS


def test_another_operators_knobs_are_refused(toy: Model) -> None:
    update = DLRM(toy).config.operators["embedding_bag.update"]
    with pytest.raises(InputError, match=r"knobs of scale.forward must be of kind toy_scale, got embedding_update"):
        DLRM(toy, RunConfig(threads=1, operators={"scale.forward": update}))


def test_it_is_predicted(toy: Model) -> None:
    predicted = {row.key: row for row in estimate(toy, made_up_profile()).operators}
    assert all(predicted[key].prediction.time_s > 0 for key in KEYS)


def test_it_is_profiled(toy: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.probing.shared.load_or_probe", lambda **_: made_up_profile())
    rows = {row.operator: row for row in profile(toy, rounds=3).rows}
    assert all(rows[key].flops == toy.minibatch * toy.top_input for key in KEYS)
    assert all(rows[key].predicted is not None for key in KEYS)


def test_it_is_raced(toy: Model) -> None:
    dlrm, topology = DLRM(toy), made_up_profile().fingerprint.topology
    groups = group_operators(dlrm.operators(make_source(toy)), dlrm.config, dict.fromkeys(KEYS, 1.0))
    group = next(group for group in groups if group.keys[0] in KEYS)
    result = OperatorRace(group, 2.0, topology, dlrm.config).run()
    assert (result.candidates, result.offered, result.rejected) == (2, 2, ())


def test_it_is_tuned_kept_explained_and_drawn(toy: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.explaining.operators.WORTH_NAMING", 0.0)  # however short the pass is here
    output = tmp_path / "toy.tuned.yaml"
    config = tune(toy, budget_s=4.0, output=output, profile=made_up_profile())
    assert all(isinstance(config.config.operators[key], ScaleKnobs) for key in KEYS)
    assert load_tuned_and_record(output) == config
    account = explain(config)
    assert {choice.operator for choice in account.choices} >= KEYS
    assert "toy" in {finding.kind for finding in account.findings}
    html = page(account)
    assert "scale.forward" in html
    assert "toy" in {part.family for load in account.loads for part in load.time}
    assert "#ff00ff" in html
