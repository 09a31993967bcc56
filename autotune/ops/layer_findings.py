"""What is remarkable about a measured pass of a layer: columns that fill no vector, blocks dealt out unevenly, too few flops a byte."""

from __future__ import annotations

from collections.abc import Iterator

from autotune.ops.base import Measured, Observation, Work
from autotune.ops.layer import LayerKnobs
from autotune.ops.layer_shapes import Direction, busiest, padded, shape_of

_LEAST_WASTE = 0.1
"""Share of the arithmetic spent on padding, or of the threads' time spent waiting for the busiest, from which it is worth a word."""


def layer_findings(direction: Direction, shape: tuple[int, int, int], work: Work, measured: Measured) -> Iterator[Observation]:
    """Observations about one pass.

    Args:
        shape: N, C, K.
        work: of the pass.
    """
    knobs = measured.knobs
    if isinstance(knobs, LayerKnobs) and knobs.implementation == "blocked":
        rows, columns, _ = shape_of(direction, *shape)
        yield from _padding(columns, measured)
        yield from _uneven_blocks(rows, columns, knobs, measured)
    fractions = measured.fractions
    if measured.bound_by == "memory" or fractions.get("memory", 0.0) > fractions.get("compute", 0.0):
        yield from _too_few_flops(shape, work, measured)


def _padding(columns: int, measured: Measured) -> Iterator[Observation]:
    lanes, covered = measured.lanes, padded(columns, measured.lanes)
    waste = 1.0 - columns / covered
    if waste < _LEAST_WASTE:
        return
    remedy = f"make the layer {covered} or {columns // lanes * lanes} wide, a multiple of {lanes}"
    if columns < lanes:
        remedy = "a layer so narrow is cheapest in torch's own product (implementation: torch), or fused with its neighbour"
    evidence = f"its {columns} output columns fill vectors of {lanes} up to {covered}: {waste:.0%} of the arithmetic is padding."
    yield Observation("padded_layer", min(measured.time_s * waste, measured.above_ceiling_s), evidence, remedy)


def _uneven_blocks(rows: int, columns: int, knobs: LayerKnobs, measured: Measured) -> Iterator[Observation]:
    threads, bn = measured.threads, knobs.bn
    row_threads = threads // knobs.thread_columns
    load = threads * busiest(rows, bn, row_threads) / rows * busiest(columns, knobs.bk, knobs.thread_columns) / columns
    waste = 1.0 - 1.0 / load
    if waste < _LEAST_WASTE:
        return
    blocks, panels = -(-rows // bn), -(-columns // knobs.bk)
    evidence = f"{blocks} row blocks x {panels} panels over {threads} threads: the busiest gets {load:.2f}x the mean."
    remedy = f"smaller row blocks (bn below {bn}) or a minibatch of a multiple of {bn * row_threads} rows deals them out evenly"
    yield Observation("uneven_blocks", min(measured.time_s * waste, measured.above_ceiling_s), evidence, remedy)


def _too_few_flops(shape: tuple[int, int, int], work: Work, measured: Measured) -> Iterator[Observation]:
    """A layer with too few flops a byte for this machine: the first one, as a rule, whose inputs are few."""
    if measured.balance is None:
        return
    samples, inputs, outputs = shape
    activations = samples * (inputs + outputs) / (samples * (inputs + outputs) + inputs * outputs)
    evidence = (
        f"{inputs} x {outputs} does {work.intensity:.1f} flops a byte, and this machine needs {measured.balance:.0f} to be kept busy by "
        "arithmetic."
    )
    remedy = f"{1 - activations:.0%} of its bytes are weights: a larger minibatch re-uses them"
    if activations > 0.5:
        fixed = f"{activations:.0%} of its bytes are activations, which no minibatch changes"
        remedy = f"{fixed}: bf16 halves them, a wider layer uses them more"
    yield Observation("memory_bound_layer", measured.above_ceiling_s, evidence, remedy)
