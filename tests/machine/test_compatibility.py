from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autotune.config.model import Model
from autotune.errors import FingerprintError, InputError, MachineError
from autotune.machine.compatibility import check


@pytest.fixture
def config(fake: SimpleNamespace, tiny: Model) -> Any:
    return SimpleNamespace(
        model="tiny", model_hash=tiny.hash(), minibatch=64, sockets=1, fingerprint=fake.fingerprint(), config=fake.default_for()
    )


def test_the_same_machine_and_model_pass_without_notes(config: Any, tiny: Model, fake: SimpleNamespace) -> None:
    assert check(config, tiny, fake.fingerprint()) == []


def test_another_model_is_refused_even_when_forced(config: Any, tiny: Model, fake: SimpleNamespace) -> None:
    other = tiny.scaled(minibatch=32)
    with pytest.raises(FingerprintError) as error:
        check(config, other, fake.fingerprint(), force=True)
    assert tiny.hash()[:12] in str(error.value)
    assert f"here tiny[minibatch=32] ({other.hash()[:12]})" in str(error.value)


def test_an_edited_minibatch_is_refused(config: Any, tiny: Model, fake: SimpleNamespace) -> None:
    config.minibatch = 128
    with pytest.raises(FingerprintError, match="config 128, model tiny 64"):
        check(config, tiny, fake.fingerprint(), force=True)


def test_more_than_one_socket_is_refused(config: Any, tiny: Model, fake: SimpleNamespace) -> None:
    config.sockets = 2
    with pytest.raises(InputError, match="belongs to one number of sockets: config 2, here 1"):
        check(config, tiny, fake.fingerprint())


def test_other_hardware_is_named_and_refused(config: Any, tiny: Model, fake: SimpleNamespace) -> None:
    with pytest.raises(FingerprintError) as error:
        check(config, tiny, fake.fingerprint(l2_bytes=1 << 21, vendor="Other"))
    assert "l2_bytes: config 1048576, here 2097152" in str(error.value)
    assert "vendor: config Example, here Other" in str(error.value)
    assert "--force" in str(error.value)


def test_force_turns_the_differences_into_a_note(config: Any, tiny: Model, fake: SimpleNamespace) -> None:
    notes = check(config, tiny, fake.fingerprint(l2_bytes=1 << 21), force=True)
    assert notes == ["used on other hardware: l2_bytes: config 1048576, here 2097152"]


def test_missing_cores_cannot_be_forced(config: Any, tiny: Model, fake: SimpleNamespace) -> None:
    with pytest.raises(MachineError, match="must not exceed the 2 physical cores"):
        check(config, tiny, fake.fingerprint(2), force=True)


def test_other_software_is_a_note(config: Any, tiny: Model, fake: SimpleNamespace) -> None:
    here = fake.fingerprint().model_copy(update={"versions": {"torch": "2.14", "autotune": "0.1.0"}})
    assert check(config, tiny, here) == ["tuned with other software: torch: config 2.13, here 2.14"]
