"""The network interfaces of this host, and the one that the ranks talk through."""

from __future__ import annotations

import os
import socket

from autotune.errors import InputError, MachineError

VARIABLE = "GLOO_SOCKET_IFNAME"
LOOPBACK = "lo"


def interface() -> str:
    """The network interface that gloo is told to use; ``by host name`` where nobody told it."""
    return os.environ.get(VARIABLE) or "by host name"


def addresses() -> dict[str, tuple[str, ...]]:
    """Interfaces of this host that are up, with their IP addresses."""
    import psutil  # takes a moment, and one rank has no network

    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    families = (socket.AF_INET, socket.AF_INET6)
    own = {
        name: tuple(entry.address for entry in entries if entry.family in families)
        for name, entries in sorted(psutil.net_if_addrs().items())
        if name in up
    }
    return {name: numbers for name, numbers in own.items() if numbers}


def check_interface() -> None:
    """Raises: InputError: gloo is told to use an interface that this host does not have, or that is down."""
    wanted, here = os.environ.get(VARIABLE, ""), addresses()
    if any(name not in here for name in wanted.split(",") if wanted):
        known = ", ".join(f"{name} ({numbers[0]})" for name, numbers in here.items()) or "none"
        raise InputError(
            f"gloo's interfaces must be names of those that are up on this host, separated by commas, got {wanted!r} ({VARIABLE}); "
            f"there are {known}: name one that leads to the other ranks (a pattern such as ^lo is NCCL's), or unset the variable"
        )


def check_loopback() -> None:
    """Raises: MachineError: ranks of one host have nothing to talk through."""
    if LOOPBACK not in addresses():
        raise MachineError(
            f"ranks of one host talk over loopback, and the interface {LOOPBACK} must be up, got it down or without an address; "
            f"raise it (ip link set {LOOPBACK} up, as root of this network namespace), or run one rank with --sockets 1"
        )
