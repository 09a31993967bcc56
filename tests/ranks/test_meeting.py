"""Ranks of a launcher meet, or end with a line that says what they waited for; what they talk through is checked before."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from autotune.errors import InputError, MachineError
from autotune.ranks import interfaces, meeting
from autotune.ranks.environment import Ranks
from autotune.ranks.interfaces import check_interface, check_loopback
from autotune.ranks.meeting import meet


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port, where ranks are to meet within a second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(number))
    monkeypatch.setenv("AUTOTUNE_START_S", "1")
    monkeypatch.setattr(meeting, "_SAY_AFTER_S", 0.3)
    return number


def place(rank: int, world: int = 2) -> Ranks:
    return Ranks(rank, world, rank, world, "torchrun")


def test_ranks_meet(port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AUTOTUNE_START_S", "60")
    monkeypatch.setattr(meeting, "_SAY_AFTER_S", 60.0)
    with ThreadPoolExecutor() as threads:
        stores = list(threads.map(lambda rank: meet(place(rank)), range(2)))
    assert len(stores) == 2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("own", "other"), [(0, 1), (1, 0)])
def test_a_rank_alone_says_what_it_waits_for_and_ends(port: int, own: int, other: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        MachineError, match=rf"127.0.0.1:{port} within 1 s \(AUTOTUNE_START_S\), got no rank {other}.*unset those variables"
    ):
        meet(place(own))
    told = capsys.readouterr().err
    assert told.count("waiting for") == 1
    assert f"waiting for rank {other} at 127.0.0.1:{port}, for at most 1 s" in told


@pytest.mark.parametrize("own", [0, 1])
def test_another_program_at_the_port_is_no_place_to_meet(port: int, own: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        accepted: list[socket.socket] = []
        threading.Thread(target=lambda: [accepted.append(server.accept()[0]) for _ in range(2)], daemon=True).start()
        with pytest.raises(MachineError, match=rf"at 127.0.0.1:{port}.*(choose another MASTER_PORT|with the same MASTER_ADDR)"):
            meet(place(own))
    for connection in accepted:
        connection.close()


@pytest.mark.parametrize("value", ["", "0", "65536", "-1", "http", "9" * 5000])
def test_a_port_that_is_none_is_refused(port: int, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", value)
    with pytest.raises(InputError, match=rf"from 1 to 65535, got '{value}' \(MASTER_PORT\)"):
        meet(place(0))


@pytest.mark.parametrize("value", ["a..b", "x" * 64 + ".example"])
def test_a_host_whose_name_can_be_none_is_refused(port: int, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", value)
    with pytest.raises(InputError, match=r"must have a name or an address, got '.*' \(MASTER_ADDR\)"):
        meet(place(0))


@pytest.fixture
def eth0_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "addresses", lambda: {"eth0": ("10.0.0.2",)})


@pytest.mark.usefixtures("eth0_alone")
@pytest.mark.parametrize("value", ["^lo", "eth", "eth0,lo", "eth0,", " eth0", "=eth0"])
def test_an_interface_that_is_none_is_refused_with_those_there_are(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", value)
    with pytest.raises(InputError) as refused:
        check_interface()
    assert f"got {value!r} (GLOO_SOCKET_IFNAME); there are eth0 (10.0.0.2)" in str(refused.value)


@pytest.mark.usefixtures("eth0_alone")
@pytest.mark.parametrize("value", ["eth0", "", None])
def test_an_interface_that_is_there_is_taken(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    if value is not None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", value)
    check_interface()


@pytest.mark.usefixtures("eth0_alone")
def test_without_loopback_several_ranks_are_refused() -> None:
    with pytest.raises(MachineError, match=r"lo must be up.*ip link set lo up.*--sockets 1"):
        check_loopback()
