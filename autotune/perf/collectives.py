"""What collectives take on a network: latency and bandwidth fitted by the probe, or assumed where a profile has none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.config.network import Network, NetworkFit, Operation
from autotune.config.tuned import Prediction
from autotune.errors import InputError
from autotune.ops.base import Work

ASSUMED_BYTES_PER_S = 5e9
ASSUMED_LATENCY_S = 20e-6
_LEAST_SPREAD = 0.15
_ASSUMED_SPREAD = 0.7


def nearest_fit(network: Network, operation: Operation, form: str = "", ranks: int | None = None) -> NetworkFit:
    """The fit of an operation whose number of ranks is nearest to `ranks` in proportion; of two as near the larger, which is the slower.

    Args:
        form: of the all-to-all; any form where this one was not measured.
        ranks: None takes all of the network.

    Raises:
        InputError: the operation was not measured.
    """
    wanted = network.ranks if ranks is None else ranks
    fits = [fit for fit in network.fits if fit.operation == operation]
    fits = [fit for fit in fits if fit.form == form] or fits
    if not fits:
        raise InputError(f"a network profile must hold {operation}, got none; run autotune probe --sockets {wanted} --refresh")
    return _nearest(fits, wanted)


def _nearest(fits: Sequence[NetworkFit], ranks: int) -> NetworkFit:
    return min(fits, key=lambda fit: (abs(math.log(fit.ranks / ranks)), -fit.ranks))


def transfer_s(network: Network | None, work: Work, ranks: int) -> float:
    """Seconds that the network allows for what one rank sends, all ranks sending at once: latency x messages + bytes / bandwidth.

    An all-reduce takes the cheaper of the ring, whose messages `work` counts, and recursive doubling, which moves the same bytes in
    2 log2 W messages (R. Thakur, R. Rabenseifner, W. Gropp, 2005).

    Args:
        network: None assumes one of 5 GB/s and 20 us a message.
        ranks: that take part.
    """
    if not work.messages or ranks < 2:
        return 0.0
    operation: Operation = "all_to_all" if work.operation == "all_to_all" else "all_reduce"
    messages = work.messages if operation == "all_to_all" else min(work.messages, 2 * math.ceil(math.log2(ranks)))
    if network is None:
        return ASSUMED_LATENCY_S * messages + work.message_bytes / ASSUMED_BYTES_PER_S
    fit = nearest_fit(network, operation, work.form, ranks)
    return fit.latency_s * messages + work.message_bytes / fit.bandwidth_bytes_per_s


@dataclass(frozen=True)
class Collectives:
    """The transfers of a step among `ranks`, predicted."""

    network: Network | None
    ranks: int

    @property
    def compute_slowdown(self) -> float:
        """How much longer computing takes beside a transfer."""
        return max(1.0, self.network.together.compute_slowdown) if self.network else 1.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What the predictions rest on, where it was not measured."""
        if self.network is None:
            return ("the network is assumed: 5 GB/s and 20 us a message; probe --sockets measures it",)
        if self.ranks not in {fit.ranks for fit in self.network.fits}:
            nearest = _nearest(self.network.fits, self.ranks).ranks
            return (f"the network of {self.ranks} ranks is taken from that of {nearest}, with more messages",)
        return ()

    def time_s(self, works: Sequence[Work]) -> float:
        """One transfer in which rank r does ``works[r]``: that of the rank that takes longest."""
        return max(transfer_s(self.network, work, self.ranks) for work in works)

    def added_s(self, operation: Operation, size_bytes: float) -> float:
        """Seconds that bytes which one rank sends add to a transfer that goes out anyway."""
        if self.ranks < 2:
            return 0.0
        if self.network is None:
            return size_bytes / ASSUMED_BYTES_PER_S
        return size_bytes / nearest_fit(self.network, operation, "native", self.ranks).bandwidth_bytes_per_s

    def prediction(self, work: Work, time_s: float) -> Prediction:
        """A transfer's time with its interval: the residual of its fit."""
        spread = _ASSUMED_SPREAD
        if self.network is not None:
            operation: Operation = "all_to_all" if work.operation == "all_to_all" else "all_reduce"
            spread = max(_LEAST_SPREAD, nearest_fit(self.network, operation, work.form, self.ranks).worst)
        low_s, high_s = time_s * math.exp(-spread), time_s * math.exp(spread)
        return Prediction(low_s=low_s, time_s=time_s, high_s=high_s, extrapolated="; ".join(self.notes))
