"""The commands as functions: `autotune.probe`, `run`, `profile`, `tune`, `explain`, `verify`, `export`.

A model is given as a `Model`, a shipped name or a file; a config as a `TunedConfig` or a file. Threads are not bound here: that is
decided before a process starts (see `Launch`), and the command line does it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from autotune import catalog
from autotune.bench.frames import frame_of
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.files import load_tuned
from autotune.config.knobs import RunConfig
from autotune.config.model import DataSpec, Model
from autotune.config.profile import Profile
from autotune.config.tuned import TunedConfig
from autotune.dlrm.data import BatchSource, make_source
from autotune.dlrm.model import DLRM
from autotune.dlrm.train import train
from autotune.explain.diagnosis import Explanation
from autotune.explain.diagnosis import explain as _explain
from autotune.export.targets import export as _export
from autotune.ops.native import kernels
from autotune.perf.measure import measure
from autotune.perf.table import OperatorTable
from autotune.probe.cache import load_or_probe
from autotune.probe.topology import available_memory_bytes, detect, fingerprint
from autotune.report.record import RunResult, run_result
from autotune.tune.compatibility import check
from autotune.tune.study import tune as _tune
from autotune.tune.verify import Verification
from autotune.tune.verify import verify as _verify

__all__ = ["explain", "export", "frame", "load_model", "load_tuned", "probe", "profile", "run", "tune", "verify"]

load_model = catalog.load_model_by_name


def probe(*, refresh: bool = False, progress: Progress = NO_PROGRESS) -> Profile:
    """This machine's profile: the stored one, or a new one where there is none or `refresh` asks for it. Takes under a minute."""
    return load_or_probe(refresh=refresh, progress=progress)


def run(
    model: Model | str | Path,
    *,
    steps: int = 50,
    config: TunedConfig | RunConfig | str | Path | None = None,
    data: DataSpec | None = None,
    force: bool = False,
) -> RunResult:
    """Train for `steps` iterations and tell what they took.

    Raises:
        InputError: a name, a file or a value is wrong.
        FingerprintError: the config belongs to another model, or to other hardware without `force`.
        MachineError: the model does not fit in memory.
    """
    dlrm, source, notes = _build(model, config, data, force)
    return run_result(train(dlrm, source, steps), notes)


def profile(
    model: Model | str | Path,
    *,
    config: TunedConfig | RunConfig | str | Path | None = None,
    data: DataSpec | None = None,
    rounds: int = 20,
    force: bool = False,
    progress: Progress = NO_PROGRESS,
) -> OperatorTable:
    """For every operator pass its time, its work and what bounds it. Raises as `run` does."""
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
    name = None if isinstance(model, Model) else str(model)  # `verify` looks the model up by it
    return _tune(_model(model), sockets=sockets, budget_s=budget_s, output=Path(output), seed=seed, progress=progress, name=name)


def explain(config: TunedConfig | str | Path) -> Explanation:
    """What was chosen, what each choice gained, what bounds every operator pass, and what is left."""
    return _explain(_tuned(config))


def verify(
    config: TunedConfig | str | Path, *, budget_s: float = 30.0, force: bool = False, progress: Progress = NO_PROGRESS
) -> Verification:
    """Measure the default against the config again, side by side; `holds` tells whether the gain is still there."""
    tuned = _tuned(config)
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
    return config if isinstance(config, TunedConfig) else load_tuned(Path(config))


def _build(
    model: Model | str | Path, config: TunedConfig | RunConfig | str | Path | None, data: DataSpec | None, force: bool
) -> tuple[DLRM, BatchSource, tuple[str, ...]]:
    chosen, topology = _model(model), detect()
    catalog.check_fits(chosen, available_memory_bytes(topology))
    notes: tuple[str, ...] = ()
    if config is not None and not isinstance(config, RunConfig):
        tuned = _tuned(config)
        notes = tuple(check(tuned, chosen, fingerprint(topology, kernels.target()), force=force))
        config = tuned.config
    return DLRM(chosen, config, machine=topology), make_source(chosen, data), notes
