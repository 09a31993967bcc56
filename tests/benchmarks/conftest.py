"""How near every operator comes to its ceiling, both timed in the same rounds: `pytest tests/benchmarks --benchmark-only`.

Before each timed round of an operator the loops of its ceiling run once and are timed too, so that a fraction is a ratio of neighbours in
time and drift of the machine cancels. Nothing here fails for being slow: the table at the end says what missed its target.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.bench.rounds import run_rounds, timed
from autotune.bench.samples import ratio
from autotune.catalog import load_model_by_name
from autotune.config.knobs import Knobs
from autotune.config.model import DataSpec
from autotune.config.profile import Ceilings
from autotune.config.tuned import Interval
from autotune.data.batches import make_source
from autotune.dlrm.defaults import default_config
from autotune.dlrm.model import DLRM
from autotune.machine.memory import available_memory_bytes
from autotune.machine.topology import detect
from autotune.ops.base import Case, Operator
from autotune.probing.ceilings import ceilings_of
from autotune.probing.loops import Arrays, Loop, choose_sizes, loops_at
from autotune.tuning.races import OperatorGroup, OperatorRace, race_choices
from autotune.units import format_time

MODELS = ("small", "rm2", "mlperf-1m")
RACE_S = float(os.environ.get("AUTOTUNE_BENCH_RACE_S", "0.8"))
"""Budget of the race for an operator's knobs; four times this for embeddings, whose every call takes tens of milliseconds."""
ROUNDS = int(os.environ.get("AUTOTUNE_BENCH_ROUNDS", "11"))
_SAMPLE_S = 5e-4
_VARIANTS = 2
"""Variants of a loop that are kept after a first heat: the best two, since the heat is short."""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    operator: str
    shape: str
    time_s: float | None
    ceiling_s: float | None
    """The least time that the ceiling allows."""
    reached: Interval
    """Ceiling over time, round by round; for a share or a count, that."""
    target: float | None
    at_most: bool = False
    unit: str = ""
    """Of `reached`: empty for a fraction."""

    @property
    def met(self) -> str:
        if self.target is None:
            return "-"
        return "met" if (self.reached.median <= self.target if self.at_most else self.reached.median >= self.target) else "MISSED"


class CeilingLoops:
    """Loops of some points, timed once a round; afterwards the ceilings of every round."""

    def __init__(self, loops: Sequence[Loop], threads: int) -> None:
        self._loops, self._threads = loops, threads
        self._times_s: list[list[float]] = [[] for _ in loops]

    def run(self) -> None:
        for loop, times_s in zip(self._loops, self._times_s, strict=True):
            if loop.warm:
                loop.call()
            begin_s = time.perf_counter()
            loop.call()
            times_s.append(time.perf_counter() - begin_s)

    def by_round(self, rounds: int) -> list[Ceilings]:
        """Of the last `rounds`. A point's ceiling is that of the variant with the highest rate by the median."""
        best: dict[Any, tuple[float, Loop, list[float]]] = {}
        for loop, times_s in zip(self._loops, self._times_s, strict=True):
            rate = loop.amount / sorted(times_s[-rounds:])[rounds // 2]
            if rate > best.get(loop.point, (0.0,))[0]:
                best[loop.point] = (rate, loop, times_s[-rounds:])
        found = best.items()
        return [
            ceilings_of({self._threads: {point: (loop.amount / times_s[i], loop.variant) for point, (_, loop, times_s) in found}})
            for i in range(rounds)
        ]


class Bench:
    """What the benchmarks of a session share. Everything is made when first asked for: the fixtures of skipped benchmarks cost nothing."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.chosen: dict[tuple[str, str], Knobs] = {}
        self._name = ""
        self._dlrm: DLRM | None = None
        self._operators: dict[str, Operator] = {}
        self._row_bytes = 0
        self._loops: tuple[Loop, ...] = ()

    @functools.cached_property
    def topology(self) -> Any:
        return detect()

    @property
    def threads(self) -> int:
        return int(self.topology.physical_cores)

    def release(self) -> None:
        """Free models, arrays and loops; what was measured stays."""
        self._name, self._dlrm, self._operators = "", None, {}
        self._row_bytes, self._loops = 0, ()
        self.__dict__.pop("_arrays", None)

    def model(self, name: str) -> DLRM:
        """One at a time is held."""
        if self._dlrm is None or self._name != name:
            self._dlrm, self._operators = None, {}  # before the next one is made
            model = load_model_by_name(name)
            self._name, self._dlrm = name, DLRM(model, default_config(model, self.topology), machine=self.topology)
        return self._dlrm

    def operators(self, name: str) -> dict[str, Operator]:
        dlrm = self.model(name)
        self._operators = self._operators or {operator.key: operator for operator in dlrm.operators(make_source(dlrm.model))}
        return self._operators

    def skewed(self, name: str, spec: DataSpec, key: str) -> Operator:
        """One pass of a model on other indices."""
        dlrm = self.model(name)
        return next(operator for operator in dlrm.operators(make_source(dlrm.model, spec)) if operator.key == key)

    def tuned(self, name: str, operator: Operator, data: str = "") -> Knobs:
        """The operator's own candidates, raced quickly; the default where none beats it clearly."""
        at = (name, operator.key + data)
        if at not in self.chosen:
            budget_s = RACE_S * (4 if operator.key.startswith("embedding") else 1)
            group = OperatorGroup((operator,), 0.0)
            race = OperatorRace(group, budget_s, self.topology, self.model(name).config).run()
            self.chosen[at] = race_choices(race)[0]
        return self.chosen[at]

    @functools.cached_property
    def _arrays(self) -> Arrays:
        return Arrays(self.threads)

    def _all_loops(self, row_bytes: int) -> tuple[Loop, ...]:
        """The best variants of every point at one row width, by a first heat."""
        if self._row_bytes == row_bytes:
            return self._loops
        torch.set_num_threads(self.threads)
        sizes = replace(choose_sizes(self.topology, available_memory_bytes(self.topology)), row_bytes=(row_bytes,))
        loops = [loop for loop in loops_at(self.threads, sizes, self._arrays) if loop.point != ("fork_join",)]
        heat = run_rounds({f"{loop.point} {loop.variant}": timed(loop.call) for loop in loops}, max_rounds=5)
        kept: dict[Any, list[tuple[float, int]]] = {}
        for i, loop in enumerate(loops):
            kept.setdefault(loop.point, []).append((loop.amount / heat.samples[f"{loop.point} {loop.variant}"].median_s, i))
        chosen = {i for rates in kept.values() for _, i in sorted(rates)[-_VARIANTS:]}
        self._row_bytes, self._loops = row_bytes, tuple(loop for i, loop in enumerate(loops) if i in chosen)
        return self._loops

    def loops(self, name: str, patterns: Iterable[str]) -> CeilingLoops:
        """Ceilings of these patterns (gemm, fma, stream, gather, scatter), at the row width of a model's tables."""
        wanted = set(patterns)
        chosen = self._all_loops(4 * self.model(name).model.embedding_dim)
        return CeilingLoops([loop for loop in chosen if loop.point[0] in wanted], self.threads)

    def measure(
        self,
        benchmark: Any,
        case: Case,
        knobs: Knobs,
        beside: Callable[[], object],
    ) -> list[float]:
        """Seconds of one call by round; `beside` runs untimed before each, for whatever it times itself."""
        assert case.check(knobs, self.threads).passed
        begin_s = time.perf_counter()
        case.run(knobs, self.threads)
        calls = max(1, min(64, int(_SAMPLE_S / max(time.perf_counter() - begin_s, 1e-7))))

        def call() -> None:
            for _ in range(calls):
                case.run(knobs, self.threads)

        def setup() -> None:
            beside()
            call()  # brings the operator's weights back, which stay cached from step to step

        benchmark.pedantic(call, setup=setup, rounds=ROUNDS, warmup_rounds=1)
        benchmark.extra_info.update(calls=calls, knobs=knobs.model_dump(exclude={"kind"}))
        return [seconds / calls for seconds in benchmark.stats.stats.data]

    def hold(
        self,
        benchmark: Any,
        name: str,
        operator: Operator,
        shape: str,
        patterns: Iterable[str],
        least_s: Callable[[Ceilings], float],
        target: float | None,
    ) -> None:
        """Time an operator with tuned knobs beside the loops of its ceiling.

        Args:
            least_s: From ceilings to the least time that counts for this operator.
            target: Of the fraction; None asks for nothing.
        """
        knobs = self.tuned(name, operator)
        loops = self.loops(name, patterns)
        times_s = self.measure(benchmark, operator.case(0), knobs, loops.run)
        limits_s = [least_s(ceilings) for ceilings in loops.by_round(len(times_s))]
        self.add(benchmark, Line(f"{name} {operator.key}", shape, _median(times_s), _median(limits_s), ratio(limits_s, times_s), target))

    def add(self, benchmark: Any, *lines: Line) -> None:
        """Into the table, and into what `--benchmark-json` writes."""
        self.lines += lines
        benchmark.extra_info["lines"] = benchmark.extra_info.get("lines", []) + [
            {
                "operator": line.operator,
                "shape": line.shape,
                "time_s": line.time_s,
                "ceiling_s": line.ceiling_s,
                "reached": line.reached.model_dump(),
                "unit": line.unit or "fraction",
                "target": line.target,
                "at_most": line.at_most,
                "met": line.met,
            }
            for line in lines
        ]


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


_BENCH = pytest.StashKey[Bench]()


@pytest.fixture(scope="session")
def bench(pytestconfig: pytest.Config) -> Bench:
    return pytestconfig.stash.setdefault(_BENCH, Bench())


@pytest.fixture(scope="session")
def line() -> type[Line]:
    return Line


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data: where AUTOTUNE_DATA says, else beside the checkout."""
    return Path(os.environ.get("AUTOTUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Model by model, since one is held at a time."""
    here = [i for i, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    model_of = lambda item: getattr(item, "callspec").params.get("model", "") if hasattr(item, "callspec") else ""  # noqa: B009, E731
    ordered = sorted((items[i] for i in here), key=lambda item: MODELS.index(model_of(item)) if model_of(item) in MODELS else -1)
    for i, item in zip(here, ordered, strict=True):
        items[i] = item


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    bench = config.stash.get(_BENCH, None)
    if bench is None or not bench.lines:
        return
    bench.release()
    write = terminalreporter.write_line
    terminalreporter.section(f"fractions of the ceilings probed in the same rounds, {bench.threads} threads, {bench.topology.cpu_model}")
    write(f"{'operator':<42}{'shape':<30}{'time':>10}{'ceiling':>10}{'reached':>9}  {'95 % interval':<20}{'target':>12}")
    for one in bench.lines:
        times = "".join(f"{format_time(seconds) if seconds is not None else '-':>10}" for seconds in (one.time_s, one.ceiling_s))
        low, middle, high = (_figure(value, one.unit) for value in (one.reached.low, one.reached.median, one.reached.high))
        target = "-" if one.target is None else ("<= " if one.at_most else ">= ") + _figure(one.target, one.unit)
        write(f"{one.operator:<42}{one.shape:<30}{times}{middle:>9}  {f'[{low}, {high}]':<20}{target:>12}  {one.met}")
    asked = [one for one in bench.lines if one.target is not None]
    write(f"{sum(one.met == 'met' for one in asked)} of {len(asked)} targets met")


def _figure(value: float, unit: str) -> str:
    return f"{value:.3f}" if unit == "share" else f"{value:.0f} {unit}" if unit else f"{value:.2f}"
