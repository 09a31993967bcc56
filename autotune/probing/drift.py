"""Drift of the machine: the bandwidth and arithmetic it gives now over those it gave when it was probed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from autotune.bench.rounds import Observer, run_rounds, timed
from autotune.config.base import Frozen
from autotune.config.measured import MachineState, differs
from autotune.config.profile import Ceilings, Profile, RowPoint
from autotune.machine.memory import available_memory_bytes
from autotune.ops.native import kernels
from autotune.probing.loops import choose_sizes

_SAME = {"memory": 0.2, "rows": 0.35, "compute": 0.2}
"""Looks of one state differ by less, states of one machine by more. Random rows vary with what other guests draw from memory."""

P = TypeVar("P", bound=Frozen)

_CALLS = 6
_ARRAYS = 4
_ROW_BYTES = 256
_WINDOW_BYTES = 4 << 20
"""Of rows that one thread gathers in a call."""
_AHEAD_BYTES = 16 << 10
_FMA_ITERATIONS = 500_000


class Drift(Observer):
    """Observer that times memory and arithmetic for some milliseconds before and after a measurement.

    Args:
        profile: Profile with a stream of reads and the peak of multiply-adds at as many threads; without them nothing is timed.
        threads: Threads of the team.
    """

    def __init__(self, profile: Profile, threads: int) -> None:
        ceilings, topology = profile.ceilings, profile.fingerprint.topology
        self._threads = threads
        self._probed = {
            "memory": [point.bandwidth_bytes_per_s for point in ceilings.stream if point.kind == "read" and point.threads == threads],
            "compute": [point.flops_per_s for point in ceilings.fma if point.threads == threads],
        }
        self._looks: dict[str, list[float]] = {"memory": [], "rows": [], "compute": []}
        self._able = all(self._probed.values())
        if not self._able:
            return
        stream_bytes = choose_sizes(topology, max(1 << 30, available_memory_bytes(topology))).stream_bytes
        # In turns, so that a call does not find in a cache larger than is told what the one before has read.
        pool = kernels.allocate(_ARRAYS * stream_bytes // 4, True)
        kernels.fill_uniform(pool, 1.0, 2.0, 0, threads)
        self._arrays = list(pool.reshape(_ARRAYS, -1))
        fitting = [
            point for point in ceilings.gather if point.threads == threads and stream_bytes <= point.working_set_bytes <= pool.nbytes
        ]
        self._walks: list[Callable[[], None]] = []
        if fitting:
            point = min(fitting, key=lambda point: abs(point.row_bytes - _ROW_BYTES))
            self._walks = list(self._row_walks(pool, point))
            self._probed["rows"] = [point.bandwidth_bytes_per_s]

    def _row_walks(self, pool: NDArray[np.float32], point: RowPoint) -> Iterator[Callable[[], None]]:
        """Calls that gather rows all over a table as large as the point's, each of its own."""
        rows = point.working_set_bytes // point.row_bytes
        table = pool[: rows * point.row_bytes // 4].reshape(rows, -1)
        self._window_bytes = _WINDOW_BYTES * self._threads // point.row_bytes * point.row_bytes
        generator = np.random.default_rng(0)
        for _ in range(_CALLS):
            chosen = generator.integers(0, rows, self._window_bytes // point.row_bytes, dtype=np.int64)
            yield partial(kernels.RowWalk(table, chosen).gather, _AHEAD_BYTES // point.row_bytes, self._threads)

    def look(self) -> MachineState | None:
        """Ratios of this moment; None where the profile lacks the ceilings. The looks before and after stand for the time between."""
        if not self._able:
            return None
        amounts = {"memory": float(self._arrays[0].nbytes), "compute": kernels.ceiling_fma(_FMA_ITERATIONS, self._threads)}
        turns = {"memory": timed(self._read), "compute": timed(partial(kernels.ceiling_fma, _FMA_ITERATIONS, self._threads))}
        if self._walks:
            walks = iter(self._walks)
            amounts["rows"], turns["rows"] = self._window_bytes, timed(lambda: next(walks)())
        samples = run_rounds(turns, max_rounds=_CALLS, warmup=0).samples
        ratios = {name: amount / samples[name].median_s / self._probed[name][0] for name, amount in amounts.items()}
        for name, ratio in ratios.items():
            self._looks[name].append(ratio)
        return _state(ratios)

    def begin(self) -> None:
        self.look()

    def end(self) -> None:
        self.look()

    def _read(self) -> None:
        self._arrays.append(self._arrays.pop(0))
        kernels.ceiling_stream("read", *self._arrays[:3], self._threads)  # type: ignore[call-arg, arg-type]

    @property
    def state(self) -> MachineState | None:
        """The mean of the looks; None where there was none."""
        if not self._looks["memory"]:
            return None
        return _state({name: statistics.fmean(looks) for name, looks in self._looks.items() if looks})


def _state(ratios: Mapping[str, float]) -> MachineState:
    rounded = {name: float(f"{ratio:.4g}") for name, ratio in ratios.items()}
    return MachineState(memory=rounded["memory"], rows=rounded.get("rows", rounded["memory"]), compute=rounded["compute"])


def as_probed(*states: MachineState | None) -> bool:
    """Whether the machine is the one that was probed. A host may put a guest's cores on one real core, on cores that share a cache, or on
    cores that share none: 2x in arithmetic, 1.7x in streams, and each is another machine. Unknown states pass."""
    return all(abs(ratio - 1.0) <= _SAME[name] for state in states if state is not None for name, ratio in state)


def ceilings_now(ceilings: Ceilings, state: MachineState | None) -> Ceilings:
    """The ceilings as the machine gives them now: in proportion, where they differ by more than noise."""
    if state is None:
        return ceilings
    memory, rows, compute = (ratio if differs(ratio) else 1.0 for ratio in (state.memory, state.rows, state.compute))
    if memory == rows == compute == 1.0:
        return ceilings

    def slower(points: tuple[P, ...], name: str, ratio: float) -> tuple[P, ...]:
        return tuple(point.model_copy(update={name: getattr(point, name) * ratio}) for point in points)

    bandwidth, flops = "bandwidth_bytes_per_s", "flops_per_s"
    return ceilings.model_copy(
        update={
            "fma": slower(ceilings.fma, flops, compute),
            "gemm": slower(ceilings.gemm, flops, compute),
            "stream": slower(ceilings.stream, bandwidth, memory),
            "gather": slower(ceilings.gather, bandwidth, rows),
            "scatter": slower(ceilings.scatter, bandwidth, rows),
        }
    )
