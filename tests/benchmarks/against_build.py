"""Whole iterations of two installed builds, in turns: `python tests/benchmarks/against_build.py OTHER_VENV`.

This interpreter's build and that of OTHER_VENV train the same models from the same seeds in the default configuration: one process for each
build, both in memory, both started in the launch environment that this build gives (a thread bound to each core). In every round each build
takes a turn, in random order, while the other waits. A turn is an untimed iteration, which brings caches and team back, and then timed ones
on batches made before. The table gives, for each model, the ratio of this build's time to the other's: the median over rounds with its
bootstrap 95 % interval. Below 1, this build is faster.

    --models small,rm2,mlperf-1m   models, by name or file; both builds must know them
    --rounds 30                    turns of each build
    --threads N                    threads of the team; default: one for each core
    --commands --config FILE       also CPU seconds (user and system) of `autotune --help` and `autotune explain FILE`

Between turns the machine is left alone for as long as OpenMP's idle threads spin; other programs must be, too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

THIS, OTHER = "this", "other"
_BATCHES = 4
"""Batches that the iterations rotate through."""
_WARM_UPS = 3
_TURN_S = 0.2
"""Timed part of a turn: iterations that take about as long, so that short ones are timed in numbers."""
_MAX_STEPS = 64
_PAUSE_S = 0.03
"""libgomp's idle threads spin for some milliseconds (300,000 iterations), on the cores of the build whose turn is next."""


def imported(attribute: str, *modules: str) -> Any:
    """An attribute of the first of these modules that the build has: a worker runs in builds of either layout."""
    for name in modules:
        try:
            return getattr(importlib.import_module(name), attribute)
        except ModuleNotFoundError:
            continue
    raise SystemExit(f"a build must have {attribute} in one of {', '.join(modules)}, got neither in {sys.prefix}; compare another build")


def work(name: str, threads: int) -> None:
    """Train a model in this process, as many iterations at a time as each line of standard input says."""
    machine = imported("detect", "autotune.machine.topology", "autotune.probe.topology")()  # before OpenMP binds this thread
    model = imported("load_model_by_name", "autotune.catalog")(name)
    config = imported("default_config", "autotune.dlrm.defaults", "autotune.dlrm.model")(model, machine, threads)
    dlrm = imported("DLRM", "autotune.dlrm.model")(model, config, machine=machine)
    source = imported("make_source", "autotune.data.batches", "autotune.dlrm.data")(model)
    batches = [source.batch(i) for i in range(_BATCHES)]
    losses = [dlrm.step(batches[i % _BATCHES]) for i in range(_WARM_UPS)]
    print(json.dumps(losses), flush=True)
    for line in sys.stdin:
        steps = int(line)
        dlrm.step(batches[-1])
        begin_s = time.perf_counter()
        for i in range(steps):
            dlrm.step(batches[i % _BATCHES])
        print((time.perf_counter() - begin_s) / steps, flush=True)


class Worker:
    """The process of one build, which trains one model and waits between turns."""

    def __init__(self, python: Path, name: str, threads: int, environment: Mapping[str, str]) -> None:
        command = [str(python), __file__, "--worker", name, str(threads)]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.losses: list[float] = json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker {' '.join(map(str, self._process.args))} ended with exit code {self._process.wait()}")
        return line

    def time_s(self, steps: int) -> float:
        """Seconds of one iteration, the mean of `steps`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._line())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def in_turns(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each measures in every round, in an order drawn anew for each."""
    generator = random.Random(0)
    times_s: dict[str, list[float]] = {build: [] for build in measures}
    for _ in range(rounds):
        for build in generator.sample(list(measures), len(measures)):
            time.sleep(_PAUSE_S)
            times_s[build].append(measures[build]())
    return times_s


def compare_iterations(pythons: Mapping[str, Path], name: str, threads: int | None, rounds: int) -> str:
    """A line of the table for one model."""
    from autotune.catalog import load_model_by_name
    from autotune.dlrm.defaults import default_config
    from autotune.machine.topology import detect
    from autotune.ranks.launch import environment, launch_of

    machine = detect()
    config = default_config(load_model_by_name(name), machine, threads)
    variables = clean_environment() | environment(launch_of(config, machine))
    with ExitStack() as stack:
        workers = {build: stack.enter_context(Worker(python, name, config.threads, variables)) for build, python in pythons.items()}
        step_s = max(worker.time_s(1) for worker in workers.values())
        steps = max(1, min(_MAX_STEPS, round(_TURN_S / step_s)))
        times_s = in_turns({build: lambda worker=worker: worker.time_s(steps) for build, worker in workers.items()}, rounds)
    losses = [worker.losses for worker in workers.values()]
    return row(name, times_s, 1e3, "ms", "" if losses[0] == losses[1] else f"losses differ: {losses[0]}, {losses[1]}")


def compare_command(pythons: Mapping[str, Path], arguments: Sequence[str], rounds: int) -> str:
    """A line of the table for one command. Bytecode of both builds lies in a folder that the first run of each fills, for an installed
    build has its bytecode beside it and an editable one may not."""
    with tempfile.TemporaryDirectory() as bytecode:
        measures = {build: lambda python=python: cpu_time_s(python, arguments, bytecode) for build, python in pythons.items()}
        for measure in measures.values():
            measure()
        return row(f"autotune {' '.join(arguments[:1])}", in_turns(measures, rounds), 1.0, "s of CPU")


def cpu_time_s(python: Path, arguments: Sequence[str], bytecode: str) -> float:
    """User and system time of one command."""
    command = [str(python), "-m", "autotune", *arguments]
    environment = clean_environment() | {"PYTHONPYCACHEPREFIX": bytecode}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd="/") as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def clean_environment() -> dict[str, str]:
    """This environment without what would lead one build to the modules of the other, or keep bytecode from being written."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}


def row(name: str, times_s: Mapping[str, Sequence[float]], scale: float, unit: str, note: str = "") -> str:
    """Medians of both, their ratio with its interval, and the number of rounds."""
    from autotune.bench.samples import ratio

    relative = ratio(times_s[THIS], times_s[OTHER])
    medians = [scale * sorted(times_s[build])[len(times_s[build]) // 2] for build in (THIS, OTHER)]
    text = f"{name:18} {medians[0]:9.3f} {medians[1]:9.3f} {unit:9} {relative.median:6.3f} [{relative.low:.3f}, {relative.high:.3f}]"
    return f"{text} {relative.samples:6} {note}".rstrip()


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--worker"]:
        work(arguments[1], int(arguments[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", metavar="OTHER_VENV", type=Path)
    parser.add_argument("--models", default="small,rm2,mlperf-1m")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--commands", action="store_true")
    parser.add_argument("--config", type=Path)
    options = parser.parse_args(arguments)
    pythons = {THIS: Path(sys.executable), OTHER: options.other.absolute() / "bin" / "python"}
    if not pythons[OTHER].exists():
        parser.error(f"OTHER_VENV must be a virtual environment with a build, got no {pythons[OTHER]}")
    if options.commands and options.config is None:
        parser.error("--commands explains a file, got none; give one with --config")
    print(f"{'':18} {THIS:>9} {OTHER:>9} {'':9} {'ratio':>6} {'95 % interval':16} rounds")
    for name in filter(None, options.models.split(",")):
        print(compare_iterations(pythons, name, options.threads, options.rounds), flush=True)
    if options.commands:
        for command in (["--help"], ["explain", str(options.config.absolute())]):
            print(compare_command(pythons, command, options.rounds), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
