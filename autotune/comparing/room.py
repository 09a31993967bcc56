"""Memory that a comparison takes, and the groups of peers that fit into it side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from autotune.comparing.peers import DEFAULT, DEFAULT_IN_FP32, OWN, Peer
from autotune.config.model import Changes, Model
from autotune.config.profile import Topology
from autotune.config.required_memory import required_memory_bytes
from autotune.errors import MachineError
from autotune.machine.memory import available_memory_bytes
from autotune.units import format_bytes

_PROCESS_BYTES = 1 << 30
"""What torch and the libraries of a peer take beside a model."""
_MEMORY_SHARE = 0.85
"""Share of memory that may be filled."""


def trained(model: Model, peer: Peer) -> Model:
    """The model that a contestant trains."""
    return model.changed(Changes(dtype="fp32")) if peer is DEFAULT_IN_FP32 else model


def memory_bytes(model: Model, peer: Peer) -> int:
    """What a contestant needs once it is built: a peer's bf16 tables have no lower halves."""
    narrow = model.dtype == "bf16" and peer.kind != OWN
    held = model.changed(Changes(table_storage="stochastic")) if narrow else trained(model, peer)
    return required_memory_bytes(held) + _PROCESS_BYTES


def room_bytes(model: Model, topology: Topology, needed_bytes: Sequence[float]) -> float:
    """Memory for peers beside ours, and beside one more of ours in fp32: a peer's model is copied from it.

    Raises:
        MachineError: not even one of the peers that need `needed_bytes` fits.
    """
    ours = memory_bytes(model, DEFAULT)
    available = available_memory_bytes(topology)
    copied = required_memory_bytes(model.changed(Changes(dtype="fp32"))) + _PROCESS_BYTES
    room = _MEMORY_SHARE * available - ours - copied
    largest = max(needed_bytes, default=0)
    if room < largest:
        least = (ours + copied + largest) / _MEMORY_SHARE
        raise MachineError(
            f"a comparison needs {format_bytes(least)} of memory for ours, a peer and a copy between them, "
            f"got {format_bytes(available)} available; compare fewer rows with --max-rows"
        )
    return room


def groups(peers: Sequence[Peer], needed_bytes: Sequence[float], room_bytes: float) -> tuple[tuple[Peer, ...], ...]:
    """Peers in their order, parted evenly into as few groups as fit into memory.

    Args:
        needed_bytes: By each peer; `room_bytes` holds the largest.
    """
    for count in range(1, max(2, len(peers) + 1)):
        bounds = [len(peers) * number // count for number in range(count + 1)]
        parts = [slice(*ends) for ends in itertools.pairwise(bounds)]
        if all(sum(needed_bytes[part]) <= room_bytes for part in parts):
            break
    return tuple(tuple(peers[part]) for part in parts)
