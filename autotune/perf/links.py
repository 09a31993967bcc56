"""What the network takes for the exchanges of a step, from the fits of a profile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autotune.config.network import Network, NetworkFit, Operation
from autotune.config.partition import CommunicationKnobs
from autotune.config.tuned import Prediction
from autotune.ops import all_reduce, all_to_all
from autotune.ops.base import Work
from autotune.perf.rank_steps import RankShape
from autotune.perf.timeline import Transfers

if TYPE_CHECKING:
    from autotune.perf.estimate import OperatorEstimate

# Where a profile has no network: what the planner assumes too.
_ASSUMED_BYTES_PER_S = 5e9
_ASSUMED_LATENCY_S = 20e-6
_LEAST_SPREAD = 0.15
_ASSUMED_SPREAD = 0.7
_WORDS = {"all_to_all": "all-to-all", "all_reduce": "all-reduce"}


@dataclass
class Links:
    """The network among `ranks`.

    Args:
        network: None assumes one.
        ranks: That talk.
        knobs: Form, overlap and wire dtype.
    """

    network: Network | None
    ranks: int
    knobs: CommunicationKnobs
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.network is None:
            self.notes = ("the network is assumed: 5 GB/s and 20 us a message; probe --sockets measures it",)
            return
        known = {fit.ranks for fit in self.network.fits}
        if self.ranks not in known:
            nearest = self._nearest(self.network.fits).ranks
            self.notes = (f"the network of {self.ranks} ranks is taken from that of {nearest}, with more messages",)

    def transfers(self, shapes: Sequence[RankShape]) -> Transfers:
        """Of the rank that sends most."""
        forward = max(self._time_s("all_to_all", one.messages[0], one.sent_forward_bytes) for one in shapes)
        backward = max(self._time_s("all_to_all", one.messages[1], one.sent_backward_bytes) for one in shapes)
        buckets = tuple((after, self._reduce_s(size)) for after, size in shapes[0].reduced)
        slowdown = max(1.0, self.network.together.compute_slowdown) if self.network else 1.0
        return Transfers(forward, backward, buckets, self.knobs.overlap, slowdown)

    def operators(self, shape: RankShape, transfers: Transfers, exposed: Mapping[str, float]) -> tuple[OperatorEstimate, ...]:
        """The exchanges as rows, as one rank meets them."""
        from autotune.perf.estimate import OperatorEstimate

        reduced = sum(size for _, size in shape.reduced)
        ring = 2 * (self.ranks - 1)
        rows = (
            (all_to_all.FORWARD, transfers.forward_s, "all_to_all", shape.messages[0], shape.sent_forward_bytes),
            (all_to_all.BACKWARD, transfers.backward_s, "all_to_all", shape.messages[1], shape.sent_backward_bytes),
            (
                all_reduce.KEY, sum(time_s for _, time_s in transfers.reduced), "all_reduce", ring * len(shape.reduced),
                ring * reduced // self.ranks,
            ),
        )  # fmt: skip
        found = []
        for key, time_s, operation, messages, size in rows:
            spread = self._spread(operation)
            waited_s = exposed.get(key, 0.0)
            work = Work(0, 0, 0, operation=operation, messages=messages, message_bytes=size, parallel_regions=0)
            prediction = Prediction(
                low_s=time_s * math.exp(-spread), time_s=time_s, high_s=time_s * math.exp(spread), extrapolated="; ".join(self.notes)
            )
            hidden_s = max(0.0, time_s - waited_s)
            found.append(OperatorEstimate(key, "network", prediction, "network", {"network": time_s}, waited_s, hidden_s, work))
        return tuple(found)

    def _time_s(self, operation: Operation, messages: int, size_bytes: int) -> float:
        if not messages:
            return 0.0
        fit = self._fit(operation)
        if fit is None:
            return _ASSUMED_LATENCY_S * messages + size_bytes / _ASSUMED_BYTES_PER_S
        return fit.latency_s * messages + size_bytes / fit.bandwidth_bytes_per_s

    def _reduce_s(self, size_bytes: int) -> float:
        """Every rank sends 2 (W-1)/W of the bytes in 2 (W-1) messages, around a ring; a tree takes fewer where latency rules."""
        ring, sent = 2 * (self.ranks - 1), 2 * (self.ranks - 1) * size_bytes // self.ranks
        around = self._time_s("all_reduce", ring, sent)
        # Recursive doubling halves and doubles the data: 2 log2 W messages for the same bytes (R. Thakur, R. Rabenseifner, W. Gropp, 2005).
        return min(around, self._time_s("all_reduce", 2 * math.ceil(math.log2(self.ranks)), sent))

    def _fit(self, operation: Operation) -> NetworkFit | None:
        if self.network is None:
            return None
        of = [fit for fit in self.network.fits if fit.operation == operation]
        formed = [fit for fit in of if fit.form == self.knobs.all_to_all]
        return self._nearest(formed or of) if of else None

    def _nearest(self, fits: Sequence[NetworkFit]) -> NetworkFit:
        """Of as many ranks, in proportion; of two as near the larger, which is the slower."""
        return min(fits, key=lambda fit: (abs(math.log(fit.ranks / self.ranks)), -fit.ranks))

    def _spread(self, operation: str) -> float:
        fit = self._fit("all_to_all" if operation == "all_to_all" else "all_reduce")
        return _ASSUMED_SPREAD if fit is None else max(_LEAST_SPREAD, fit.worst)
