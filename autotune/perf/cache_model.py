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
    """For every pass of a step in the steady state: of each array that it touches, the share that a cache holds when it begins."""
    cache = _Cache(capacity_bytes)
    # Rows and pooled vectors are touched in turns, other arrays one after another.
    sizes = [{buffer.name: buffer.size_bytes for buffer in each.touches} for each in passes]
    turns = [
        [of_pass] if each.operator.interleaved else [{name: size} for name, size in of_pass.items()]
        for each, of_pass in zip(passes, sizes, strict=True)
    ]
    for together in [together for of_pass in turns for together in of_pass] * (_WALKS - 1):
        cache.touch(together)
    held = []
    for of_pass, together_of_pass in zip(sizes, turns, strict=True):
        held.append(tuple(map(cache.held, of_pass)))
        for together in together_of_pass:
            cache.touch(together)
    return held


class _Cache:
    """What a cache still holds of arrays: after `d` bytes were fetched into it, exp(-d / capacity) of what was there before. That is random
    replacement, which hashed sets, and a last level shared with strangers, come near. What all fits is never driven out.

    Args:
        capacity_bytes: Of the cache.
    """

    def __init__(self, capacity_bytes: float) -> None:
        self._capacity_bytes = max(capacity_bytes, 1.0)
        self._fetched_bytes = 0.0
        self._touched: dict[str, tuple[float, float]] = {}
        """By array: bytes fetched into the cache up to the end of its last touch, and during it."""

    def held(self, name: str) -> float:
        """Share of an array."""
        if name not in self._touched:
            return 0.0
        end_bytes, during_bytes = self._touched[name]
        since, passed = (self._fetched_bytes - end_bytes) / self._capacity_bytes, during_bytes / self._capacity_bytes
        # Its first elements saw all of what was fetched beside them, its last ones nothing.
        return math.exp(-since) * (-math.expm1(-passed) / passed if passed > 1e-9 else 1.0)

    def touch(self, together: dict[str, float]) -> None:
        """Touch arrays, by name their bytes, element by element in turns."""
        during_bytes = 0.0
        for name, size in together.items():
            during_bytes += size * (1 - self.held(name))
        self._fetched_bytes += during_bytes
        touched = (self._fetched_bytes, during_bytes)
        for name in together:
            self._touched[name] = touched
