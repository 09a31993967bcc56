"""The per-operator table of a running model: rows that add up, and what each is held against."""

from typing import get_args

import pytest
import torch

from autotune.bench.noise import NoiseMonitor
from autotune.catalog import load_model_by_name
from autotune.config.knobs import RunConfig
from autotune.config.profile import Ceilings, ComputePoint, Fingerprint, Profile, RowPoint, StreamPoint, TimePoint
from autotune.config.tuned import Interval
from autotune.data.batches import make_source
from autotune.dlrm.defaults import default_config
from autotune.dlrm.model import DLRM
from autotune.errors import InputError
from autotune.machine.topology import detect
from autotune.ops.layer import LayerKnobs
from autotune.ops.layer_case import LayerCase
from autotune.perf.measure import profile_passes, timed_steps
from autotune.perf.perturb import _judge, perturb
from autotune.perf.table import OTHER, OperatorTable
from autotune.ranks.lockstep import Lockstep

MODEL = load_model_by_name("tiny")
KINDS = get_args(StreamPoint.model_fields["kind"].annotation)


@pytest.fixture(scope="module")
def profile() -> Profile:
    rows = tuple(
        RowPoint(row_bytes=width, working_set_bytes=size, threads=1, bandwidth_bytes_per_s=1e10)
        for width in (64, 1024)
        for size in (1 << 16, 1 << 30)
    )
    ceilings = Ceilings(
        fma=(ComputePoint(threads=1, flops_per_s=1e11),),
        gemm=(ComputePoint(threads=1, flops_per_s=9e10),),
        stream=tuple(StreamPoint(kind=kind, threads=1, bandwidth_bytes_per_s=1e10) for kind in KINDS),
        gather=rows,
        scatter=rows,
        fork_join=(TimePoint(threads=1, time_s=1e-6),),
    )
    fingerprint = Fingerprint(topology=detect(), kernel="test", versions={}, target="scalar")
    return Profile(name="test", source="made up", created="2026-01-01T00:00:00Z", fingerprint=fingerprint, ceilings=ceilings)


@pytest.fixture(scope="module")
def lockstep() -> Lockstep:
    return Lockstep(MODEL, default_config(MODEL), make_source(MODEL))


@pytest.fixture(scope="module")
def dlrm(lockstep: Lockstep) -> DLRM:
    return lockstep.dlrm


@pytest.fixture(scope="module")
def table(lockstep: Lockstep, profile: Profile) -> OperatorTable:
    return profile_passes(lockstep, profile, rounds=12)


def test_every_pass_has_a_row_and_the_rest_comes_last(dlrm: DLRM, table: OperatorTable) -> None:
    assert {row.operator for row in table.rows} == {*dlrm.config.operators, "loss", "bottom_mlp.mask", OTHER}
    assert table.rows[-1].operator == OTHER
    assert len(table.rows) == len({row.operator for row in table.rows})


def test_a_rows_figures_follow_from_its_work_and_time(dlrm: DLRM, table: OperatorTable) -> None:
    works = {op.key: op.work() for op in dlrm.operators(make_source(MODEL))}
    for row in table.rows[:-1]:
        work = works[row.operator]
        assert row.flops == work.flops
        assert row.bytes == work.bytes
        assert row.flops_per_s == pytest.approx(work.flops / row.time_s.median)
        assert row.share == pytest.approx(row.time_s.median / table.iteration_s.median)
        assert set(row.fractions) == {"memory", "compute", "network"} or set(row.fractions) == {"memory", "compute"}


def test_the_frame_has_a_line_per_row(table: OperatorTable) -> None:
    frame = table.frame()
    assert list(frame["operator"]) == [row.operator for row in table.rows]
    assert (frame["time_s_low"] <= frame["time_s"]).all()
    assert (frame["time_s"] <= frame["time_s_high"]).all()


def test_rounds_and_budget_bound_the_samples(lockstep: Lockstep, profile: Profile) -> None:
    assert profile_passes(lockstep, profile, rounds=4).iteration_s.samples == 4
    assert profile_passes(lockstep, profile, rounds=100_000, budget_s=0.01).iteration_s.samples < 100_000
    with pytest.raises(InputError, match="rounds must be at least 1, got 0"):
        profile_passes(lockstep, profile, rounds=0)


def test_perturbing_covers_every_pass_and_leaves_the_weights(lockstep: Lockstep, dlrm: DLRM, table: OperatorTable) -> None:
    before = {name: weight.clone() for name, weight in dlrm.state_dict().items()}
    found = perturb(lockstep, table, cache_bytes=1 << 20, rounds=3)
    assert {p.operator for p in found} == {row.operator for row in table.rows} - {OTHER}
    assert all((weight == before[name]).all() for name, weight in dlrm.state_dict().items())


def test_fewer_threads_are_fewer_for_torch_too(
    lockstep: Lockstep, dlrm: DLRM, table: OperatorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [key for key, knobs in dlrm.config.operators.items() if isinstance(knobs, LayerKnobs)]
    torch_layers = {key: LayerKnobs(implementation="torch") for key in layers}
    seen: set[tuple[int, int]] = set()
    run = LayerCase.run
    monkeypatch.setattr(LayerCase, "run", lambda *call: (seen.add((call[2], torch.get_num_threads())), run(*call)))
    before = dlrm.config
    dlrm.configure(RunConfig(threads=2, operators=torch_layers))
    try:
        perturb(lockstep, table, cache_bytes=1 << 20, rounds=1)
        assert seen == {(2, 2), (1, 1)}
        assert torch.get_num_threads() == 2
    finally:
        dlrm.configure(before)


def at(median: float) -> Interval:
    return Interval(median=median, low=median, high=median, samples=9)


@pytest.mark.parametrize(
    ("binder", "gain", "loss", "resident", "agrees"),
    [
        ("memory", 2.0, 2.0, True, True),  # residence helps
        ("memory", 1.0, 1.1, True, True),  # half the threads do as well: saturated
        ("memory", 1.0, 2.0, True, False),  # neither
        ("memory", 1.0, 2.0, False, None),  # cannot be made resident, and threads scale: nothing is shown
        ("compute", 1.0, 2.0, True, True),
        ("compute", 2.0, 2.0, True, False),  # residence should not help
        ("compute", 1.0, 1.1, True, False),  # threads should
        ("none", 1.0, 1.0, True, None),
    ],
)
def test_a_verdict_is_held_against_what_perturbation_shows(binder, gain, loss, resident, agrees) -> None:
    assert _judge("x", binder, at(gain), at(loss), 2.0, resident).agrees is agrees


def test_rows_that_do_not_add_up_are_said_to(lockstep: Lockstep, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.perf.rows._ADDS_UP", -1.0)
    assert any("of the iteration's" in note for note in profile_passes(lockstep, profile, rounds=1).notes)


class _Disturbed(NoiseMonitor):
    """The second and the third step are disturbed."""

    count = 0

    def after(self) -> str:
        self.count += 1
        return "noise" if self.count in (2, 3) else ""


def test_disturbed_steps_are_repeated_and_keep_their_place_in_the_history(lockstep: Lockstep, dlrm: DLRM) -> None:
    steps, notes = timed_steps(lockstep, [_Disturbed()], rounds=3)
    assert len(steps.passes_s) == 5
    assert steps.counted == [0, 3, 4]
    assert steps.back == (5, 2, 1)
    assert steps.typical in steps.back
    assert len(steps.iterations_s) == 3
    assert notes == ("2 of 5 rounds were disturbed (noise): 2 measured again, 0 kept",)
    spans = dlrm.recorder.history[-steps.typical]
    assert {key for key, _, _ in spans} == set(steps.passes_s[-steps.typical])
    assert not dlrm.recorder.watched


def test_a_batch_that_points_outside_its_table_is_named(lockstep: Lockstep, dlrm: DLRM, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(batch: object) -> float:
        raise IndexError("an index must lie inside its table")

    monkeypatch.setattr(dlrm, "step", step)
    with pytest.raises(InputError, match=r"inside its table .*: batch 0\)"):
        timed_steps(lockstep, [], rounds=3)
    assert not dlrm.recorder.watched


def test_a_disturbed_profile_is_the_first_note(lockstep: Lockstep, profile: Profile) -> None:
    disturbed = profile.model_copy(update={"disturbed": 0.9})
    assert profile_passes(lockstep, disturbed, rounds=3).notes[0] == disturbed.warnings[0]
