"""Fully connected layers: forward, backward-data and backward-weights with the fused SGD step.

N samples, C inputs, K outputs. Activations are row-major with a padded leading dimension, so that layers hand them on without repacking.
The blocked batch-reduce GEMM follows arXiv 2005.04680, section III.B, with activations left flat: its microkernel broadcasts them, and a
broadcast reads a row as well as a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from autotune.config.knobs import LayerKnobs
from autotune.config.profile import Topology
from autotune.ops import libxsmm
from autotune.ops.base import Case, Check, Operator, Work
from autotune.ops.native import cold_sets, empty_rows, kernels, zeros

Activation = Literal["none", "relu", "sigmoid"]
Pass = Literal["forward", "backward_data", "backward_weights"]

WIDTHS: tuple[Literal[16, 32, 48, 64], ...] = (64, 48, 32, 16)
_ROW_BLOCKS = (64, 128, 32, 48, 96, 24)
_REDUCTIONS = (128, 256, 512, 1024)
_EPSILON = 2.0**-23

# What a check runs on: enough rows and reduction steps for every block size to be met more than once, with a remainder.
_CHECK_ROWS = 2 * max(_ROW_BLOCKS) + 3
_CHECK_REDUCTION = max(_REDUCTIONS) + 3
_CHECK_RATE = 0.1


class Layer:
    """One fully connected layer with its weights, and the packed copies that the blocked GEMM reads.

    Args:
        inputs: C.
        outputs: K.
        activation: applied to the output.
        generator: initial weights are normal with variance 2/(C+K), biases normal with variance 1/K, as in the public DLRM.
        forward, backward_data: the packed copies follow their panel widths.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Activation,
        *,
        generator: torch.Generator,
        forward: LayerKnobs,
        backward_data: LayerKnobs,
    ) -> None:
        self.activation: Activation = activation
        self.weight = zeros(outputs, inputs)
        self.bias = zeros(outputs)
        self.weight.normal_(0.0, math.sqrt(2.0 / (inputs + outputs)), generator=generator)
        self.bias.normal_(0.0, math.sqrt(1.0 / outputs), generator=generator)
        self.d_weight = zeros(outputs, inputs)
        self.d_bias = zeros(outputs)
        self._packed: dict[str, tuple[int, torch.Tensor]] = {}
        self.configure(forward, backward_data)

    def configure(self, forward: LayerKnobs, backward_data: LayerKnobs) -> None:
        """Make the packed copies fit the panel widths, and fill them."""
        outputs, inputs = self.weight.shape
        for key, width, columns, reduction in (("forward", forward.bk, outputs, inputs), ("backward", backward_data.bk, inputs, outputs)):
            if key not in self._packed or self._packed[key][0] != width:
                self._packed[key] = (width, zeros(-(-columns // width) * width * reduction))
        self._repack = {forward.implementation, backward_data.implementation} != {"torch"}
        self.pack(1)

    def pack(self, threads: int) -> None:
        """Bring the packed copies up to date with the weights."""
        if self._repack:
            (forward_width, forward), (backward_width, backward) = self._packed["forward"], self._packed["backward"]
            kernels.pack_weights(self.weight, forward, forward_width, backward, backward_width, threads)

    def forward(self, x: torch.Tensor, y: torch.Tensor, knobs: LayerKnobs, threads: int) -> None:
        """y[n, k] = act(sum_c x[n, c] weight[k, c] + bias[k]); x fp32 [N, C], y fp32 [N, K], written."""
        if knobs.implementation == "torch":
            torch.addmm(self.bias, x, self.weight.t(), out=y)
            if self.activation == "relu":
                y.relu_()
            elif self.activation == "sigmoid":
                y.sigmoid_()
        else:
            width, packed = self._packed["forward"]
            kernels.linear_forward(x, packed, self.bias, y, self.activation, knobs.bn, knobs.bc, width, *_grid(knobs, threads))

    def backward_data(self, dy: torch.Tensor, x: torch.Tensor | None, dx: torch.Tensor, knobs: LayerKnobs, threads: int) -> None:
        """dx = (dy weight) * (x > 0): dy fp32 [N, K] before the activation; x [N, C] the ReLU output below, None without; dx written."""
        if knobs.implementation == "torch":
            torch.mm(dy, self.weight, out=dx)
            if x is not None:
                torch.ops.aten.threshold_backward.grad_input(dx, x, 0.0, grad_input=dx)
        else:
            width, packed = self._packed["backward"]
            kernels.linear_backward_data(dy, packed, x, dx, knobs.bn, knobs.bc, width, *_grid(knobs, threads))

    def backward_weights(self, dy: torch.Tensor, x: torch.Tensor, learning_rate: float, knobs: LayerKnobs, threads: int) -> None:
        """weight -= learning_rate * dy^T x, bias -= learning_rate * sum_n dy[n], then the packed copies follow."""
        if knobs.implementation == "torch":
            self.gradients(dy, x, knobs, threads)
            self.descend(learning_rate, threads)
        else:
            kernels.linear_backward_weights(
                dy, x, self.d_weight, self.d_bias, self.weight, self.bias, learning_rate,
                knobs.bn, knobs.bc, knobs.bk, *_grid(knobs, threads),
            )  # fmt: skip
            self.pack(threads)

    def gradients(self, dy: torch.Tensor, x: torch.Tensor, knobs: LayerKnobs, threads: int) -> None:
        """d_weight = dy^T x and d_bias = sum_n dy[n], for a step that is taken later: where other ranks have gradients too."""
        if knobs.implementation == "torch":
            torch.mm(dy.t(), x, out=self.d_weight)
            torch.sum(dy, 0, out=self.d_bias)
        else:
            kernels.linear_backward_weights(
                dy, x, self.d_weight, self.d_bias, None, None, 0.0, knobs.bn, knobs.bc, knobs.bk, *_grid(knobs, threads)
            )

    def descend(self, learning_rate: float, threads: int) -> None:
        """One SGD step along d_weight and d_bias; the packed copies follow."""
        self.weight.add_(self.d_weight, alpha=-learning_rate)
        self.bias.add_(self.d_bias, alpha=-learning_rate)
        self.pack(threads)


def _grid(knobs: LayerKnobs, threads: int) -> tuple[bool, int, int, bool]:
    return knobs.loop_order == "columns_outer", knobs.thread_columns, threads, knobs.implementation == "libxsmm"


def shape_of(which: Pass, samples: int, inputs: int, outputs: int) -> tuple[int, int, int]:
    """Rows, columns and reduction of a pass's output: forward N x K over C, backward-data N x C over K, backward-weights K x C over N."""
    return {
        "forward": (samples, outputs, inputs),
        "backward_data": (samples, inputs, outputs),
        "backward_weights": (outputs, inputs, samples),
    }[which]


class LayerPass(Operator):
    """One pass of one layer.

    Args:
        key: ``bottom_mlp.0.forward``.
        which: the pass.
        samples, inputs, outputs: N, C, K.
        activation: of the layer.
        masked: backward-data only: the layer below ends in ReLU.
    """

    def __init__(self, key: str, which: Pass, samples: int, inputs: int, outputs: int, activation: Activation, masked: bool) -> None:
        self.key = key
        self.shape = (which, samples, inputs, outputs, activation, masked)

    def work(self) -> Work:
        """2*N*C*K flops. Every matrix of the pass is read or written once: x [N, C], y or dy [N, K], weight [K, C], the mask [N, C]."""
        which, n, c, k, _, masked = self.shape
        x, y, w = 4 * n * c, 4 * n * k, 4 * c * k
        read, written = {"forward": (x + w, y), "backward_data": (y + w + x * masked, x), "backward_weights": (x + y + w, w)}[which]
        # Updated weights are packed anew, in a region of its own.
        return Work(flops=2 * n * c * k, bytes_read=read, bytes_written=written, parallel_regions=1 + (which == "backward_weights"))

    def default(self, machine: Topology) -> LayerKnobs:
        return default_knobs(self.shape[0], *self.shape[1:4], machine.physical_cores)

    def candidates(self, machine: Topology, threads: int) -> Sequence[LayerKnobs]:
        """Panel widths by padding; row blocks by divisors of the rows; reductions such that a task's operands stay in half of L2; both
        orders; thread grids whose columns find a panel each; torch's own GEMM; and libxsmm's kernels where they are."""
        rows, columns, reduction = shape_of(self.shape[0], *self.shape[1:4])
        default = self.default(machine)
        chosen = [default, LayerKnobs(implementation="torch")]
        budget = machine.l2_bytes // 8  # floats in half of L2
        grids = [g for g in (1, 2, 4, 8, 16) if threads % g == 0 and (g == 1 or columns >= 16 * g)]
        for bk in (w for w in WIDTHS if _padded(columns, w) <= 1.25 * _padded(columns, default.bk)):
            for bn in (b for b in _ROW_BLOCKS if b <= max(24, rows)):
                for bc in sorted({min(reduction, b) for b in _REDUCTIONS}, reverse=True):
                    if bk * bc + bn * bc + bn * bk > budget and bc > 128:
                        continue
                    for order in ("rows_outer", "columns_outer"):
                        chosen += [LayerKnobs(bn=bn, bc=bc, bk=bk, loop_order=order, thread_columns=g) for g in grids]
        if libxsmm.available():
            chosen += _libxsmm_candidates(default)
        return list(dict.fromkeys(chosen))

    def case(self, seed: int, warm: bool = False) -> Case:
        return _LayerCase(self.shape, seed, warm)


def default_knobs(which: Pass, samples: int, inputs: int, outputs: int, cores: int) -> LayerKnobs:
    """Widest panel among those that pad least; 64 rows; grid columns only where the rows are too few for the cores.

    Best of 18 blockings each at 2048 x 1024 x 1024 on 2 cores with AVX-512, GF/s of the three passes: width 64 486, 459, 431; 48 473, 436,
    423; 32 491, 442, 423; 16 434, 409, 374. With AVX2 all widths are within 3 %.
    """
    rows, columns, _ = shape_of(which, samples, inputs, outputs)
    bk = min(WIDTHS, key=lambda w: (_padded(columns, w), -w))
    bn = max(16, min(64, -(-rows // cores)))
    columns_of_threads = 1
    while cores % (2 * columns_of_threads) == 0 and -(-rows // bn) * columns_of_threads < cores and columns >= 32 * columns_of_threads:
        columns_of_threads *= 2
    return LayerKnobs(bn=bn, bk=bk, thread_columns=columns_of_threads)


def _libxsmm_candidates(default: LayerKnobs) -> Iterator[LayerKnobs]:
    """The default's widths and grid, few row blocks and pieces: of 36 blockings at 2048 x 1024 x 1024 on 2 cores with AVX-512, GF/s of the
    three passes, best 223, 214, 198; (bn, bc) 32, 256; 64, 1024; 128, 1024 with bk 64 or 32 came within 2 % of it, the worst 212, 198, 163.
    """
    for bk in dict.fromkeys((default.bk, 32)):
        for bn, bc in ((32, 256), (64, 1024), (128, 1024)):
            yield default.model_copy(update={"implementation": "libxsmm", "bn": bn, "bc": bc, "bk": bk})


def _padded(columns: int, width: int) -> int:
    return -(-columns // width) * width


class _LayerCase(Case):
    """Activations rotate through more than the caches; weights stay, as they do in training."""

    def __init__(self, shape: tuple[Pass, int, int, int, Activation, bool], seed: int, warm: bool) -> None:
        self._shape = shape
        which, n, c, k, _, self._masked = shape
        self._seed, self._next = seed, 0
        self._layers: dict[int, Layer] = {}
        sets = 1 if warm else cold_sets(4 * n * (c + k))
        self._sets = [self._inputs(n, seed + i) for i in range(sets)]
        self._out = empty_rows(n, k if which == "forward" else c) if which != "backward_weights" else None

    def _inputs(self, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        _, _, c, k, _, _ = self._shape
        x, dy = empty_rows(n, c), empty_rows(n, k)
        for tensor, low in ((x, -0.5), (dy, -1.0)):
            whole = tensor.as_strided((tensor.shape[0] * tensor.stride(0),), (1,))
            kernels.fill_uniform(whole, low, 1.0, seed, 1)
        return x, dy

    def _packed_for(self, knobs: LayerKnobs) -> Layer:
        """A layer packed for these knobs: in training, weights are packed when they are updated, so packing is never inside the clock.

        Backward-weights reads no packed copy but refreshes both: as wide as the other passes' defaults want them, whatever its own panels.
        """
        which, n, c, k, activation, _ = self._shape
        forward = backward = LayerKnobs(bk=knobs.bk)
        if which == "backward_weights":
            forward, backward = default_knobs("forward", n, c, k, 1), default_knobs("backward_data", n, c, k, 1)
        if forward.bk not in self._layers:
            generator = torch.Generator().manual_seed(self._seed)
            self._layers[forward.bk] = Layer(c, k, activation, generator=generator, forward=forward, backward_data=backward)
        return self._layers[forward.bk]

    def _call(
        self,
        layer: Layer,
        inputs: tuple[torch.Tensor, torch.Tensor],
        out: torch.Tensor | None,
        rate: float,
        knobs: LayerKnobs,
        threads: int,
    ) -> None:
        which, (x, dy) = self._shape[0], inputs
        if out is None:
            layer.backward_weights(dy, x, rate, knobs, threads)
        elif which == "forward":
            layer.forward(x, out, knobs, threads)
        else:
            layer.backward_data(dy, x if self._masked else None, out, knobs, threads)

    def run(self, knobs: LayerKnobs, threads: int) -> None:
        inputs = self._sets[self._next % len(self._sets)]
        self._next += 1
        self._call(self._packed_for(knobs), inputs, self._out, 0.0, knobs, threads)

    def check(self, knobs: LayerKnobs, threads: int) -> Check:
        """Against double precision: two of the largest row blocks and a remainder; backward-weights more than its longest `bc`."""
        inputs, wanted = self._reference
        layer = self._packed_for(knobs)
        if self._shape[0] == "backward_weights":
            before = [part.clone() for part in (layer.weight, layer.bias)]
            self._call(layer, inputs, None, _CHECK_RATE, knobs, threads)
            checks = [_held_against(got, *of) for got, of in zip((layer.weight, layer.bias), wanted, strict=True)]
            layer.weight.copy_(before[0])
            layer.bias.copy_(before[1])
            return max(checks, key=lambda check: math.inf if math.isnan(check.worst) else check.worst)
        out = empty_rows(*wanted[0][0].shape)
        self._call(layer, inputs, out, _CHECK_RATE, knobs, threads)
        return _held_against(out, *wanted[0])

    @functools.cached_property
    def _reference(self) -> tuple[tuple[torch.Tensor, torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Inputs; and by output what is wanted and how far off it may be, fp32: the same for every candidate, so it is computed once.

        The bound is the standard one of a dot product: its length x epsilon x the sum of absolute products. One more than the length
        stands for rounding the double-precision result to fp32.
        """
        which, n, c, k, activation, masked = self._shape
        x, dy = self._inputs(min(n, _CHECK_REDUCTION if which == "backward_weights" else _CHECK_ROWS), self._seed)
        layer = self._packed_for(LayerKnobs())
        wide_x, wide_dy, weight, bias = x.double(), dy.double(), layer.weight.double(), layer.bias.double()
        if which == "forward":
            wanted = torch.addmm(bias, wide_x, weight.t())
            scale = torch.addmm(bias.abs(), wide_x.abs(), weight.t().abs())
            wanted = torch.relu(wanted) if activation == "relu" else torch.sigmoid(wanted) if activation == "sigmoid" else wanted
            return (x, dy), [_bounded(wanted, scale, c + 2)]
        if which == "backward_data":
            wanted = wide_dy @ weight
            return (x, dy), [_bounded(wanted * (wide_x > 0) if masked else wanted, wide_dy.abs() @ weight.abs(), k)]
        rate, length = _CHECK_RATE, len(x) + 2
        updated = torch.addmm(weight, wide_dy.t(), wide_x, alpha=-rate)
        scale = torch.addmm(weight.abs(), wide_dy.t().abs(), wide_x.abs(), alpha=rate)
        of_bias = _bounded(bias - rate * wide_dy.sum(0), bias.abs() + rate * wide_dy.abs().sum(0), length)
        return (x, dy), [_bounded(updated, scale, length), of_bias]


def _bounded(wanted: torch.Tensor, scale: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return wanted.float(), ((length + 1) * _EPSILON * scale + 1e-6).float()


def _held_against(got: torch.Tensor, wanted: torch.Tensor, allowed: torch.Tensor) -> Check:
    """The excess over what is allowed says how far off it is."""
    excess = (got - wanted).abs_().div_(allowed)
    return Check(float(excess.max()), 1.0, f"element {int(excess.argmax())}")
