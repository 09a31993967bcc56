from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from machines import made_up_profile

from autotune.api import tune, verify
from autotune.config.files import load_tuned, load_tuned_and_record
from autotune.config.knobs import RunConfig
from autotune.config.model import Changes, Model
from autotune.config.tuned import RaceResult, TunedConfig
from autotune.data.batches import make_source
from autotune.dlrm.defaults import in_full
from autotune.dlrm.model import DLRM
from autotune.errors import FingerprintError, InputError, MachineError
from autotune.machine.topology import detect, fingerprint
from autotune.ops.native import kernels
from autotune.perf.measure import profile_passes
from autotune.perf.table import OperatorTable
from autotune.tuning.budget import FLOORS, Deadline, Phase
from autotune.tuning.journal import Journal
from autotune.tuning.objective import Bench, Paired
from autotune.tuning.races import OperatorRace
from autotune.tuning.study import study_name


@pytest.mark.parametrize(("sockets", "words"), [(0, "1 or more, got 0"), (-1, "1 or more")])
def test_sockets_are_counted_from_one(tiny: Model, tmp_path: Path, sockets: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tune(tiny, sockets=sockets, output=tmp_path / "a.yaml")


def test_an_output_that_cannot_be_written_is_refused_at_once(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="output folder does not exist"):
        tune(tiny, output=tmp_path / "nowhere" / "a.yaml")


def test_a_budget_that_is_none_is_refused(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="budget must be positive"):
        tune(tiny, budget_s=0.0, output=tmp_path / "a.yaml")


def test_a_model_too_large_is_refused_before_anything_is_made(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.ranks.session.available_memory_bytes", lambda topology: 1000)
    with pytest.raises(MachineError, match="must fit the memory available"):
        tune(tiny, output=tmp_path / "a.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_profile_of_other_hardware_is_refused(tiny: Model, tmp_path: Path, fake: SimpleNamespace) -> None:
    profile = made_up_profile().model_copy(update={"fingerprint": fake.fingerprint(7)})
    with pytest.raises(FingerprintError, match="made-up differs: cpu_model"):
        tune(tiny, output=tmp_path / "a.yaml", profile=profile)


def test_the_study_is_named_by_all_that_matters(tiny: Model, fake: SimpleNamespace) -> None:
    def name(model: Model = tiny, cores: int = 4, sockets: int = 1, seed: int = 0, text: str = "uniform") -> str:
        source: Any = SimpleNamespace(description=text)
        return study_name(model, fake.fingerprint(cores), source, sockets=sockets, seed=seed)

    names = [name(), name(tiny.changed(Changes(minibatch=32))), name(cores=2), name(sockets=2), name(seed=1), name(text="Zipf")]
    assert len(set(names)) == len(names)
    assert name() == name()


BUDGET_S = 4.0


class Ledger:
    """What the phases of a tuning run are granted and what its work asks for: seconds that no busy machine stretches."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.granted: list[tuple[float, float]] = []
        """Seconds of a phase, and what was left of the budget, with what a phase gets when nothing is left."""
        self.asked: list[tuple[float, float]] = []
        """Seconds that work was given, and those of the phase."""
        phase_s, compare, run = Deadline.phase_s, Bench.compare, OperatorRace.run

        def grant(deadline: Deadline, phase: Phase) -> float:
            left_s = max(deadline.left_s, FLOORS[phase] * deadline.budget_s)
            self.granted.append((phase_s(deadline, phase), left_s))
            return self.granted[-1][0]

        def compare_within(bench: Bench, *configs: RunConfig, budget_s: float, **limits: Any) -> Paired:
            self.ask(budget_s)
            return compare(bench, *configs, budget_s=budget_s, **limits)

        def race_within(race: OperatorRace) -> RaceResult:
            self.ask(race.budget_s)
            return run(race)

        def profile_within(*args: Any, budget_s: float, **limits: Any) -> OperatorTable:
            self.ask(budget_s)
            return profile_passes(*args, budget_s=budget_s, **limits)

        patch.setattr(Deadline, "phase_s", grant)
        patch.setattr(Bench, "compare", compare_within)
        patch.setattr(OperatorRace, "run", race_within)
        patch.setattr("autotune.tuning.study.profile_passes", profile_within)

    def ask(self, budget_s: float) -> None:
        self.asked.append((budget_s, self.granted[-1][0] if self.granted else BUDGET_S))


Tuned = tuple[TunedConfig, Path, Ledger]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    from autotune import catalog

    output = tmp_path_factory.mktemp("tuned") / "tiny.tuned.yaml"
    with pytest.MonkeyPatch.context() as patch:
        ledger = Ledger(patch)
        config = tune(catalog.load_model_by_name("tiny"), budget_s=BUDGET_S, output=output, profile=made_up_profile())
    return config, output, ledger


def test_no_work_is_asked_for_once_the_budget_is_spent(tuned: Tuned) -> None:
    """That each piece of work keeps what it is given is tested on a clock of its own."""
    ledger = tuned[2]
    assert all(seconds <= left_s for seconds, left_s in ledger.granted)
    assert len(ledger.asked) >= 3  # a first look, the confirmation and the table, however slow the machine is
    assert all(0.0 < seconds <= phase_s for seconds, phase_s in ledger.asked)


def test_tiny_is_tuned_end_to_end_within_the_budget(tuned: Tuned) -> None:
    config, output, _ = tuned
    assert load_tuned_and_record(output) == config
    assert {path.name for path in output.parent.iterdir()} == {"tiny.tuned.yaml", "tiny.record.json"}
    assert len(output.read_text().splitlines()) < 120
    assert len(config.verdicts) > 5
    assert config.launch.threads == config.config.threads == len(config.launch.cpus)
    assert output.read_text().startswith("schema: 3")
    assert [use.table for use in config.tables] == sorted({use.table for use in config.tables})
    assert len(config.tables) > 1
    assert {span.operator for span in config.timeline} == {verdict.operator for verdict in config.verdicts} - {"other"}


def test_a_run_uses_exactly_what_the_config_says(tuned: Tuned, tiny: Model) -> None:
    assert DLRM(tiny, tuned[0].config, machine=detect()).config == tuned[0].config
    full, notes = in_full(load_tuned(tuned[1]), tiny)
    assert full.config == tuned[0].config
    assert notes == ()


def test_a_tuned_config_can_be_verified(tuned: Tuned) -> None:
    found = verify(tuned[0], budget_s=2.0)
    assert found.speedup.samples >= 1
    assert "claim" in found.reason


def test_what_ends_a_race_leaves_a_journal_and_no_half_written_file(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a kill does too is tested with the command."""
    output = tmp_path / "tiny.tuned.yaml"
    journal = tmp_path / "tiny.tuned.yaml.journal"
    run = OperatorRace.run

    def ended(race: OperatorRace) -> RaceResult:
        if b"race:" in journal.read_bytes():
            raise MemoryError
        return run(race)

    with monkeypatch.context() as patch:
        patch.setattr(OperatorRace, "run", ended)
        with pytest.raises(MemoryError):
            tune(tiny, budget_s=60.0, output=output, profile=made_up_profile())
    assert {path.name for path in tmp_path.iterdir()} == {journal.name}
    here = fingerprint(detect(), kernels.target())
    with Journal(journal, study_name(tiny, here, make_source(tiny), sockets=1, seed=0)) as opened:
        assert opened.resumed
    config = tune(tiny, budget_s=3.0, output=output, profile=made_up_profile())
    assert any(note.startswith("resumed from tiny.tuned.yaml.journal: ") for note in config.provenance.notes)
    assert load_tuned_and_record(output) == config
    assert not journal.exists()
