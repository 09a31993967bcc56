"""Features of the blocked GEMM as `kernels/gemm_tile-inl.h` runs it: what one pass of a layer asks of a machine, seconds by feature.

A microtile is `height` rows by `width` vectors. A step of its reduction takes height x width multiply-adds and height + width loads, and no
less than the latency of a multiply-add, since each accumulator waits for itself: what loads and latency take beyond the multiply-adds are
features of their own, so that narrow panels and low blocks are priced by what is known of wide ones.
"""

from __future__ import annotations

from autotune.ops.base import Features, Rates
from autotune.ops.layer import LayerKnobs
from autotune.ops.layer_shapes import Gemm, busiest, vector_groups

_MOST_ROWS = 12
_LOADS_PER_CYCLE = _FMAS_PER_CYCLE = 2
_FMA_LATENCY = 4
_OWN_SHARE = 0.75
"""Part of a core's own cache that operands can count on."""

GEMM_PRIOR = {
    "arithmetic": 0.95, "load": 1.2, "latency": 1.0, "microtiles": 20.0, "store": 2.0, "ragged": 4.0, "refetched": 0.2, "fork": 2.0,
}  # fmt: skip
"""What the passes of a layer have in common. With these a panel of 16 columns takes 11 % longer than one of 64 under AVX-512; measured on
2 cores (2048 x 1024 x 1024): 12, 12 and 15 % in the three passes."""


def blocked_features(gemm: Gemm, knobs: LayerKnobs, masked: bool, rates: Rates) -> Features:
    """Features that all three passes share. `masked`: whether the output is multiplied by the ReLU mask of the layer below."""
    rows, _, reduction = gemm.dims
    if gemm.outputs == 1:
        return _vector_features(gemm, rates)
    most_rows, most_columns = _busiest_cell(gemm, knobs, rates.threads)
    bn, bc, cycle_s = min(knobs.bn, rows), min(knobs.bc, reduction), rates.cycle_s
    groups = vector_groups(most_columns, knobs.bk, rates.lanes)
    vectors, chunks = sum(groups.values()), -(-reduction // bc)
    microtiles = load = latency = 0.0
    for width, of_width in groups.items():
        for height, count in _heights(most_rows, bn, width, rates.lanes).items():
            fmas, loads, calls = height * width, height + width, count * of_width / width
            microtiles += calls * chunks
            load += calls * reduction * max(0, loads - fmas) / _LOADS_PER_CYCLE
            latency += calls * reduction * max(0.0, _FMA_LATENCY - max(loads, fmas) / _FMAS_PER_CYCLE)
    return {
        "arithmetic": 2.0 * most_rows * vectors * rates.lanes * reduction / (rates.flops_per_s / rates.threads),
        "load": load * cycle_s,
        "latency": latency * cycle_s,
        "microtiles": microtiles * cycle_s,
        "store": most_rows * vectors * chunks * cycle_s,
        # The columns of a vector that is not whole are finished one by one.
        "ragged": most_rows * (most_columns % rates.lanes) * chunks * cycle_s * (2 if masked else 1),
        "refetched": _refetched_s(gemm, knobs, (most_rows, most_columns, reduction), rates),
    }


def weight_features(gemm: Gemm, knobs: LayerKnobs, repacked: bool, rates: Rates) -> Features:
    """What backward-weights has beside: the bias, copies of ragged columns, chunks of samples that reload the gradient, repacking.

    Args:
        repacked: whether the weights step, and their packed copies follow.
    """
    outputs, inputs, samples = gemm.dims
    if outputs == 1:
        return {"bias": samples * rates.cycle_s, "repack": inputs * outputs / rates.threads * rates.cycle_s if repacked else 0.0}
    most_rows, most_columns = _busiest_cell(gemm, knobs, rates.threads)
    chunks, gradient = -(-samples // min(knobs.bc, samples)), 4.0 * most_rows * most_columns
    reloaded = gradient > _OWN_SHARE * rates.l2_bytes
    return {
        "bias": samples * most_rows / rates.lanes * rates.cycle_s,
        "pack": samples * (most_columns % knobs.bk) / rates.lanes * rates.cycle_s,
        "repack": inputs * outputs / rates.threads * rates.cycle_s if repacked else 0.0,
        "reload": 2 * (chunks - 1) * gradient / (rates.shared_bytes_per_s / rates.threads) if reloaded else 0.0,
    }


def _vector_features(gemm: Gemm, rates: Rates) -> Features:
    """One output makes a matrix-vector product (`kernels/gemv-inl.h`): x [N, C] passes once, a vector at a time."""
    vectors = busiest(gemm.samples, 1, rates.threads) * -(-gemm.inputs // rates.lanes)
    return {
        "arithmetic": 2.0 * vectors * rates.lanes / (rates.flops_per_s / rates.threads),
        "load": vectors * rates.cycle_s,
        "store": vectors * rates.cycle_s if gemm.direction == "backward_data" else 0.0,
    }


def _busiest_cell(gemm: Gemm, knobs: LayerKnobs, threads: int) -> tuple[int, int]:
    """Rows and columns of the output that the busiest cell of the thread grid computes."""
    rows, columns, _ = gemm.dims
    most_rows = busiest(rows, min(knobs.bn, rows), max(1, threads // knobs.thread_columns))
    return most_rows, busiest(columns, knobs.bk, knobs.thread_columns)


def _heights(rows: int, bn: int, width: int, lanes: int) -> dict[int, int]:
    """How many microtiles of `width` vectors have which height: a row block is parted into as few as registers allow, nearly equal."""
    registers = 32 if lanes == 16 else 16
    most = min(_MOST_ROWS, (registers - width - 1) // width)
    heights: dict[int, int] = {}
    for block, times in ((min(bn, rows), rows // bn), (rows % bn, 1)):
        if block and times:
            tiles = -(-block // most)
            low, higher = divmod(block, tiles)
            heights[low] = heights.get(low, 0) + times * (tiles - higher)
            heights[low + 1] = heights.get(low + 1, 0) + times * higher
    return {height: count for height, count in heights.items() if count}


def _refetched_s(gemm: Gemm, knobs: LayerKnobs, cell: tuple[int, int, int], rates: Rates) -> float:
    """Operands that a core's own cache cannot hold from one task to the next: the one walked inside is fetched at each step outside."""
    rows, columns, reduction = cell
    depth = min(knobs.bc, reduction) if gemm.direction == "backward_weights" else reduction  # its chunks are the outermost loop
    block, panel = 4.0 * min(knobs.bn, rows) * depth, 4.0 * min(knobs.bk, columns) * depth
    whole_rows, whole_columns = 4.0 * rows * depth, 4.0 * columns * depth
    if knobs.loop_order == "rows_outer":
        held, inner, again = block, whole_columns, -(-rows // knobs.bn) - 1
    else:
        held, inner, again = panel, whole_rows, -(-columns // knobs.bk) - 1
    if held + inner <= _OWN_SHARE * rates.l2_bytes:
        return 0.0
    rate = rates.shared_bytes_per_s if inner <= rates.shared_bytes else rates.stream_bytes_per_s
    return again * inner * (reduction / depth) / (rate / rates.threads)
