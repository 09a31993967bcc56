"""Where the arrays of a step are found when a pass begins: caches by random replacement, walked over the schedule until nothing changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autotune.ops.base import Residence
from autotune.ops.schedule import ROWS, Pass

HeldShares = Sequence[tuple[float, ...]]
"""By pass, in the order of its `touches`."""

_WALKS = 6
"""Steps until what a cache holds at one place of a step hardly changes from one step to the next."""


def residences(passes: Sequence[Pass], own_bytes: float, shared_bytes: float) -> list[Residence]:
    """For every pass of a step in the steady state: where its arrays are found.

    Args:
        own_bytes: capacity of all cores' own caches together.
        shared_bytes: capacity of the last level.
    """
    return residences_of(passes, shares_held(passes, own_bytes), shares_held(passes, shared_bytes))


def residences_of(passes: Sequence[Pass], own: HeldShares, shared: HeldShares) -> list[Residence]:
    """The same from what the cores' own caches and the last level hold."""
    places = []
    for each, held_own, held_shared in zip(passes, own, shared, strict=True):
        memory = far = kept = 0.0
        for buffer, in_own, in_shared in zip(each.touches, held_own, held_shared, strict=True):
            if buffer.name == ROWS:
                kept = in_shared
            else:
                memory += buffer.size_bytes * (1 - in_shared)
                far += buffer.size_bytes * max(0.0, in_shared - in_own)
        places.append(Residence(memory, far, kept))
    return places


def shares_held(passes: Sequence[Pass], capacity_bytes: float) -> HeldShares:
    """For every pass of a step in the steady state: of each array that it touches, the share that a cache holds when it begins.

    After `d` bytes were fetched into the cache, exp(-d / capacity) of what was there before is left. That is random replacement, which
    hashed sets, and a last level shared with strangers, come near. What all fits is never driven out.
    """
    capacity = max(capacity_bytes, 1.0)
    fetched = 0.0
    touched: dict[str, tuple[float, float]] = {}
    """By array: bytes fetched into the cache up to the end of its last touch, and during it."""

    def kept(name: str) -> float:
        if name not in touched:
            return 0.0
        end, during = touched[name]
        passed = during / capacity
        # Its first elements saw all of what was fetched beside them, its last ones nothing.
        return math.exp(-((fetched - end) / capacity)) * (-math.expm1(-passed) / passed if passed > 1e-9 else 1.0)

    turns = [[(buffer.name, buffer.size_bytes) for buffer in each.touches] for each in passes]
    held: list[tuple[float, ...]] = []
    for walk in range(_WALKS):
        for each, arrays in zip(passes, turns, strict=True):
            if walk == _WALKS - 1:
                held.append(tuple(kept(name) for name, _ in arrays))
            # Rows and pooled vectors are touched in turns, element by element, other arrays one after another.
            for together in [arrays] if each.operator.interleaved else [[array] for array in arrays]:
                during = 0.0
                for name, size in together:
                    during += size * (1 - kept(name))
                fetched += during
                for name, _ in together:
                    touched[name] = (fetched, during)
    return held
