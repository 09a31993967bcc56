"""Times every pass inside the steps of reference models: small models that between them cover the shapes that models have.

Inside a step a pass finds in the caches what the passes before it left there, and no loop that runs alone shows that. The models are
fixed, made for coverage, and are no user's: widths from 13 to 2048, minibatches from 128 to 8192, rows of 64 B to 1 KiB, tables from
what a cache holds to a gigabyte, poolings of 1 to 60, uniform and Zipf, 3 to 41 features. Half of their layers' passes run under random
knobs, the same in every probe, so that whatever a tuner may choose lies among what was measured.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.repetitions import LEAST_STEPS, REPETITIONS, STEPS, TimedModel, fastest_passes, grouped, repetitions, timed_steps
from autotune.bench.rounds import Turn, run_rounds
from autotune.bench.samples import ratio
from autotune.config.calibration import CalibrationRun
from autotune.config.knobs import RunConfig
from autotune.config.model import DTYPES, DataSpec, Model, Table
from autotune.config.profile import Topology
from autotune.config.required_memory import required_memory_bytes
from autotune.data.batches import make_source
from autotune.dlrm.defaults import default_config, random_config
from autotune.dlrm.model import DLRM
from autotune.ops import embedding_bag

_AGAIN_S = 5.0
_GAIN_MODEL = 2
_GAIN_ROUNDS = 5
_GAIN_TURN_S = 0.5
_GAIN_TABLES_BYTES = 1e7


@dataclass(frozen=True)
class Shape:
    """A made-up model, and what is varied about it beside the threads."""

    minibatch: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    """Without the last layer, of one output."""
    tables: tuple[tuple[int, int, int], ...]
    """Rows, pooling, count."""
    alpha: float = 0.0
    """Zipf; 0 is uniform."""
    small_pages: bool = False
    """Also with its tables on 4 KiB pages."""
    strategies: tuple[str, ...] = ()
    """Also with these updates."""

    def model(self, name: str, source: str, limit_bytes: float) -> Model:
        """The model, its rows cut so that all tables take no more than `limit_bytes`."""
        dim, tables = self.bottom[-1], []
        cut = min(1.0, limit_bytes / (sum(rows * count for rows, _, count in self.tables) * dim * 4))
        for rows, pooling, count in self.tables:
            tables.append(Table(rows=max(2, int(rows * cut)), dim=dim, pooling=pooling, count=count))
        return Model(
            schema=1,
            name=name,
            source=source,
            description="no published model",
            minibatch=self.minibatch,
            bottom_mlp=self.bottom,
            top_mlp=(*self.top, 1),
            data=DataSpec(distribution="zipf", alpha=self.alpha) if self.alpha else DataSpec(),
            tables=tuple(tables),
        )


_ALL = ("race_free_range", "race_free_modulo", "bucketed")
_SHAPES = (
    # Layers of whole panels and of ragged ones, wide and narrow, over short and long reductions.
    Shape(2048, (13, 512, 256, 64), (512, 256), ((100_000, 20, 8),), strategies=_ALL),
    Shape(2048, (250, 117, 32), (1000, 333), ((200_000, 1, 20),)),
    Shape(1024, (512, 512, 128), (1024, 1024, 512), ((40_000, 1, 26),)),
    Shape(512, (77, 256, 16), (128, 50), ((1_000_000, 40, 4),), small_pages=True),
    Shape(4096, (64, 52, 64), (211, 64), ((20_000, 4, 12),)),
    Shape(512, (1024, 1024, 256), (2048, 1024), ((50_000, 10, 16),), small_pages=True),
    Shape(256, (300, 201, 48), (700, 274), ((300_000, 30, 6),)),
    Shape(1024, (128, 1024, 128), (601, 200), ((30_000, 2, 26),), alpha=0.8),
    Shape(8192, (13, 90, 32), (128,), ((1_000, 3, 8),)),
    Shape(128, (512, 256, 64), (1024, 512, 256), ((200_000, 60, 8),)),
    Shape(4096, (512, 1024, 128), (1434, 52), ((400_000, 1, 2),)),
    Shape(1024, (2048, 512, 64), (512, 512), ((100_000, 50, 40),), strategies=_ALL),
    Shape(512, (200, 96), (900, 333), ((150_000, 12, 10),), alpha=1.2),
    Shape(256, (64, 387, 256), (873, 2048, 67), ((100_000, 5, 6),)),
    Shape(1400, (1286, 64, 16), (1140, 22), ((500_000, 8, 12),)),
    Shape(3000, (751, 32), (40, 300), ((500_000, 2, 3),), alpha=0.6),
    # Look-ups: what the layers take is short, so that more tables fit the time.
    Shape(2048, (16, 64), (57,), ((4_000_000, 8, 4),), small_pages=True),
    Shape(2048, (100, 64), (50,), ((1_000_000, 30, 4),), alpha=1.05, strategies=_ALL),
    Shape(512, (16, 128), (40,), ((1_000_000, 50, 2), (5_000, 20, 3))),
    Shape(4096, (16, 96), (40,), ((60_000, 3, 5),)),
    Shape(512, (16, 256), (40,), ((400_000, 25, 3),), alpha=0.9),
    Shape(1024, (16, 32), (40,), ((3_000_000, 60, 5),)),
    Shape(4096, (16, 16), (40,), ((10_000, 20, 10),)),
    Shape(256, (16, 128), (40,), ((30_000, 10, 30),), alpha=1.3),
    Shape(6000, (16, 48), (40,), ((2_000_000, 5, 6),), alpha=1.0),
    # Between what fits one core's cache and what fits none.
    Shape(1024, (16, 128), (40,), ((4_000, 30, 6),), strategies=_ALL),
    Shape(512, (16, 256), (40,), ((3_000, 12, 10),)),
    Shape(2048, (16, 64), (40,), ((12_000, 15, 6),)),
    Shape(700, (16, 96), (40,), ((30_000, 40, 4),), strategies=_ALL),
    Shape(1500, (16, 32), (40,), ((90_000, 25, 6),)),
    Shape(400, (16, 128), (40,), ((100_000, 20, 6),)),
    Shape(3000, (16, 96), (40,), ((1_500, 40, 1), (150_000, 3, 1)), strategies=_ALL),
    Shape(800, (16, 48), (40,), ((250_000, 3, 12),), alpha=0.85),
    Shape(256, (16, 256), (40,), ((300_000, 8, 3),)),
    Shape(5000, (16, 64), (40,), ((2_000, 2, 16),)),
    Shape(600, (16, 192), (40,), ((20_000, 25, 3),), alpha=1.1),
)
_QUICK = (Shape(64, (13, 32), (32,), ((1_000, 3, 3),)), Shape(96, (24, 64), (48, 16), ((500, 1, 5),), alpha=1.05))


def reference_models(limit_bytes: float, quick: bool = False) -> list[tuple[Model, Shape]]:
    """The models, tables cut so that none takes more than `limit_bytes`."""
    shapes = _QUICK if quick else _SHAPES
    return [(shape.model(f"reference-{i}", "made for calibration", limit_bytes), shape) for i, shape in enumerate(shapes)]


def calibrate(
    topology: Topology,
    threads: Sequence[int],
    available_bytes: int,
    *,
    budget_s: float = 40.0,
    progress: Progress = NO_PROGRESS,
    quick: bool = False,
    steady: Callable[[], bool] = lambda: True,
) -> tuple[CalibrationRun, ...]:
    """Train every reference model for some steps with each number of threads.

    Args:
        threads: To use; of more than three the least, the middle and the most.
        available_bytes: No model takes more than a quarter of it; one whose layers alone do is left out.
        budget_s: Wall time, seconds; the later steps of each run are left out to keep it.
        quick: Two tiny models and few steps: the structure, not a measurement.
        steady: Whether the machine is still as its ceilings were measured, asked after each group of models; one measured while it was
            not is measured once more at the end.
    """
    counts = sorted({threads[0], threads[len(threads) // 2], threads[-1]}) if len(threads) > 3 else list(threads)
    limit_bytes = available_bytes / 4
    shapes = {model.name: (model, shape) for model, shape in reference_models(limit_bytes / 2, quick)}
    models = [model for model, _ in shapes.values() if required_memory_bytes(model) < limit_bytes]
    runs: dict[str, list[CalibrationRun]] = {}
    monitor, before = NoiseMonitor(topology.allowed_cpus), torch.get_num_threads()
    deadline_s, left = time.perf_counter() + budget_s, len(models)
    progress.phase("calibrating on reference models", float(left))
    try:
        groups = grouped(models, limit_bytes)
        again: list[list[Model]] = []
        for i, group in enumerate(itertools.chain(groups, again)):
            now_s = time.perf_counter()
            if i == len(groups):
                progress.phase("calibrating again what another state of the machine disturbed", float(sum(map(len, again))))
            share_s = (deadline_s - now_s) * len(group) / left if i < len(groups) else _AGAIN_S
            timed_models = [TimedModel(model, list(_variants(model, shapes[model.name][1], topology, counts)), topology) for model in group]
            for model in group:
                runs.pop(model.name, None)
            count, steps = (1, (LEAST_STEPS,) * 2) if quick else (REPETITIONS, STEPS)
            for repeated in repetitions(timed_models, monitor, count=count, steps=steps, end_s=now_s + share_s):
                run = fastest_passes(repeated)
                runs.setdefault(run.model.name, []).append(run)
            left -= len(group)
            del timed_models  # before the next ones take their memory
            progress.advance(float(len(group)), group[-1].name)
            if not steady() and i < len(groups):
                again.append(group)
    finally:
        torch.set_num_threads(before)
    return tuple(run for runs_of_model in runs.values() for run in runs_of_model)


def bf16_gain(topology: Topology, threads: int) -> float:
    """Speedup of the layers' forward passes in bf16 over fp32 on one reference model: the median ratio of a few interleaved rounds.

    What bf16 does to bytes is in it, and small at its widths.
    """
    model, _ = reference_models(_GAIN_TABLES_BYTES)[_GAIN_MODEL]
    monitor, before = NoiseMonitor(topology.allowed_cpus), torch.get_num_threads()

    def turn_in(dtype: str) -> Turn:
        changed = model.model_copy(update={"dtype": dtype})
        source = make_source(changed)
        dlrm = DLRM(changed, default_config(changed, topology, threads), machine=topology)
        batches = [source.batch(i) for i in range(2)]

        def turn() -> tuple[float]:
            end_s = time.perf_counter() + _GAIN_TURN_S
            passes_s = timed_steps(dlrm, batches, monitor, steps=(LEAST_STEPS,) * 2, end_s=end_s).passes_s
            return (sum(passes_s[key] for key, operator in dlrm.schedule.operators.items() if operator.kind == "mlp.forward"),)

        return turn

    try:
        samples = run_rounds({dtype: turn_in(dtype) for dtype in DTYPES}, max_rounds=_GAIN_ROUNDS, warmup=0).samples
    finally:
        torch.set_num_threads(before)
    return ratio(samples["fp32"], samples["bf16"]).median


def _variants(model: Model, shape: Shape, topology: Topology, counts: Sequence[int]) -> Iterator[RunConfig]:
    """Each number of threads with random knobs, the most of them with each strategy; last the other page size, since tables then move."""
    for count in counts:
        config = random_config(model, topology, count, f"{model.name} on {count}")
        yield config
    update = config.operators[embedding_bag.UPDATE]
    for strategy in shape.strategies:
        if strategy != getattr(update, "strategy", strategy):
            chosen = update.model_copy(update={"strategy": strategy})
            yield config.model_copy(update={"operators": {**config.operators, embedding_bag.UPDATE: chosen}})
    if shape.small_pages and config.huge_pages:
        yield config.model_copy(update={"huge_pages": False})
