"""What the shape of a layer costs: columns that do not fill a panel, blocks that do not part evenly, too few flops a byte."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, cast, get_args

from autotune.config.model import Model
from autotune.config.tuned import MeasuredPass, TunedConfig
from autotune.explain import wording
from autotune.explain.remedies import Remedy
from autotune.explain.terms import WORTH_NAMING, above_ceiling_s, iteration_s, ranks_on_host
from autotune.explain.wording import FindingKind
from autotune.ops.layer import LayerKnobs
from autotune.ops.layer_shapes import Direction, busiest, padded, shape_of
from autotune.perf.roofline import peak_ceiling, stream_ceiling
from autotune.perf.share import per_rank

# Of the arithmetic spent on zero columns, or of the threads' time spent waiting for the busiest.
_LEAST_WASTE = 0.1


class LayerFinding(NamedTuple):
    """The fields of a `Finding`."""

    kind: FindingKind
    operator: str
    saving_s: float
    evidence: str
    remedy: Remedy


class _LayerPass(NamedTuple):
    which: Direction
    samples: int
    inputs: int
    outputs: int


def layer_findings(config: TunedConfig) -> Iterator[LayerFinding]:
    """Of every pass of every layer that takes a noticeable part of the iteration."""
    if config.workload is None:
        return
    least_s = WORTH_NAMING * iteration_s(config)
    for verdict in config.verdicts:
        of_layer = _pass_of(config.workload, verdict.operator, config.sockets)
        if of_layer is None or verdict.time_s.median < least_s:
            continue
        knobs = config.config.operators.get(verdict.operator)
        if isinstance(knobs, LayerKnobs) and knobs.implementation == "blocked":
            yield from _blocks(verdict, of_layer, knobs, config.config.threads, _lanes(config))
        if verdict.binder == "memory" or verdict.fractions.get("memory", 0.0) > verdict.fractions.get("compute", 0.0):
            yield from _memory(config, verdict, of_layer)


def _pass_of(model: Model, operator: str, sockets: int) -> _LayerPass | None:
    side, _, rest = operator.partition(".")
    number, _, which = rest.partition(".")
    sizes = {"bottom_mlp": model.bottom_mlp, "top_mlp": model.top_sizes}.get(side)
    if sizes is None or which not in get_args(Direction) or not number.isdigit() or int(number) >= len(sizes) - 1:
        return None
    inputs, outputs = list(pairwise(sizes))[int(number)]
    samples = -(-model.minibatch // sockets)
    return _LayerPass(cast(Direction, which), samples, inputs, outputs)


def _lanes(config: TunedConfig) -> int:
    """Floats in a vector of the kernels that ran."""
    return {"scalar": 1, "avx2": 8}.get(config.fingerprint.target, 16)


def _blocks(verdict: MeasuredPass, of_layer: _LayerPass, knobs: LayerKnobs, threads: int, lanes: int) -> Iterator[LayerFinding]:
    rows, columns, _ = shape_of(*of_layer)
    covered = padded(columns, lanes)
    time_s = verdict.time_s.median
    if 1.0 - columns / covered >= _LEAST_WASTE:
        evidence = wording.padded_evidence(columns, covered, lanes)
        saving_s = min(time_s * (1.0 - columns / covered), above_ceiling_s(verdict))
        yield LayerFinding("padded_layer", verdict.operator, saving_s, evidence, wording.padded_remedy(columns, covered, lanes))
    blocks, panels = -(-rows // knobs.bn), -(-columns // knobs.bk)
    row_threads = threads // knobs.thread_columns
    load = threads * busiest(rows, knobs.bn, row_threads) / rows * busiest(columns, knobs.bk, knobs.thread_columns) / columns
    if 1.0 - 1.0 / load >= _LEAST_WASTE:
        evidence = wording.uneven_blocks_evidence(blocks, panels, threads, load)
        saving_s = min(time_s * (1.0 - 1.0 / load), above_ceiling_s(verdict))
        yield LayerFinding("uneven_blocks", verdict.operator, saving_s, evidence, wording.uneven_blocks_remedy(knobs.bn, row_threads))


def _memory(config: TunedConfig, verdict: MeasuredPass, of_layer: _LayerPass) -> Iterator[LayerFinding]:
    """A layer with too few flops a byte for this machine: the first one, as a rule, whose inputs are few."""
    if config.profile is None or not verdict.bytes or not verdict.flops:
        return
    ceilings = per_rank(config.profile.ceilings, ranks_on_host(config))
    threads = config.config.threads
    balance = peak_ceiling(ceilings, threads) / stream_ceiling(ceilings, "read", threads)
    _, samples, inputs, outputs = of_layer
    weights = inputs * outputs
    activations = samples * (inputs + outputs)
    evidence = wording.memory_layer_evidence(inputs, outputs, verdict.flops / verdict.bytes, balance)
    remedy = wording.memory_layer_remedy(activations / (activations + weights))
    yield LayerFinding("memory_bound_layer", verdict.operator, above_ceiling_s(verdict), evidence, remedy)
