"""What the measured network allows for a piece of work."""

from __future__ import annotations

from autotune.config.network import Network, NetworkFit, Operation
from autotune.errors import InputError


def best_fit(network: Network, operation: Operation, form: str = "", ranks: int | None = None) -> NetworkFit:
    """The fit of an operation, of the number of ranks nearest to `ranks` (default: all); any form where `form` was not measured.

    Raises:
        InputError: the operation was not measured.
    """
    wanted = network.ranks if ranks is None else ranks
    found = [one for one in network.fits if one.operation == operation]
    found = [one for one in found if one.form == form] or found
    if not found:
        raise InputError(f"a network profile must hold {operation}, got none; run autotune probe --sockets {wanted} --refresh")
    return min(found, key=lambda one: abs(one.ranks - wanted))


def transfer_s(network: Network, operation: Operation, messages: int, message_bytes: int, form: str = "") -> float:
    """Seconds that the network allows for what one rank sends, all ranks sending at once. Raises as `best_fit`."""
    if not messages:
        return 0.0
    one = best_fit(network, operation, form)
    return one.latency_s * messages + message_bytes / one.bandwidth_bytes_per_s
