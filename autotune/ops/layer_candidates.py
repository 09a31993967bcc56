"""The default knobs of a layer's pass, and those worth racing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from autotune.config.profile import Topology
from autotune.machine.topology import vector_lanes
from autotune.ops import libxsmm
from autotune.ops.layer import LayerKnobs
from autotune.ops.layer_shapes import Gemm, padded

WIDTHS: tuple[Literal[16, 32, 48, 64], ...] = (64, 48, 32, 16)
ROW_BLOCKS = (64, 128, 32, 48, 96, 24)
REDUCTIONS = (128, 256, 512, 1024)


def layer_candidates(gemm: Gemm, machine: Topology, threads: int) -> Sequence[LayerKnobs]:
    """Panel widths by padding; row blocks by divisors of the rows; reductions such that a task's operands stay in half of L2, even in
    bf16; both orders; thread grids whose columns find a panel each; torch's own GEMM; and in fp32 libxsmm's kernels where they are."""
    (rows, columns, reduction), size, default = gemm.dims, gemm.element_bytes, default_knobs(gemm, threads, vector_lanes(machine))
    chosen = [default, LayerKnobs(implementation="torch")]
    if gemm.outputs == 1:  # a matrix-vector product, which takes no blocking
        return chosen
    grids = [g for g in (1, 2, 4, 8, 16) if threads % g == 0 and (g == 1 or columns >= 16 * g)]
    longest = reduction if gemm.dtype == "fp32" else reduction + reduction % 2
    for bk in (w for w in WIDTHS if padded(columns, w) <= 1.25 * padded(columns, default.bk)):
        for bn in (b for b in ROW_BLOCKS if b <= max(24, rows)):
            for bc in sorted({min(longest, b) for b in REDUCTIONS}, reverse=True):
                if size * (bk * bc + bn * bc) + 4 * bn * bk > machine.l2_bytes // 2 and bc > 128:
                    continue
                for order in ("rows_outer", "columns_outer"):
                    chosen += [LayerKnobs(bn=bn, bc=bc, bk=bk, loop_order=order, thread_columns=g) for g in grids]
    if gemm.dtype == "fp32" and libxsmm.available():
        chosen += _libxsmm_candidates(default)
    return list(dict.fromkeys(chosen))


def default_knobs(gemm: Gemm, threads: int, lanes: int) -> LayerKnobs:
    """Panels of 64, or as wide as all columns, and of 16 where vectors hold fewer floats than that; 64 rows. Columns of the thread grid
    where the rows are too few for the threads; in backward-weights, where each thread reads its share of dy and x, the grid whose busiest
    thread computes and reads least.

    Best of 18 blockings each at 2048 x 1024 x 1024 on 2 cores with AVX-512, GF/s of the three passes: width 64 486, 459, 431; 48 473, 436,
    423; 32 491, 442, 423; 16 434, 409, 374. With AVX2 a microtile is 16 columns wide, and in wider panels its steps lie apart and share
    few sets of L1: with 64 the passes take 1.12, 1.13 and 1.27 times as long as with 16 (2 cores, Zen 3), which is within 4 % of torch's
    product or ahead of it. A last panel computes no more than the vectors it fills. Backward-weights of 64 outputs from 512 inputs takes
    half the time with both threads side by side than one below the other; of 512 from 592, ten panels, whose halves are 320 and 272
    columns wide, 7 % more.
    """
    rows, columns, _ = gemm.dims
    bk = next((w for w in reversed(WIDTHS) if w >= columns or lanes < 16), WIDTHS[0])
    if gemm.direction == "backward_weights":
        grids = [g for g in range(1, threads + 1) if threads % g == 0]
        busy = [g for g in grids if rows * g >= 16 * threads and columns >= 16 * g] or [1]
        heights = {g: max(16, min(64, -(-rows * g // threads))) for g in busy}

        def cost(g: int) -> int:  # of the busiest thread: what it computes, times what it reads
            tall = min(rows, -(-rows // heights[g] * g // threads) * heights[g])
            wide = min(columns, -(-padded(columns, bk) // bk // g) * bk)
            return tall * wide * (tall + wide)

        grid = min(busy, key=cost)
        return LayerKnobs(bn=heights[grid], bk=bk, thread_columns=grid)
    bn = max(16, min(64, -(-rows // threads)))
    grid = 1
    while threads % (2 * grid) == 0 and -(-rows // bn) * grid < threads and columns >= 32 * grid:
        grid *= 2
    return LayerKnobs(bn=bn, bk=bk, thread_columns=grid)


def _libxsmm_candidates(default: LayerKnobs) -> Iterator[LayerKnobs]:
    """The default's widths and grid, few row blocks and pieces: of 36 blockings at 2048 x 1024 x 1024 on 2 cores with AVX-512, GF/s of the
    three passes, best 223, 214, 198; (bn, bc) 32, 256; 64, 1024; 128, 1024 with bk 64 or 32 came within 2 % of it, the worst 212, 198, 163.
    """
    for bk in dict.fromkeys((default.bk, 32)):
        for bn, bc in ((32, 256), (64, 1024), (128, 1024)):
            yield default.model_copy(update={"implementation": "libxsmm", "bn": bn, "bc": bc, "bk": bk})
