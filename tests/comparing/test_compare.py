"""`autotune compare` as a user runs it, and contestants that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from machines import bare

import autotune
from autotune.bench.progress import NO_PROGRESS
from autotune.catalog import load_model_by_name
from autotune.comparing import compare as comparing
from autotune.comparing.compare import LOSS_STEPS, Preparation, compare, loss_tolerances, prepare
from autotune.comparing.models import BUILDERS
from autotune.comparing.peers import BASELINE, PEERS, Peer
from autotune.comparing.process import Contestant, ContestantError
from autotune.config.model import Changes, Model
from autotune.config.profile import Profile
from autotune.data.batches import make_source
from autotune.dlrm.model import DLRM
from autotune.errors import InputError, MachineError
from autotune.machine.topology import detect, fingerprint
from autotune.ops.native import kernels
from autotune.probing.store import profile_path, write_profile
from autotune.report.compare import comparison
from autotune.report.layout import to_text

_TIMEOUT_S = 240


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With made-up ceilings of this machine in the cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MALLOC_", "AUTOTUNE_"))}
    folder = tmp_path_factory.mktemp("cache")
    here = fingerprint(detect(), kernels.target())
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AUTOTUNE_CACHE", str(folder))
        write_profile(profile_path(here), bare(2).model_copy(update={"fingerprint": here}), NO_PROGRESS)
    root = str(Path(autotune.__file__).parents[1])
    return kept | {"PYTHONPATH": root, "AUTOTUNE_CACHE": str(folder), "COLUMNS": "120"}


def test_the_command_compares_ours_with_stock(shell: dict[str, str], tmp_path: Path) -> None:
    """In bf16, so that one run has contestants of both dtypes."""
    line = [sys.executable, "-m", "autotune", "compare", "tiny", "--dtype", "bf16", "--peers", "stock-best,default-fp32,fbgemm"]
    line += ["--budget", "1s", "--cached-profile"]
    done = subprocess.run([*line, "--json", "-o", str(tmp_path / "c.json")], env=shell, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert "probing anew" not in done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    lines = {line["name"]: line for line in result["lines"]}
    assert lines.keys() == {"default", BASELINE, "default-fp32"}
    assert (result["model"], result["dtype"], result["absent"].keys()) == ("tiny[dtype=bf16]", "bf16", {"fbgemm"})
    assert 0 < lines["default-fp32"]["loss_error"] < 2**-8 * 3
    assert result["bound_s"] == pytest.approx(sum(result["bounds_s"].values()))
    for one in lines.values():
        assert one["iteration_s"]["samples"] >= 6
        assert one["over_bound"] == pytest.approx(one["iteration_s"]["median"] / result["bound_s"])
    assert lines["default"]["default_gain"]["median"] == 1.0
    assert [line["iteration_s"]["median"] for line in result["lines"]] == sorted(one["iteration_s"]["median"] for one in lines.values())


class FakeContestant:
    """Answers at once; keeps a list of all that were started."""

    started: ClassVar[list[str]] = []

    def __init__(self, kind: str, *_: object) -> None:
        self.kind = kind
        self.started.append(kind)

    def __enter__(self) -> FakeContestant:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, batch: int, config: str) -> tuple[float, float]:
        return 0.001 * (1 + batch % 3), 0.5

    def bounds(self, profile: Profile) -> dict[str, float]:
        return {"loss": 0.0005}


def made_up_profile() -> Profile:
    return bare(2)


def test_a_contestant_that_cannot_start_is_absent_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeContestant):
        def __init__(self, kind: str, *given: object) -> None:
            if kind == "no such kind":
                raise ContestantError("broken must run to its end, got code 1: KeyError: 'no such kind'")
            super().__init__(kind, *given)

    monkeypatch.setattr(comparing, "Contestant", Broken)
    broken = Peer("broken", "no such kind", best_environment=False)
    result = compare(load_model_by_name("tiny"), profile=made_up_profile(), topology=detect(), peers=(PEERS[0], broken), budget_s=0.1)
    assert {line.name for line in result.lines} == {"default", BASELINE}
    assert "KeyError: 'no such kind'" in result.absent["broken"]
    text = to_text(comparison(result, 100), 100)
    assert "not compared: broken" in text
    assert "over default" in text


def test_a_contestant_with_other_losses_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deviating(FakeContestant):
        def step(self, batch: int, config: str) -> tuple[float, float]:
            return super().step(batch, config)[0], 0.5 if self.kind == "ours" else 0.7

    monkeypatch.setattr(comparing, "Contestant", Deviating)
    result = compare(load_model_by_name("tiny"), profile=made_up_profile(), topology=detect(), peers=PEERS[:1], budget_s=0.1)
    assert [line.name for line in result.lines] == ["default"]
    assert result.absent[BASELINE] == "its loss 1 differs from ours by 4.0e-01, over 1.0e-04"
    assert any("without the baseline" in note for note in result.notes)


def test_adagrad_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"peers train with SGD, and so must the model, got adagrad \(tiny\); compare"):
        autotune.compare("tiny", changes=Changes(optimizer="adagrad"))


class InProcess:
    """A peer of `models.BUILDERS` that starts from given weights, in the place of its process."""

    def __init__(self, kind: str, model: Model, state: Mapping[str, torch.Tensor]) -> None:
        self.source, self.peer = make_source(model), BUILDERS[kind](model, {name: weight.clone() for name, weight in state.items()})

    def step(self, batch: int, config: str) -> tuple[float, float]:
        return 0.0, self.peer.step(self.peer.prepare(self.source.batch(batch)))


def test_in_bf16_who_computes_something_else_is_caught() -> None:
    tiny = load_model_by_name("tiny")
    model = tiny.changed(Changes(dtype="bf16"))
    dlrm, source = DLRM(model), make_source(model)
    # Tables as large as trained ones: as drawn, they hardly move the first losses.
    state = {name: weight * (10 if name.startswith("emb") else 1) for name, weight in dlrm.state_dict().items()}
    dlrm.load_state_dict(state)
    expected = [dlrm.step(source.batch(i)) for i in range(LOSS_STEPS)]

    def loss_error(model: Model, state: Mapping[str, torch.Tensor] = state) -> float:
        track = comparing._Track(InProcess("stock", model, state), "default")  # type: ignore[arg-type]
        track.check(expected, loss_tolerances("bf16"))
        return track.loss_error

    assert 0 < loss_error(model) < 2**-8
    first, second = (f"emb_l.{t}.weight" for t in range(2))
    others = {
        "one table halved": (model, state | {second: state[second] / 2}),
        "two tables exchanged": (model, state | {first: state[second], second: state[first]}),
        "no bias": (model, state | {"top_l.0.bias": torch.zeros_like(state["top_l.0.bias"])}),
        "twice the learning rate": (model.model_copy(update={"learning_rate": 2 * model.learning_rate}), state),
        "no update": (model.model_copy(update={"learning_rate": 1e-9}), state),
        "other data": (model.model_copy(update={"seed": 1}), state),
    }
    for what, given in others.items():
        with pytest.raises(ContestantError, match=r"its loss [123] differs from ours by"):
            pytest.fail(f"{what} passed: {loss_error(*given):.1e}")


def test_in_bf16_more_peers_fit_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tables are half of ours."""
    small, peers = load_model_by_name("small"), PEERS[:3]
    available = (2 * 3.4 + 3 * 2.45) * 2**30 / 0.85
    monkeypatch.setattr("autotune.comparing.room.available_memory_bytes", lambda topology: available)
    assert len(prepare(small, detect(), peers).groups) == 2
    assert len(prepare(small.changed(Changes(dtype="bf16")), detect(), peers).groups) == 1


def test_too_little_memory_is_said_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.comparing.room.available_memory_bytes", lambda topology: 1 << 30)
    with pytest.raises(MachineError, match=r"needs [0-9.]+ GiB of memory .* --max-rows"):
        compare(load_model_by_name("tiny"), profile=made_up_profile(), topology=detect(), peers=PEERS[:1])


def test_where_memory_is_short_ours_is_built_once_and_its_rounds_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "Contestant", FakeContestant)
    monkeypatch.setattr(FakeContestant, "started", [])
    monkeypatch.setattr(comparing, "room_bytes", lambda model, topology, needed_bytes: max(needed_bytes))
    peers = tuple(Peer(name, name, best_environment=True) for name in (BASELINE, "b", "c"))
    result = compare(load_model_by_name("tiny"), profile=made_up_profile(), topology=detect(), peers=peers, budget_s=0.1)
    assert FakeContestant.started == ["ours", BASELINE, "b", "c"]
    lines = {line.name: line for line in result.lines}
    assert {name: line.group for name, line in lines.items()} == {"default": 0, BASELINE: 0, "b": 1, "c": 2}
    assert lines["default"].iteration_s.samples == sum(lines[peer.name].iteration_s.samples for peer in peers)
    assert any("3 groups, each beside ours" in note for note in result.notes)


def test_a_peer_that_ends_in_its_rounds_is_absent_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mortal(FakeContestant):
        def step(self, batch: int, config: str) -> tuple[float, float]:
            self.steps = getattr(self, "steps", 0) + 1
            if self.kind == "b" and self.steps > 5:
                raise ContestantError("b must run to its end, got code 1: out of memory")
            return super().step(batch, config)

        @property
        def ended(self) -> bool:
            return self.kind == "b"

    monkeypatch.setattr(comparing, "Contestant", Mortal)
    peers = tuple(Peer(name, name, best_environment=True) for name in (BASELINE, "b"))
    result = compare(load_model_by_name("tiny"), profile=made_up_profile(), topology=detect(), peers=peers, budget_s=0.1)
    assert {line.name for line in result.lines} == {"default", BASELINE}
    assert "out of memory" in result.absent["b"]


@pytest.mark.parametrize(("capability", "dtype", "told"), [("AVX2", "bf16", True), ("AVX2", "fp32", False), ("AVX512", "bf16", False)])
def test_where_torch_is_slow_in_bf16_it_is_said(capability: str, dtype: str, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "Contestant", FakeContestant)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model = load_model_by_name("tiny").changed(Changes(dtype=dtype))
    result = compare(model, profile=made_up_profile(), topology=detect(), peers=PEERS[:1], budget_s=0.1)
    assert any(note.startswith("torch has no fast layers in bf16 on this CPU") for note in result.notes) == told


def test_the_time_left_is_shared_by_peers_and_later_building_is_set_aside() -> None:
    peers = tuple(Peer(name, name, best_environment=True) for name in "abc")
    needs = Preparation(groups=(peers[:2], peers[2:]), building_s=40.0)
    assert needs.share_s(100.0, 0) == pytest.approx((100 - 40 / 4) * 2 / 3)
    assert needs.share_s(30.0, 1) == 30.0
    assert Preparation(groups=((),), building_s=10.0).share_s(25.0, 0) == 25.0
    assert needs.share_s(-1.0, 1) == 0.0


def test_what_is_needed_is_said_with_an_estimate() -> None:
    peers = tuple(Peer(name, name, best_environment=True) for name in "abcd")
    needs = Preparation(groups=(peers[:2], peers[2:]), building_s=40.0)
    assert needs.words(300.0, 80.0) == (
        "of the budget of 300 s: the probe about 80 s (--cached-profile takes stored ceilings), building 5 models about 40 s "
        "(memory holds them in 2 groups); which leaves about 180 s for rounds"
    )
    assert "the probe" not in needs.words(300.0, 0.0)
    assert needs.words(30.0, 0.0).endswith("so only the least, 6 rounds, will run")


def test_a_process_that_ends_says_so() -> None:
    with pytest.raises(ContestantError, match=r"no such kind must run to its end, got code 1: KeyError: 'no such kind'"):
        Contestant("no such kind", load_model_by_name("tiny"), {}, dict(os.environ), (0,))


def test_a_contestant_has_every_core_though_openmp_has_bound_its_parent() -> None:
    allowed = os.sched_getaffinity(0)
    model = load_model_by_name("tiny").changed(Changes(max_rows=10, minibatch=2))
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with Contestant("ours", model, {}, dict(os.environ), sorted(allowed)) as contestant:
            assert contestant.threads == detect_with(allowed)
    finally:
        os.sched_setaffinity(0, allowed)


def detect_with(cpus: set[int]) -> int:
    """Physical cores among these CPUs."""
    os.sched_setaffinity(0, cpus)
    return detect().physical_cores
