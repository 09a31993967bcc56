"""The loops that a probe times: variants of each pattern, with arrays that pass the caches where they shall.

Source of the loops: ``kernels/ceilings.h``; of counting bytes without read-for-ownership: J. D. McCalpin, STREAM.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from autotune.config.profile import Topology
from autotune.errors import MachineError
from autotune.ops.native import empty_rows, kernels

StreamKind = Literal["read", "copy", "triad", "copy_nt", "update"]

ROW_BYTES = (64, 128, 256, 512, 1024)
# Rows ahead; 0 leaves it to the hardware. On a 2-core Zen 5 rows of 64 B from a 2 GB table came at 6, 11, 16, 21 and 22 GB/s with
# 0, 16, 32, 64 and 128, rows of 1 KiB at 26, 30 and 33 with 0, 16 and 8. What is ahead shall stay in the inner caches.
PREFETCH_DISTANCES = (0, 8, 16, 32, 64, 128)
_AHEAD_BYTES = 64 * 1024
# Arrays that a stream touches per element, without read-for-ownership.
STREAM_ARRAYS: dict[StreamKind, int] = {"read": 1, "copy": 2, "triad": 3, "copy_nt": 2, "update": 2}
# bn, bc, bk. On a 2-core Zen 5 with AVX-512 those from bk 32 on came within 3 % of the best of 48 blockings at 2048 x 1024 x 1024;
# narrower panels serve narrower vectors.
_FORWARD_BLOCKINGS = ((64, 1024, 16), (64, 1024, 32), (128, 1024, 32), (32, 1024, 64), (128, 1024, 64))
_WEIGHTS_BLOCKINGS = ((64, 256, 64), (128, 1024, 64))
_MIB = 1 << 20
# 16 MiB of rows a thread take about a millisecond: a fork and join is below 1 % of it.
_WINDOW_BYTES = 16 * _MIB
# Virtual machines may hide their last-level cache.
_HIDDEN_CACHE_BYTES = 32 * _MIB
_NEEDED_BYTES = 512 * _MIB

Point = tuple[Any, ...]
"""What a loop is a variant of: ``("gather", row_bytes, working_set_bytes)``, ``("stream", kind)``, ``("gemm",)``, ..."""


@dataclass(frozen=True)
class Loop:
    """One variant of one pattern."""

    point: Point
    variant: str
    call: Callable[[], object]
    amount: float
    """Flops, bytes or forks of one call."""
    warm: bool = False
    """Its data shall lie in a cache: the other loops drove it out, so an untimed call goes before each timed one."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is, within the memory available."""

    stream_bytes: int
    """Of each of the three arrays of a stream."""
    l2_bytes: int
    """Working set inside the L2 of one core."""
    l3_bytes: int
    """Working set inside one L3; 0 where there is none."""
    memory_bytes: tuple[int, ...]
    """Working sets outside the caches, powers of two, ascending."""
    cache_bytes: int
    """All last-level caches together, at least what a virtual machine may hide."""
    window_bytes: int
    """Row bytes that one thread walks in a timed call."""
    row_bytes: tuple[int, ...]
    gemm_rows: int
    """M of the GEMM, at most."""
    gemm_columns: int
    """N and K."""
    fma_iterations: int


def choose_sizes(topology: Topology, available_bytes: int, quick: bool = False) -> Sizes:
    """Sizes that pass the caches where they shall, and together take less than the memory available.

    Shares of it, at most: the largest table 1/4, the next 1/8 and 1/32, three stream arrays 1/8, tables inside L2 1/8 and inside L3
    1/32, the GEMM 1/8, and index lists 1/4 of the tables outside the caches and 1/16 for those inside.

    Raises:
        MachineError: less than 512 MiB is available.
    """
    if available_bytes < _NEEDED_BYTES:
        raise MachineError(
            f"probing needs {_NEEDED_BYTES} bytes of memory, got {available_bytes} available; free memory or raise the cgroup's limit"
        )
    cache_bytes = max(topology.l2_bytes * topology.physical_cores, topology.l3_bytes * topology.l3_instances, _HIDDEN_CACHE_BYTES)
    unit = max(ROW_BYTES) * topology.physical_cores
    cached_limit = available_bytes // 16
    l2_bytes = min(topology.l2_bytes // 2, cached_limit // topology.physical_cores)
    l3_bytes = min(topology.l3_bytes // 2, available_bytes // 32, available_bytes // (4 * topology.physical_cores))
    if quick:
        table = _power_of_two(min(16 * _MIB, available_bytes // 8))
        return Sizes(2 * _MIB, max(l2_bytes, 1024), 0, (table,), 4 * _MIB, _MIB, (64, 256), 128, 128, 20_000)
    largest = min(max(2048 * _MIB, 4 * cache_bytes), available_bytes // 4)
    # One just beyond the last-level cache: between it and memory the bandwidth falls off a cliff, which a line across would hide.
    beyond = min(2 * topology.l3_bytes * max(1, topology.l3_instances), available_bytes // 32)
    tables = {_power_of_two(size) for size in (largest, min(256 * _MIB, available_bytes // 8), max(beyond, 1024))}
    window_bytes = min(_WINDOW_BYTES, _power_of_two(available_bytes // 32 // topology.physical_cores))
    return Sizes(
        stream_bytes=min(4 * cache_bytes, available_bytes // 24) // 64 * 64,
        l2_bytes=max(l2_bytes, 1024),
        l3_bytes=l3_bytes // unit * unit,
        memory_bytes=tuple(sorted(tables)),
        cache_bytes=cache_bytes,
        window_bytes=window_bytes,
        row_bytes=ROW_BYTES,
        gemm_rows=max(256, available_bytes // 8 // (4 * 4 * 1088)),  # four matrices of padded rows
        gemm_columns=1024,
        fma_iterations=1_000_000,
    )


def permutation_slice(first: int, count: int, bits: int, seed: int = 0) -> NDArray[np.int64]:
    """Entries first .. first+count of a pseudo-random permutation of 0 .. 2**bits - 1, without building the rest.

    Each step is a bijection on `bits` bits: times an odd number plus a constant, then exclusive-or with the upper half.
    """
    mask, shift = np.uint64((1 << bits) - 1), np.uint64(max(1, bits // 2))
    x = np.arange(first, first + count, dtype=np.uint64)
    for multiplier in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        x *= np.uint64(multiplier)
        x += np.uint64(seed)
        x &= mask
        x ^= x >> shift
    return x.astype(np.int64)


def cached_walk(rows: int, threads: int, passes: int, *, own: bool, seed: int = 0) -> NDArray[np.int64]:
    """Row numbers for a table that stays in a cache, one slice a thread: `passes` random orders of all rows, or of the thread's own.

    Args:
        rows: Of the table.
        own: Thread t walks rows ``t * (rows // threads)`` on, as many as its share: disjoint, for scatter.
    """
    generator = np.random.default_rng(seed)
    share = rows // threads if own else rows
    orders = [generator.permutation(share) + (share * thread if own else 0) for thread in range(threads) for _ in range(passes)]
    return np.concatenate(orders).astype(np.int64, copy=False)


class Arrays:
    """Tables and stream arrays on huge pages, made when first asked for and touched first by one team."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._held: dict[tuple[str, int], NDArray[np.float32]] = {}

    def get(self, name: str, size_bytes: int) -> NDArray[np.float32]:
        """fp32 [size_bytes / 4] in [1, 2), which zeros are not: some CPUs skip storing zero over zero."""
        key = (name, size_bytes)
        if key not in self._held:
            try:
                self._held[key] = kernels.allocate(size_bytes // 4, True)
            except MemoryError as error:
                raise MachineError(f"probing needs {size_bytes} bytes for a table, and the machine refused them; free memory") from error
            self.fill(self._held[key])
        return self._held[key]

    def fill(self, array: NDArray[np.float32]) -> None:
        """Values in [1, 2) again: a scatter scales by 0.999, and 87,000 touches would end in denormals."""
        kernels.fill_uniform(array, 1.0, 2.0, 0, self._threads)


class _Rotation:
    """Row lists of one table, the next one at each call, so that a call never finds the rows of the one before."""

    def __init__(self, table: NDArray[np.float32], row_bytes: int, lists: Sequence[NDArray[np.int64]]) -> None:
        rows = table.reshape(-1, row_bytes // 4)
        self._walks = itertools.cycle([kernels.RowWalk(rows, chosen) for chosen in lists])
        self.bytes = lists[0].size * row_bytes

    def walk(self, access: str, distance: int, threads: int) -> None:
        """Gather, or scatter."""
        getattr(next(self._walks), access)(distance, threads)


def loops_at(threads: int, sizes: Sizes, arrays: Arrays) -> list[Loop]:
    """Every loop at one thread count."""
    iterations = sizes.fma_iterations
    fma_flops = kernels.ceiling_fma(iterations, threads)
    loops = [
        Loop(("fma",), "", partial(kernels.ceiling_fma, iterations, threads), fma_flops),
        Loop(("fork_join",), "", partial(kernels.fork_join, 200, threads), 200.0),
    ]
    a, b, c = (arrays.get(name, sizes.stream_bytes) for name in "abc")
    for kind, touched in STREAM_ARRAYS.items():
        call = partial(kernels.ceiling_stream, kind, a, b, c, threads)
        loops.append(Loop(("stream", kind), "", call, float(touched * sizes.stream_bytes)))
    loops += _gemm_loops(threads, sizes)
    for row_bytes in sizes.row_bytes:
        loops += _row_loops(threads, sizes, arrays, row_bytes)
    return loops


def _gemm_loops(threads: int, sizes: Sizes) -> Iterator[Loop]:
    """The blocked GEMM, forward and backward-weights, in a few blockings, and torch's. Backward-data is the forward kernel."""
    n = k = sizes.gemm_columns
    m = min(max(2048, 256 * threads), sizes.gemm_rows)
    flops, shape = 2.0 * m * n * k, f"{m}x{n}x{k}"
    x, y = empty_rows(m, k, threads), empty_rows(m, n, threads)
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(n, k, generator=generator) - 0.5
    x.copy_(torch.rand(m, k, generator=generator))
    d_weights, d_bias = torch.empty(n, k), torch.empty(n)
    packed: dict[int, torch.Tensor] = {}
    for bn, bc, bk in _FORWARD_BLOCKINGS:
        if bk not in packed:
            packed[bk], backward = torch.empty(-(-n // bk) * bk * k), torch.empty(-(-k // bk) * bk * n)
            kernels.pack_weights(weights, packed[bk], bk, backward, bk, threads)
        call = partial(kernels.linear_forward, x, packed[bk], None, y, "none", bn, bc, bk, False, 1, threads)
        yield Loop(("gemm",), f"{shape} blocked forward bn={bn} bc={bc} bk={bk}", call, flops)
    for bn, bc, bk in _WEIGHTS_BLOCKINGS:
        call = partial(kernels.linear_backward_weights, y, x, d_weights, d_bias, None, None, 0.0, bn, bc, bk, False, 1, threads)
        yield Loop(("gemm",), f"{shape} blocked backward_weights bn={bn} bc={bc} bk={bk}", call, flops)
    left, out = x.contiguous(), torch.empty(m, n)
    yield Loop(("gemm",), f"{shape} torch", partial(torch.mm, left, weights.t(), out=out), flops)


def _row_loops(threads: int, sizes: Sizes, arrays: Arrays, row_bytes: int) -> Iterator[Loop]:
    for working_set_bytes in sizes.memory_bytes:
        table = arrays.get("table", working_set_bytes)
        rotation = _Rotation(table, row_bytes, list(_memory_walks(working_set_bytes // row_bytes, row_bytes, threads, sizes)))
        yield from _variants("gather", rotation, row_bytes, working_set_bytes, threads)
        yield from _variants("scatter", rotation, row_bytes, working_set_bytes, threads)
    # Gather: any thread reads any row. Scatter: a thread owns its rows, so what fits every owner's L2 is the team's L2 together.
    for access, own, sets in (
        ("gather", False, (sizes.l2_bytes, sizes.l3_bytes)),
        ("scatter", True, (sizes.l2_bytes * threads, sizes.l3_bytes)),
    ):
        for size_bytes in sorted({size for size in sets if size >= row_bytes * threads} - set(sizes.memory_bytes)):
            rows = size_bytes // row_bytes // threads * threads
            share_bytes = rows * row_bytes // (threads if own else 1)
            passes = max(1, sizes.window_bytes // share_bytes)
            table = arrays.get("cached", size_bytes)[: rows * row_bytes // 4]
            arrays.fill(table)
            rotation = _Rotation(table, row_bytes, [cached_walk(rows, threads, passes, own=own, seed=row_bytes)])
            yield from _variants(access, rotation, row_bytes, size_bytes, threads, warm=True)


def _memory_walks(rows: int, row_bytes: int, threads: int, sizes: Sizes) -> Iterator[NDArray[np.int64]]:
    """Slices of one permutation, enough of them that the caches forget the first before it comes again."""
    count = min(sizes.window_bytes * threads // row_bytes, rows // 2)
    slices = min(rows // count, max(2, math.ceil(2 * sizes.cache_bytes / (count * row_bytes))))
    for position in range(slices):
        yield permutation_slice(position * count, count, rows.bit_length() - 1, seed=row_bytes)


def _variants(access: str, rotation: _Rotation, row_bytes: int, working_set_bytes: int, threads: int, warm: bool = False) -> Iterator[Loop]:
    point, amount = (access, row_bytes, working_set_bytes), float((1 if access == "gather" else 2) * rotation.bytes)
    for distance in PREFETCH_DISTANCES:
        if distance * row_bytes <= _AHEAD_BYTES:
            yield Loop(point, f"prefetch {distance}", partial(rotation.walk, access, distance, threads), amount, warm)


def _power_of_two(value: int) -> int:
    """The largest power of two up to `value`."""
    return 1 << (value.bit_length() - 1)
