from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from autotune.bench.progress import Progress
from autotune.config.files import load_profile, write_yaml
from autotune.config.profile import PROFILE_SCHEMA, Ceilings, Profile
from autotune.machine.topology import detect, fingerprint, hardware_id
from autotune.ops.native import kernels
from autotune.probing.store import load_or_probe

HERE = fingerprint(detect(), kernels.target())
NO_CEILINGS = Ceilings(fma=(), gemm=(), stream=(), gather=(), scatter=(), fork_join=())


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def phase(self, name: str, total: float | None) -> None:
        pass

    def advance(self, amount: float, detail: str = "") -> None:
        pass

    def note(self, message: str) -> None:
        self.notes.append(message)


class Probe:
    """Measures nothing, and counts how often."""

    def __init__(self, **changes: Any) -> None:
        self.calls = 0
        self._changes = changes

    def __call__(self, *, progress: Progress) -> Profile:
        self.calls += 1
        return made(name=f"probe {self.calls}", **self._changes)


def made(**changes: Any) -> Profile:
    values = {"schema": PROFILE_SCHEMA, "name": "cached", "source": "test", "created": "2025-01-01T00:00:00Z", "fingerprint": HERE}
    return Profile(**(values | {"ceilings": NO_CEILINGS} | changes))


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that this hardware's profile is cached in; not there yet."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "profiles" / f"{hardware_id(HERE)}.yaml"


def test_the_first_call_probes_and_the_second_reads(cached: Path) -> None:
    probe = Probe()
    first, second = load_or_probe(measure=probe), load_or_probe(measure=probe)
    assert probe.calls == 1
    assert first == second == load_profile(cached)
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]


def test_refresh_probes_anew_and_replaces_the_file(cached: Path) -> None:
    probe = Probe()
    load_or_probe(measure=probe)
    assert load_or_probe(refresh=True, measure=probe).name == "probe 2"
    assert load_profile(cached).name == "probe 2"


@pytest.mark.parametrize("text", ["", "schema: [", "schema: 1\nname: half a file\n", "\x00\xff", "- 1\n", "schema: 0\n"])
def test_a_file_that_cannot_be_read_is_replaced_with_a_note(cached: Path, text: str) -> None:
    cached.parent.mkdir(parents=True)
    cached.write_bytes(text.encode("latin-1"))
    notes = Notes()
    assert load_or_probe(measure=Probe(), progress=notes).name == "probe 1"
    assert len(notes.notes) == 1
    assert "probing anew" in notes.notes[0]
    assert load_profile(cached).name == "probe 1"


def test_a_profile_of_a_newer_version_stays_and_ours_lies_beside_it(cached: Path) -> None:
    cached.parent.mkdir(parents=True)
    cached.write_text("schema: 99\nfuture: true\n")
    probe, notes = Probe(), Notes()
    first, second = (load_or_probe(measure=probe, progress=notes) for _ in range(2))
    assert first == second
    assert probe.calls == 1
    assert cached.read_text() == "schema: 99\nfuture: true\n"
    assert load_profile(cached.with_name(f"{cached.stem}.schema-{PROFILE_SCHEMA}.yaml")) == first


def test_a_profile_of_an_older_schema_is_replaced_with_a_note(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_probe(measure=Probe())
    monkeypatch.setattr("autotune.probing.store.PROFILE_SCHEMA", PROFILE_SCHEMA + 1)
    notes = Notes()
    probe = Probe()
    load_or_probe(measure=probe, progress=notes)
    assert probe.calls == 1
    assert f"schema: {PROFILE_SCHEMA}, now {PROFILE_SCHEMA + 1}" in notes.notes[0]


@pytest.mark.parametrize(
    ("fingerprint", "named"),
    [
        (HERE.model_copy(update={"topology": HERE.topology.model_copy(update={"l2_bytes": 1})}), "l2_bytes"),
        (HERE.model_copy(update={"versions": HERE.versions | {"autotune": "0.0.1"}}), "autotune"),
    ],
)
def test_a_profile_of_another_machine_or_release_is_replaced_with_a_note(cached: Path, fingerprint: Any, named: str) -> None:
    cached.parent.mkdir(parents=True)
    write_yaml(cached, made(fingerprint=fingerprint))
    notes = Notes()
    assert load_or_probe(measure=Probe(), progress=notes).name == "probe 1"
    assert named in notes.notes[0]


def store(path: Path, profile: Profile) -> None:
    path.parent.mkdir(parents=True)
    write_yaml(path, profile)


def test_a_disturbed_profile_is_measured_again_and_replaced(cached: Path) -> None:
    store(cached, made(disturbed=55 / 58))
    notes = Notes()
    assert load_or_probe(measure=Probe(), progress=notes).name == "probe 1"
    assert notes.notes == ["95% of the cached profile's ceilings were disturbed while they were measured, probing anew"]
    assert load_profile(cached).name == "probe 1"


def test_a_profile_that_stays_disturbed_says_so_to_every_command_that_uses_it(cached: Path) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    probe = Probe(disturbed=0.9, created=now)
    store(cached, made(disturbed=55 / 58))
    notes = Notes()
    assert load_or_probe(measure=probe, progress=notes).is_disturbed
    assert "90% of its ceilings varied" in notes.notes[-1]
    # Not every command of a session probes again.
    notes = Notes()
    assert load_or_probe(measure=probe, progress=notes).warnings == tuple(notes.notes)
    assert probe.calls == 1
    assert "--refresh" in notes.notes[0]


@pytest.mark.parametrize("created", ["yesterday", "2025-01-01T00:00:00"])
def test_a_disturbed_profile_without_a_date_is_measured_again(cached: Path, created: str) -> None:
    store(cached, made(disturbed=0.9, created=created))
    assert load_or_probe(measure=Probe()).name == "probe 1"


def test_a_few_disturbed_ceilings_are_no_reason_to_probe(cached: Path) -> None:
    store(cached, made(disturbed=0.3))
    notes = Notes()
    assert load_or_probe(measure=Probe(), progress=notes).name == "cached"
    assert notes.notes == []


def test_another_torch_is_no_reason_to_probe(cached: Path) -> None:
    cached.parent.mkdir(parents=True)
    write_yaml(cached, made(fingerprint=HERE.model_copy(update={"versions": HERE.versions | {"torch": "1.0"}})))
    assert load_or_probe(measure=Probe()).name == "cached"


def test_a_cache_folder_that_cannot_be_written_costs_a_note_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "file" / "below"))
    notes = Notes()
    assert load_or_probe(measure=Probe(), progress=notes).name == "probe 1"
    assert "AUTOTUNE_CACHE" in notes.notes[-1]


def test_a_folder_in_the_place_of_the_file_costs_notes_only(cached: Path) -> None:
    cached.mkdir(parents=True)
    notes = Notes()
    assert load_or_probe(measure=Probe(), progress=notes).name == "probe 1"
    assert notes.notes


def test_no_home_folder_costs_a_note_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError

    for name in ("AUTOTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    notes = Notes()
    assert load_or_probe(measure=Probe(), progress=notes).name == "probe 1"
    assert "home folder" in notes.notes[0]
