"""The commands as functions: `autotune.probe`, `run`, `profile`, `tune`, `explain`, `verify`, `export`.

A model is given as a `Model`, a shipped name or a file; a config as a `TunedConfig` or a file. Threads are not bound here: that is
decided before a process starts (see `Launch`), and the command line does it. On several sockets the ranks are processes of their own, which
are started, bound and ended with the call (see `tune.commands`); progress is not told then.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from autotune import catalog
from autotune.bench.frames import frame_of
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.files import load_tuned as _load_config
from autotune.config.files import load_tuned_and_record as load_tuned
from autotune.config.files import write_tuned
from autotune.config.knobs import RunConfig
from autotune.config.model import DataSpec, Model
from autotune.config.profile import Profile
from autotune.config.tuned import TunedConfig
from autotune.data.batches import BatchSource, make_source
from autotune.dlrm.defaults import changed_defaults
from autotune.dlrm.model import DLRM
from autotune.dlrm.train import train
from autotune.errors import InputError
from autotune.explain.diagnosis import Explanation
from autotune.explain.diagnosis import explain as _explain
from autotune.export.targets import export as _export
from autotune.ops.native import kernels
from autotune.perf.measure import measure
from autotune.perf.table import OperatorTable
from autotune.probe.store import load_or_probe
from autotune.probe.topology import available_memory_bytes, detect, fingerprint
from autotune.report.record import RunResult, run_result
from autotune.tune.commands import as_file, call, data_words
from autotune.tune.compatibility import check
from autotune.tune.study import tune as _tune
from autotune.tune.verify import Verification
from autotune.tune.verify import verify as _verify

__all__ = ["explain", "export", "frame", "load_model", "load_tuned", "probe", "profile", "run", "tune", "verify"]

T = TypeVar("T")

load_model = catalog.load_model_by_name


def probe(*, sockets: int = 1, refresh: bool = False, progress: Progress = NO_PROGRESS) -> Profile:
    """This machine's profile: the stored one, or a new one where there is none or `refresh` asks for it. Takes under a minute.

    With several sockets it holds the network between so many ranks.
    """
    if sockets != 1:
        return call(["probe", "--sockets", str(sockets), *(["--refresh"] if refresh else [])], Profile)
    return load_or_probe(refresh=refresh, progress=progress)


def run(
    model: Model | str | Path,
    *,
    steps: int = 50,
    sockets: int | None = None,
    config: TunedConfig | RunConfig | str | Path | None = None,
    data: DataSpec | None = None,
    force: bool = False,
) -> RunResult:
    """Train for `steps` iterations and tell what they took.

    Args:
        sockets: Ranks; default those of the config, else 1.

    Raises:
        InputError: a name, a file or a value is wrong.
        FingerprintError: the config belongs to another model, or to other hardware without `force`.
        MachineError: the model does not fit in memory.
    """
    if _ranks(sockets, config) != 1:
        return _on_ranks(["run"], model, sockets, config, data, force, ["--steps", str(steps)], RunResult)
    dlrm, source, notes = _build(model, config, data, force)
    return run_result(train(dlrm, source, steps), notes)


def profile(
    model: Model | str | Path,
    *,
    sockets: int | None = None,
    config: TunedConfig | RunConfig | str | Path | None = None,
    data: DataSpec | None = None,
    rounds: int = 20,
    force: bool = False,
    progress: Progress = NO_PROGRESS,
) -> OperatorTable:
    """For every operator pass its time, its work and what bounds it. Raises as `run` does."""
    if _ranks(sockets, config) != 1:
        return _on_ranks(["profile"], model, sockets, config, data, force, ["--rounds", str(rounds)], OperatorTable)
    dlrm, source, notes = _build(model, config, data, force)
    table = measure(dlrm, source, load_or_probe(progress=progress), rounds=rounds, progress=progress)
    return replace(table, notes=table.notes + notes)


def tune(
    model: Model | str | Path,
    *,
    sockets: int = 1,
    budget_s: float = 120.0,
    output: str | Path,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> TunedConfig:
    """Search, confirm, and write the tuned config to `output`; called again after an interruption it goes on. See `tune.study.tune`."""
    if sockets != 1:
        with as_file(model) as file:
            words = ["tune", file, "--sockets", str(sockets), "--budget", f"{budget_s:g}s", "--seed", str(seed), "-o", str(output)]
            call(words, dict[str, Any])
            found = load_tuned(output)
        if isinstance(model, Model):
            # The file is gone; `verify` takes the model from its caller, or finds it by its name.
            found = found.model_copy(update={"model": model.name})
            write_tuned(output, found)
        return found
    name = None if isinstance(model, Model) else str(model)  # `verify` looks the model up by it
    return _tune(_model(model), sockets=sockets, budget_s=budget_s, output=Path(output), seed=seed, progress=progress, name=name)


def explain(config: TunedConfig | str | Path) -> Explanation:
    """What was chosen, what each choice gained, what bounds every operator pass, and what is left."""
    return _explain(config if isinstance(config, TunedConfig) else load_tuned(config))


def verify(
    config: TunedConfig | str | Path, *, budget_s: float = 30.0, force: bool = False, progress: Progress = NO_PROGRESS
) -> Verification:
    """Measure the default against the config again, side by side; `holds` tells whether the gain is still there."""
    tuned = _tuned(config)
    if tuned.sockets != 1:
        with as_file(config) as file:
            return call(["verify", file, "--budget", f"{budget_s:g}s", *(["--force"] if force else [])], Verification)
    return _verify(tuned, load_model(tuned.model), budget_s=budget_s, progress=progress, force=force)


def export(config: TunedConfig | str | Path, to: str) -> str:
    """The config as text for another launcher: env, torchrun, slurm, mpirun or json."""
    return _export(_tuned(config), to, None if isinstance(config, TunedConfig) else config)


def frame(result: OperatorTable | Profile | TunedConfig | Explanation) -> pd.DataFrame:
    """The main table of a result as a pandas frame: operator passes, ceilings, gains, or findings.

    Intervals and mappings become columns of their own (see `bench.frames.frame_of`); a ceiling's line names it in `ceiling`.
    """
    if isinstance(result, OperatorTable):
        return result.frame()
    if isinstance(result, TunedConfig):
        return frame_of(result.gains)
    if isinstance(result, Explanation):
        return frame_of(result.findings)
    parts = {name: frame_of(getattr(result.ceilings, name)) for name in type(result.ceilings).model_fields}
    return pd.concat([part.assign(ceiling=name) for name, part in parts.items() if len(part)], ignore_index=True)


def _model(model: Model | str | Path) -> Model:
    return model if isinstance(model, Model) else load_model(str(model))


def _tuned(config: TunedConfig | str | Path) -> TunedConfig:
    return config if isinstance(config, TunedConfig) else _load_config(config)


def _ranks(sockets: int | None, config: TunedConfig | RunConfig | str | Path | None) -> int:
    """Those that are asked for; a config of another number is refused by the command, or in `_build`."""
    if sockets is not None:
        return sockets
    return 1 if config is None or isinstance(config, RunConfig) else _tuned(config).sockets


def _on_ranks(
    words: list[str],
    model: Model | str | Path,
    sockets: int | None,
    config: TunedConfig | RunConfig | str | Path | None,
    data: DataSpec | None,
    force: bool,
    options: list[str],
    result: type[T],
) -> T:
    """A command on several sockets."""
    if isinstance(config, RunConfig):
        raise InputError("a RunConfig is of one process, got one for several sockets; give a tuned config or a file")
    with as_file(model) as file, ExitStack() as stack:
        words = [*words, file, *options, *data_words(data, _model(model)), *(["--force"] if force else [])]
        words += [] if sockets is None else ["--sockets", str(sockets)]
        words += [] if config is None else ["--config", stack.enter_context(as_file(config))]
        return call(words, result)


def _build(
    model: Model | str | Path, config: TunedConfig | RunConfig | str | Path | None, data: DataSpec | None, force: bool
) -> tuple[DLRM, BatchSource, tuple[str, ...]]:
    chosen, topology = _model(model), detect()
    catalog.check_fits(chosen, available_memory_bytes(topology))
    notes: tuple[str, ...] = ()
    if config is not None and not isinstance(config, RunConfig):
        tuned = _tuned(config)
        notes = (*check(tuned, chosen, fingerprint(topology, kernels.target()), force=force), *changed_defaults(tuned, chosen))
        config = tuned.config
    return DLRM(chosen, config, machine=topology), make_source(chosen, data), notes
