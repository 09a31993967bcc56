from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from machines import fingerprint_of

from autotune import catalog
from autotune.config.knobs import RunConfig
from autotune.config.model import Changes, Model
from autotune.errors import FingerprintError, InputError, MachineError
from autotune.machine.compatibility import check


@pytest.fixture
def tiny() -> Model:
    return catalog.load_model_by_name("tiny")


@pytest.fixture
def config(tiny: Model) -> Any:
    return SimpleNamespace(
        model="tiny", model_hash=tiny.hash(), minibatch=64, sockets=1, fingerprint=fingerprint_of(), config=RunConfig(threads=4)
    )


def test_the_same_machine_and_model_pass_without_notes(config: Any, tiny: Model) -> None:
    assert check(config, tiny, fingerprint_of()) == []


def test_another_model_is_refused_even_when_forced(config: Any, tiny: Model) -> None:
    other = tiny.changed(Changes(minibatch=32))
    with pytest.raises(FingerprintError) as error:
        check(config, other, fingerprint_of(), force=True)
    assert tiny.hash()[:12] in str(error.value)
    assert f"here tiny[minibatch=32] ({other.hash()[:12]})" in str(error.value)


def test_an_edited_minibatch_is_refused(config: Any, tiny: Model) -> None:
    config.minibatch = 128
    with pytest.raises(FingerprintError, match="config 128, model tiny 64"):
        check(config, tiny, fingerprint_of(), force=True)


def test_more_than_one_socket_is_refused(config: Any, tiny: Model) -> None:
    config.sockets = 2
    with pytest.raises(InputError, match="belongs to one number of sockets: config 2, here 1"):
        check(config, tiny, fingerprint_of())


def test_other_hardware_is_named_and_refused(config: Any, tiny: Model) -> None:
    with pytest.raises(FingerprintError) as error:
        check(config, tiny, fingerprint_of(l2_bytes=1 << 21, vendor="Other"))
    assert "l2_bytes: config 1048576, here 2097152" in str(error.value)
    assert "vendor: config Example, here Other" in str(error.value)
    assert "--force" in str(error.value)


def test_force_turns_the_differences_into_a_note(config: Any, tiny: Model) -> None:
    notes = check(config, tiny, fingerprint_of(l2_bytes=1 << 21), force=True)
    assert notes == ["used on other hardware: l2_bytes: config 1048576, here 2097152"]


def test_missing_cores_cannot_be_forced(config: Any, tiny: Model) -> None:
    with pytest.raises(MachineError, match="must not exceed the 2 physical cores"):
        check(config, tiny, fingerprint_of(2), force=True)


def test_other_software_is_a_note(config: Any, tiny: Model) -> None:
    here = fingerprint_of().model_copy(update={"versions": {"torch": "2.14", "autotune": "0.1.0"}})
    assert check(config, tiny, here) == ["tuned with other software: torch: config 2.13, here 2.14"]
