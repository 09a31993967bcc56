"""Every operator of the shipped models against its ceiling; see conftest.py for how, CONTRIBUTING.md for how to read the table."""

from __future__ import annotations

import gc
import resource
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from autotune.bench.samples import ratio
from autotune.catalog import load_model_by_name
from autotune.config.model import DataSpec
from autotune.config.tuned import Interval
from autotune.data.batches import make_source
from autotune.dlrm.defaults import default_config
from autotune.dlrm.schedule import layer_shapes
from autotune.machine.topology import vector_lanes
from autotune.ops import embedding_bag, interaction
from autotune.ops.base import Operator
from autotune.ops.embedding_case import EmbeddingCase
from autotune.ops.embedding_tables import EmbeddingBags, Lookups
from autotune.ops.loss import KEY as LOSS
from autotune.perf.ceilings import peak_ceiling
from autotune.perf.roofline import limits
from autotune.perf.table import OTHER

MODELS = ("small", "rm2", "mlperf-1m")
_HISTOGRAM = "meta_embedding_locality_2021.txt"
# Targets of the project: fractions of a ceiling, shares of an iteration.
_GATHER, _SCATTER, _GEMM, _INTERACTION, _ITERATION, _OTHER_SHARE = 0.90, 0.85, 0.93, 1 / 1.3, 1 / 1.10, 0.03
# Speed of the Adagrad update over that of SGD's, and of tuned knobs over default ones.
_ADAGRAD, _TUNED = 1 / 1.6, 1.03
_GEMM_FROM_FLOPS = 10e6
_STEPS = 20
# Less than one object a step: an object and its reference take 64 B and more.
_GROWN = 64.0 * _STEPS
_TIMED_STEPS = 11
# A step touches all its memory in the first few; the rest goes to whatever the interpreter still caches.
_WARM_STEPS = 3

by_model = pytest.mark.parametrize("model", MODELS)


def _layers() -> list[Any]:
    """Model and pass, a shape that occurs twice in a model once."""
    found: dict[tuple[Any, ...], Any] = {}
    for name in MODELS:
        model = load_model_by_name(name)
        shapes = {layer: shape for layer, *shape in layer_shapes(model)}
        for key in default_config(model, threads=1).operators:
            layer, _, which = key.rpartition(".")
            if layer in shapes:
                first = layer.endswith(".0")  # without a mask
                found.setdefault((name, which, first, *shapes[layer]), pytest.param(name, key, id=f"{name}-{key}"))
    return list(found.values())


@pytest.mark.parametrize(("model", "key"), _layers())
def test_layer(bench: Any, benchmark: Any, model: str, key: str) -> None:
    """Against the best GEMM rate; asked of layers with 10 MFLOP and more."""
    operator = bench.operators(model)[key]
    work, (_, samples, inputs, outputs, *_) = operator.work(), operator.shape
    shape = f"N {samples} C {inputs} K {outputs}"
    target = _GEMM if work.flops >= _GEMM_FROM_FLOPS else None
    bench.hold(benchmark, model, operator, shape, ("gemm",), lambda c: limits_of_compute(work, c, bench.threads), target)


def limits_of_compute(work: Any, ceilings: Any, threads: int) -> float:
    return float(work.flops / max(point.flops_per_s for point in ceilings.gemm if point.threads == threads))


@by_model
@pytest.mark.parametrize("key", [interaction.FORWARD, interaction.BACKWARD])
def test_interaction(bench: Any, benchmark: Any, model: str, key: str) -> None:
    """Against its bytes at stream bandwidth or its flops at peak, whichever is longer."""
    operator = bench.operators(model)[key]
    work, (_, samples, features, dim) = operator.work(), operator.shape

    def least_s(ceilings: Any) -> float:
        return max(limits(work, ceilings, bench.threads).memory_s, work.flops / peak_ceiling(ceilings, bench.threads))

    bench.hold(benchmark, model, operator, f"N {samples} F {features} E {dim}", ("stream", "fma"), least_s, _INTERACTION)


@by_model
@pytest.mark.parametrize("key", [embedding_bag.FORWARD, embedding_bag.UPDATE])
def test_embedding(bench: Any, benchmark: Any, model: str, key: str) -> None:
    """Against gather or scatter-update bandwidth at the row width and table size, pooled vectors and indices at stream bandwidth."""
    operator, forward = bench.operators(model)[key], key == embedding_bag.FORWARD
    work = operator.work()
    patterns = ("gather" if forward else "scatter", "stream", "gemm")
    least_s = lambda ceilings: limits(work, ceilings, bench.threads).memory_s  # noqa: E731
    bench.hold(benchmark, model, operator, _lookups(bench, model, "uniform"), patterns, least_s, _GATHER if forward else _SCATTER)


@by_model
@pytest.mark.parametrize("data", ["zipf", "histogram"])
def test_update_under_skew(bench: Any, line: Any, benchmark: Any, model: str, data: str, shared_data: Path) -> None:
    """Against the update under uniform indices: what the tuner chooses for skewed ones shall not be slower."""
    if data == "histogram" and not (shared_data / _HISTOGRAM).exists():
        pytest.skip(f"{shared_data / _HISTOGRAM} is absent: Meta's published reuse histogram goes there")
    path = str(shared_data / _HISTOGRAM) if data == "histogram" else None
    spec = DataSpec(distribution=data, alpha=1.05 if data == "zipf" else None, path=path)  # type: ignore[arg-type]
    uniform, skewed = bench.operators(model)[embedding_bag.UPDATE], bench.skewed(model, spec, embedding_bag.UPDATE)
    knobs, other_knobs = bench.tuned(model, uniform), bench.tuned(model, skewed, data)
    case = uniform.case(0)
    uniform_s: list[float] = []
    times_s = bench.measure(benchmark, skewed.case(0), other_knobs, lambda: uniform_s.append(_seconds(case, knobs, bench.threads)))
    uniform_s = uniform_s[-len(times_s) :]
    reached = ratio(uniform_s, times_s)
    shape = _lookups(bench, model, data)
    middle_s = (sorted(times)[len(times) // 2] for times in (times_s, uniform_s))
    bench.add(benchmark, line(f"{model} {embedding_bag.UPDATE} / uniform", shape, *middle_s, reached, 1.0))


def _seconds(case: Any, knobs: Any, threads: int) -> float:
    case.run(knobs, threads)  # as the operator beside it: one call before the one that counts
    begin_s = time.perf_counter()
    case.run(knobs, threads)
    return time.perf_counter() - begin_s


def _lookups(bench: Any, name: str, data: str) -> str:
    model = bench.model(name).model
    pooling = {table.pooling for table in model.tables}
    return f"T {model.num_tables} E {model.embedding_dim} P {min(pooling):g} {data}"


@pytest.mark.parametrize("model", ["rm2"])
@pytest.mark.parametrize("key", [embedding_bag.FORWARD, embedding_bag.UPDATE])
def test_embedding_default_beside_tuned(bench: Any, line: Any, benchmark: Any, model: str, key: str) -> None:
    """How many times as fast with tuned knobs as with the default ones, on the same look-ups."""
    operator, default = bench.operators(model)[key], bench.model(model).config.operators[key]
    case, shape = operator.case(0), _lookups(bench, model, "uniform")
    tuned = (case, bench.tuned(model, operator))
    _beside(bench, line, benchmark, f"{model} {key} / default", shape, (case, default), tuned, _TUNED, at_most=True)


@pytest.mark.parametrize(
    ("model", "key", "changes", "target"),
    [
        pytest.param("small", embedding_bag.UPDATE, {"optimizer": "adagrad"}, _ADAGRAD, id="small-update-adagrad"),
        pytest.param("rm2", embedding_bag.FORWARD, {"dtype": "bf16"}, None, id="rm2-forward-bf16"),
        pytest.param("rm2", embedding_bag.UPDATE, {"optimizer": "adagrad"}, _ADAGRAD, id="rm2-update-adagrad"),
    ],
)
def test_embedding_beside_fp32_and_sgd(
    bench: Any, line: Any, benchmark: Any, model: str, key: str, changes: dict[str, str], target: float | None
) -> None:
    """How many times as fast as in fp32 with SGD, on the same look-ups and with the same knobs."""
    plain = bench.operators(model)[key]
    spec = bench.model(model).model
    samples, rows = spec.minibatch, [table.rows for table in spec.tables]
    bags = EmbeddingBags(rows, spec.embedding_dim, threads=bench.threads, **changes)
    source = make_source(spec)
    batches = [Lookups(batch.indices, batch.offsets) for batch in map(source.batch, range(4))]
    other = EmbeddingCase(bags, batches, samples, 0, warm=False, update=key == embedding_bag.UPDATE)
    knobs = bench.model(model).config.operators[key]
    name = f"{model} {key} / {'fp32' if 'dtype' in changes else 'sgd'}"
    _beside(bench, line, benchmark, name, " ".join(changes.values()), (plain.case(0), knobs), (other, knobs), target)


@pytest.mark.parametrize("which", ["forward", "backward_data", "backward_weights"])
@pytest.mark.parametrize("changes", [{"dtype": "bf16"}, {"optimizer": "adagrad"}], ids=["bf16", "adagrad"])
def test_layer_beside_fp32_and_sgd(bench: Any, line: Any, benchmark: Any, which: Any, changes: dict[str, Any]) -> None:
    """How many times as fast as in fp32 with SGD, at 2048 x 1024 x 1024, with the default knobs of each."""
    if which != "backward_weights" and "optimizer" in changes:
        pytest.skip("the optimizer is in backward-weights alone")
    kind = Operator.registry[f"mlp.{which}"]
    plain, other = (kind(f"layer.{which}", "layer", 2048, 1024, 1024, "relu", masked=True, **of) for of in ({}, changes))
    name = f"gemm {which} / {'fp32' if 'dtype' in changes else 'sgd'}"
    shape = f"N 2048 C 1024 K 1024 {' '.join(changes.values())}"
    cores = bench.topology.physical_cores
    cases = ((operator.case(0), operator.default(cores, vector_lanes())) for operator in (plain, other))
    _beside(bench, line, benchmark, name, shape, *cases)


def _beside(
    bench: Any,
    line: Any,
    benchmark: Any,
    name: str,
    shape: str,
    plain: tuple[Any, Any],
    other: tuple[Any, Any],
    target: float | None = None,
    *,
    at_most: bool = False,
) -> None:
    """A case with its knobs, and the other in the same rounds."""
    plain_s: list[float] = []
    times_s = bench.measure(benchmark, *other, lambda: plain_s.append(_seconds(*plain, bench.threads)))
    plain_s = plain_s[-len(times_s) :]
    middle_s = (sorted(times)[len(times) // 2] for times in (times_s, plain_s))
    bench.add(benchmark, line(name, shape, *middle_s, ratio(plain_s, times_s), target, at_most))


@by_model
def test_iteration(bench: Any, line: Any, benchmark: Any, model: str) -> None:
    """A step with what the races above chose, against the sum of its operators' bounds; loss, all that is no operator, and allocations."""
    dlrm, operators, threads = bench.model(model), bench.operators(model), bench.threads
    chosen = {key: knobs for (name, key), knobs in bench.chosen.items() if name == model and key in dlrm.config.operators}
    of_shape = {(type(op), op.shape): chosen[key] for key, op in operators.items() if key in chosen and hasattr(op, "shape")}
    for key, operator in operators.items():
        if key not in chosen and hasattr(operator, "shape") and (type(operator), operator.shape) in of_shape:
            chosen[key] = of_shape[type(operator), operator.shape]
    before = dlrm.config
    dlrm.configure(before.model_copy(update={"operators": {**before.operators, **chosen}}))
    batches = [make_source(dlrm.model).batch(i) for i in range(4)]
    loops = bench.loops(model, ("gemm", "fma", "stream", "gather", "scatter"))
    passes: list[dict[str, float]] = []
    steps = iter(range(10**6))

    def setup() -> None:
        loops.run()
        dlrm.step(batches[next(steps) % 4])
        dlrm.recorder.take()

    def step() -> None:
        dlrm.step(batches[next(steps) % 4])
        passes.append(dlrm.recorder.take())

    benchmark.pedantic(step, setup=setup, rounds=_TIMED_STEPS, warmup_rounds=1)
    times_s = list(benchmark.stats.stats.data)
    passes = passes[-len(times_s) :]
    bound_s = [sum(limits(op.work(), c, threads).bound_s for op in operators.values()) for c in loops.by_round(len(times_s))]
    loss_s = [taken[LOSS] for taken in passes]
    other_s = [max(total - sum(taken.values()), 1e-9) for total, taken in zip(times_s, passes, strict=True)]
    middle = lambda values: sorted(values)[len(values) // 2]  # noqa: E731
    bench.add(
        benchmark,
        line(f"{model} iteration", f"N {dlrm.model.minibatch}", middle(times_s), middle(bound_s), ratio(bound_s, times_s), _ITERATION),
        line(f"{model} {LOSS}", "share of the iteration", middle(loss_s), None, ratio(loss_s, times_s), _OTHER_SHARE, True, "share"),
        line(f"{model} {OTHER}", "Python between the passes", middle(other_s), None, ratio(other_s, times_s), _OTHER_SHARE, True, "share"),
        *_allocations(line, model, dlrm, batches),
    )
    dlrm.configure(before)


def _allocations(line: Any, name: str, dlrm: Any, batches: Any) -> list[Any]:
    """Pages faulted in and Python memory grown over some steps."""
    faults, grown = [], []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for i in range(_STEPS):
            dlrm.step(batches[i % 4])
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        dlrm.recorder.take()
    tracemalloc.start()
    try:
        for i in range(_WARM_STEPS):
            dlrm.step(batches[i % 4])
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        for i in range(_STEPS):
            dlrm.step(batches[i % 4])
        gc.collect()
        grown.append(tracemalloc.get_traced_memory()[0] - held)
        dlrm.recorder.take()
    finally:
        tracemalloc.stop()
    return [
        line(f"{name} {what}", f"{_STEPS} steps", None, None, _interval(values), target, True, unit)
        for what, values, target, unit in (("page faults", faults, 0.0, "faults"), ("Python memory grown", grown, _GROWN, "B"))
    ]


def _interval(values: list[int]) -> Interval:
    """Of counts: the least stands, since whatever else the process does comes and goes."""
    return Interval(median=min(values), low=min(values), high=max(values), samples=len(values))
