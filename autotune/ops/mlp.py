"""Fully connected layers as operators: forward, backward-data and backward-weights with the fused step of the optimizer.

N samples, C inputs, K outputs. Activations are row-major with a padded leading dimension, so that layers hand them on without repacking.
The blocked batch-reduce GEMM follows arXiv 2005.04680, section III.B, with activations left flat: its microkernel broadcasts them, and a
broadcast reads a row as well as a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from autotune.config.knobs import Knobs, RunConfig
from autotune.config.model import FLOAT_BYTES, Dtype, Optimizer
from autotune.config.profile import Topology
from autotune.errors import InputError
from autotune.ops import libxsmm
from autotune.ops.base import Case, Check, Family, Features, Measured, Observation, Operator, Rates, Residence, Work
from autotune.ops.layer import Activation, Layer, LayerKnobs
from autotune.ops.layer_features import GEMM_PRIOR, blocked_features, weight_features
from autotune.ops.layer_findings import layer_findings
from autotune.ops.layer_shapes import Direction, padded, shape_of
from autotune.ops.memory import Memory
from autotune.ops.native import cold_sets, empty_rows, kernels, torch

BOTTOM, TOP = Family("bottom MLP", "#1f9d55"), Family("top MLP", "#8bd3a8")

WIDTHS: tuple[Literal[16, 32, 48, 64], ...] = (64, 48, 32, 16)
_ROW_BLOCKS = (64, 128, 32, 48, 96, 24)
_REDUCTIONS = (128, 256, 512, 1024)
_EPSILON = 2.0**-23
_BF16_EPSILON = 2.0**-8

# What a check runs on: enough rows and reduction steps for every block size to be met more than once, with a remainder.
_CHECK_ROWS = 2 * max(_ROW_BLOCKS) + 3
_CHECK_REDUCTION = max(_REDUCTIONS) + 3
_CHECK_RATE = 0.1


@dataclass(eq=False)
class LayerPass(Operator):
    """One pass of one layer.

    Args:
        layer: ``bottom_mlp.0``.
        samples, inputs, outputs: N, C, K.
        activation: of the layer.
        masked: backward-data only: the layer below ends in ReLU.
        dtype, optimizer: of the layer.
        below, above: names of the buffers x [N, C] and y [N, K]; their gradients are ``d_`` and the name.
        reduced: whether other ranks have gradients of the layer too, so that its step is taken later.
    """

    layer: str
    samples: int
    inputs: int
    outputs: int
    activation: Activation = "relu"
    masked: bool = False
    dtype: Dtype = "fp32"
    optimizer: Optimizer = "sgd"
    below: str = ""
    above: str = ""
    reduced: bool = False

    direction: ClassVar[Direction]
    knobs_type: ClassVar[type[Knobs]] = LayerKnobs

    @classmethod
    def is_key(cls, key: str) -> bool:
        layer, _, direction = key.rpartition(".")
        return "_mlp." in layer and direction == cls.direction

    @classmethod
    def family_of(cls, key: str) -> Family:
        return BOTTOM if key.startswith("bottom") else TOP

    @classmethod
    def families(cls) -> tuple[Family, ...]:
        return (BOTTOM, TOP)

    @property
    def shape(self) -> Hashable:
        return (self.direction, self.samples, self.inputs, self.outputs, self.activation, self.masked)

    @property
    def short_name(self) -> str:
        side, _, number = self.layer.partition("_mlp.")
        words = {"forward": "fwd", "backward_data": "bwd", "backward_weights": "upd"}
        return f"{side} {number} {words[self.direction]}"

    def work(self) -> Work:
        """2*N*C*K flops. Every matrix of the pass is read or written once: x [N, C], y or dy [N, K], weight [K, C], the mask [N, C], and
        in the update Adagrad's state [K, C]. Two bytes of a weight are read in bf16, but for the update, which takes both halves."""
        n, c, k = self.samples, self.inputs, self.outputs
        x, y, weights = 4 * n * c, 4 * n * k, c * k
        w = _bytes_of(self.dtype) * weights
        updated = 4 * weights * (2 if self.optimizer == "adagrad" else 1)
        read, written = {
            "forward": (x + w, y),
            "backward_data": (y + w + x * self.masked, x),
            "backward_weights": (x + y + updated, updated),
        }[self.direction]
        # Updated weights are packed anew, in a region of its own.
        regions = 1 + (self.direction == "backward_weights" and not self.reduced)
        return Work(flops=2 * n * c * k, bytes_read=read, bytes_written=written, parallel_regions=regions, dtype=self.dtype)

    def size(self) -> Mapping[str, float]:
        return {
            "samples": float(self.samples), "inputs": float(self.inputs), "outputs": float(self.outputs), "masked": float(self.masked),
        }  # fmt: skip

    def features(self, knobs: Knobs | None, residence: Residence, rates: Rates) -> Features:
        if not isinstance(knobs, LayerKnobs) or knobs.implementation != "blocked":
            knobs = self.default(rates.threads)
        shape = (self.samples, self.inputs, self.outputs)
        features = blocked_features(self.direction, shape, knobs, self.masked, rates)
        if self.direction == "backward_weights":
            features |= weight_features(shape, knobs, not self.reduced, rates)
        return features

    def default(self, threads: int) -> LayerKnobs:
        return default_knobs(self.direction, self.samples, self.inputs, self.outputs, threads, self.dtype)

    def candidates(self, machine: Topology, threads: int) -> Sequence[LayerKnobs]:
        """Panel widths by padding; row blocks by divisors of the rows; reductions such that a task's operands stay in half of L2, even in
        bf16; both orders; thread grids whose columns find a panel each; torch's own GEMM; and in fp32 libxsmm's kernels where they are."""
        rows, columns, reduction = shape_of(self.direction, self.samples, self.inputs, self.outputs)
        default, size = self.default(threads), _bytes_of(self.dtype)
        chosen = [default, LayerKnobs(implementation="torch")]
        grids = [g for g in (1, 2, 4, 8, 16) if threads % g == 0 and (g == 1 or columns >= 16 * g)]
        longest = reduction if self.dtype == "fp32" else reduction + reduction % 2
        for bk in (w for w in WIDTHS if padded(columns, w) <= 1.25 * padded(columns, default.bk)):
            for bn in (b for b in _ROW_BLOCKS if b <= max(24, rows)):
                for bc in sorted({min(longest, b) for b in _REDUCTIONS}, reverse=True):
                    if size * (bk * bc + bn * bc) + 4 * bn * bk > machine.l2_bytes // 2 and bc > 128:
                        continue
                    for order in ("rows_outer", "columns_outer"):
                        chosen += [LayerKnobs(bn=bn, bc=bc, bk=bk, loop_order=order, thread_columns=g) for g in grids]
        if self.dtype == "fp32" and libxsmm.available():
            chosen += _libxsmm_candidates(default)
        return list(dict.fromkeys(chosen))

    def calibrated_over(self, machine: Topology, threads: int) -> Sequence[LayerKnobs]:
        """The blocked GEMM alone: its features describe no other."""
        return [knobs for knobs in self.candidates(machine, threads) if knobs.implementation == "blocked"]

    def check_knobs(self, knobs: Knobs, threads: int) -> None:
        super().check_knobs(knobs, threads)
        assert isinstance(knobs, LayerKnobs)
        place = f"config: operators.{self.key}"
        if knobs.implementation == "libxsmm" and self.dtype != "fp32":
            rule = f"the implementation of a layer in {self.dtype} must be blocked or torch, since libxsmm serves fp32 alone"
            raise InputError(f"{rule}, got libxsmm ({place}.implementation); choose one of them, or tune this model anew")
        if not knobs.valid_for(threads):
            raise InputError(f"thread_columns must divide threads ({threads}), got {knobs.thread_columns} ({place}); set it to 1")

    def prepare(self, memory: Memory, knobs: LayerKnobs, config: RunConfig) -> None:
        """The layer with its packed copies; only the passes that read one decide on its width."""
        layer = memory.module(self.layer, functools.partial(self._make_layer, memory.generator))
        if self.direction == "forward":
            layer.configure(forward=knobs)
        elif self.direction == "backward_data":
            layer.configure(backward_data=knobs)

    def _make_layer(self, generator: torch.Generator) -> Layer:
        return Layer(self.inputs, self.outputs, self.activation, generator=generator, dtype=self.dtype, optimizer=self.optimizer)

    def case(self, seed: int, warm: bool = False) -> Case:
        return _LayerCase(self, seed, warm)

    def findings(self, measured: Measured) -> Iterator[Observation]:
        return layer_findings(self.direction, (self.samples, self.inputs, self.outputs), self.work(), measured)


@dataclass(eq=False)
class LayerForward(LayerPass):
    """y = act(x weight^T + bias)."""

    kind: ClassVar[str] = "mlp.forward"
    direction: ClassVar[Direction] = "forward"
    prior: ClassVar[Mapping[str, float]] = {**GEMM_PRIOR, "call": 15.0, "memory": 1.9, "shared": 0.8}

    def run(self, memory: Memory, knobs: LayerKnobs, threads: int) -> None:
        memory.modules[self.layer].forward(memory.buffers[self.below], memory.buffers[self.above], knobs, threads)


@dataclass(eq=False)
class LayerBackwardData(LayerPass):
    """dx = (dy weight) * (x > 0)."""

    kind: ClassVar[str] = "mlp.backward_data"
    direction: ClassVar[Direction] = "backward_data"
    prior: ClassVar[Mapping[str, float]] = {**GEMM_PRIOR, "call": 20.0, "memory": 3.6, "shared": 1.0}

    def run(self, memory: Memory, knobs: LayerKnobs, threads: int) -> None:
        buffers = memory.buffers
        mask = buffers[self.below] if self.masked else None
        memory.modules[self.layer].backward_data(buffers[f"d_{self.above}"], mask, buffers[f"d_{self.below}"], knobs, threads)


@dataclass(eq=False)
class LayerBackwardWeights(LayerPass):
    """A step along dy^T x; or, with several ranks, that gradient alone."""

    kind: ClassVar[str] = "mlp.backward_weights"
    direction: ClassVar[Direction] = "backward_weights"
    prior: ClassVar[Mapping[str, float]] = {
        **GEMM_PRIOR, "bias": 0.5, "pack": 2.0, "repack": 1.1, "reload": 2.0, "call": 49.0, "memory": 1.3, "shared": 0.1,
    }  # fmt: skip

    def run(self, memory: Memory, knobs: LayerKnobs, threads: int) -> None:
        layer: Layer = memory.modules[self.layer]
        dy, x = memory.buffers[f"d_{self.above}"], memory.buffers[self.below]
        if self.reduced:
            layer.d_weight, layer.d_bias = memory.buffers[f"{self.layer}.w"], memory.buffers[f"{self.layer}.b"]
            layer.gradients(dy, x, knobs, threads)
        else:
            layer.backward_weights(dy, x, memory.model.learning_rate, knobs, threads)


LAYER_PASSES: Mapping[Direction, type[LayerPass]] = {
    "forward": LayerForward,
    "backward_data": LayerBackwardData,
    "backward_weights": LayerBackwardWeights,
}


@dataclass(eq=False)
class ReluMask(Operator):
    """d = d * (y > 0), in place: the gradient that reaches a layer's output from an operator that knows nothing of its ReLU.

    Args:
        buffer: name of y [N, K]; the gradient is ``d_`` and the name.
        samples, columns: N, K.
    """

    buffer: str
    samples: int
    columns: int

    kind: ClassVar[str] = "mlp.mask"

    @classmethod
    def is_key(cls, key: str) -> bool:
        return key == "bottom_mlp.mask"

    family: ClassVar[Family] = BOTTOM
    prior: ClassVar[Mapping[str, float]] = {"moved": 3.6, "call": 7.0}

    def work(self) -> Work:
        """y and the gradient are read, the gradient written."""
        size = FLOAT_BYTES * self.samples * self.columns
        return Work(flops=self.samples * self.columns, bytes_read=2 * size, bytes_written=size)

    def size(self) -> Mapping[str, float]:
        return {"elements": float(self.samples * self.columns)}

    def features(self, knobs: Knobs | None, residence: Residence, rates: Rates) -> Features:
        return {"moved": self.work().bytes / rates.stream_bytes_per_s}

    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        _mask(memory.buffers[f"d_{self.buffer}"], memory.buffers[self.buffer])

    def case(self, seed: int, warm: bool = False) -> Case:
        return _MaskCase(self.samples, self.columns, seed, warm)


def _mask(gradient: torch.Tensor, output: torch.Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(gradient, output, 0.0, grad_input=gradient)


class _MaskCase(Case):
    """Both arrays [N, K] rotate through more than the caches."""

    def __init__(self, samples: int, columns: int, seed: int, warm: bool) -> None:
        generator, sets = torch.Generator().manual_seed(seed), 1 if warm else cold_sets(8 * samples * columns)
        self._sets = [[empty_rows(samples, columns).normal_(generator=generator) for _ in range(2)] for _ in range(sets)]
        self._next = 0

    def run(self, knobs: Any, threads: int) -> None:
        _mask(*self._sets[self._next % len(self._sets)])
        self._next += 1

    def check(self, knobs: Any, threads: int) -> Check:
        gradient, output = (tensor.clone() for tensor in self._sets[0])
        wanted = gradient * (output > 0)
        _mask(gradient, output)
        return Check(float((gradient - wanted).abs().max()), 0.0)


def _bytes_of(dtype: Dtype) -> int:
    return 4 if dtype == "fp32" else 2


def default_knobs(which: Direction, samples: int, inputs: int, outputs: int, cores: int, dtype: Dtype = "fp32") -> LayerKnobs:
    """Panels of 64, or as wide as all columns; 64 rows. Columns of the thread grid where the rows are too few for the cores; in
    backward-weights, where each thread reads its share of dy and x, the grid whose busiest thread computes and reads least.

    Best of 18 blockings each at 2048 x 1024 x 1024 on 2 cores with AVX-512, GF/s of the three passes: width 64 486, 459, 431; 48 473, 436,
    423; 32 491, 442, 423; 16 434, 409, 374. With AVX2 all widths are within 3 %. A last panel computes no more than the vectors it fills.
    Backward-weights of 64 outputs from 512 inputs takes half the time with both threads side by side than one below the other; of 512
    from 592, ten panels, whose halves are 320 and 272 columns wide, 7 % more.
    """
    rows, columns, _ = shape_of(which, samples, inputs, outputs)
    bk = next((w for w in reversed(WIDTHS) if w >= columns), WIDTHS[0])
    if which == "backward_weights":
        grids = [g for g in range(1, cores + 1) if cores % g == 0]
        busy = [g for g in grids if rows * g >= 16 * cores and columns >= 16 * g] or [1]
        heights = {g: max(16, min(64, -(-rows * g // cores))) for g in busy}

        def cost(g: int) -> int:  # of the busiest thread: what it computes, times what it reads
            tall = min(rows, -(-rows // heights[g] * g // cores) * heights[g])
            wide = min(columns, -(-padded(columns, bk) // bk // g) * bk)
            return tall * wide * (tall + wide)

        grid = min(busy, key=cost)
        return LayerKnobs(bn=heights[grid], bk=bk, thread_columns=grid)
    bn = max(16, min(64, -(-rows // cores)))
    grid = 1
    while cores % (2 * grid) == 0 and -(-rows // bn) * grid < cores and columns >= 32 * grid:
        grid *= 2
    return LayerKnobs(bn=bn, bk=bk, thread_columns=grid)


def _libxsmm_candidates(default: LayerKnobs) -> Iterator[LayerKnobs]:
    """The default's widths and grid, few row blocks and pieces: of 36 blockings at 2048 x 1024 x 1024 on 2 cores with AVX-512, GF/s of the
    three passes, best 223, 214, 198; (bn, bc) 32, 256; 64, 1024; 128, 1024 with bk 64 or 32 came within 2 % of it, the worst 212, 198, 163.
    """
    for bk in dict.fromkeys((default.bk, 32)):
        for bn, bc in ((32, 256), (64, 1024), (128, 1024)):
            yield default.model_copy(update={"implementation": "libxsmm", "bn": bn, "bc": bc, "bk": bk})


@dataclass(frozen=True)
class _Wanted:
    """One output of a pass, fp32, and by element how far off it may be."""

    value: torch.Tensor
    allowed: torch.Tensor
    rounded: torch.Tensor
    """How much further where the product itself is rounded to bf16, as torch does."""

    def check(self, got: torch.Tensor, rounds: bool) -> Check:
        """The excess over what is allowed says how far off it is."""
        excess = (got - self.value).abs_().div_(self.allowed + self.rounded if rounds else self.allowed)
        return Check(float(excess.max()), 1.0, f"element {int(excess.argmax())}")


class _LayerCase(Case):
    """Activations rotate through more than the caches; weights stay, as they do in training."""

    def __init__(self, of: LayerPass, seed: int, warm: bool) -> None:
        self._shape = (of.direction, of.samples, of.inputs, of.outputs, of.activation)
        self._dtype, self._optimizer, self._masked = of.dtype, of.optimizer, of.masked
        which, n, c, k, _ = self._shape
        self._seed, self._next = seed, 0
        self._layers: dict[int, Layer] = {}
        sets = 1 if warm else cold_sets(4 * n * (c + k))
        self._sets = [self._inputs(n, seed + i) for i in range(sets)]
        self._out = empty_rows(n, k if which == "forward" else c) if which != "backward_weights" else None

    def _inputs(self, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        _, _, c, k, _ = self._shape
        x, dy = empty_rows(n, c), empty_rows(n, k)
        for tensor, low in ((x, -0.5), (dy, -1.0)):
            whole = tensor.as_strided((tensor.shape[0] * tensor.stride(0),), (1,))
            kernels.fill_uniform(whole, low, 1.0, seed, 1)
        return x, dy

    def _packed_for(self, knobs: LayerKnobs) -> Layer:
        """A layer packed for these knobs: in training, weights are packed when they are updated, so packing is never inside the clock.

        Backward-weights reads no packed copy but refreshes both: as wide as the other passes' defaults want them, whatever its own panels.
        """
        which, n, c, k, activation = self._shape
        forward = backward = LayerKnobs(bk=knobs.bk)
        if which == "backward_weights":
            forward, backward = (default_knobs(of, n, c, k, 1, self._dtype) for of in ("forward", "backward_data"))
        if forward.bk not in self._layers:
            generator = torch.Generator().manual_seed(self._seed)
            layer = self._layers[forward.bk] = Layer(
                c, k, activation, generator=generator, forward=forward, backward_data=backward, dtype=self._dtype, optimizer=self._optimizer
            )
            for state in (layer.state() or {}).values():
                state.fill_(1.0)  # at 0 the first step is the sign of the gradient, which rounding may turn
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
        layer, rounds = self._packed_for(knobs), knobs.implementation == "torch"
        if self._shape[0] == "backward_weights":
            before = [part.clone() for part in _updated(layer)]
            self._call(layer, inputs, None, _CHECK_RATE, knobs, threads)
            checks = [of.check(got, rounds) for got, of in zip(_updated(layer), wanted, strict=True)]
            layer.load(*before[:2])
            layer.load_state(dict(zip(layer.state() or {}, before[2:], strict=True)))
            return max(checks, key=lambda check: math.inf if math.isnan(check.worst) else check.worst)
        out = empty_rows(*wanted[0].value.shape)
        self._call(layer, inputs, out, _CHECK_RATE, knobs, threads)
        return wanted[0].check(out, rounds)

    @functools.cached_property
    def _reference(self) -> tuple[tuple[torch.Tensor, torch.Tensor], list[_Wanted]]:
        """Inputs; and by output what is wanted and how far off it may be: the same for every candidate, so it is computed once.

        The bound is the standard one of a dot product: its length x epsilon x the sum of absolute products, from inputs that in bf16 were
        rounded before. One more than the length stands for rounding the double-precision result to fp32.
        """
        (which, n, c, k, activation), masked = self._shape, self._masked
        inputs = self._inputs(min(n, _CHECK_REDUCTION if which == "backward_weights" else _CHECK_ROWS), self._seed)
        layer = self._packed_for(LayerKnobs())
        x, dy = (tensor.double() if self._dtype == "fp32" else tensor.bfloat16().double() for tensor in inputs)
        weight, bias = (part.double() for part in layer.weights())
        read = weight if self._dtype == "fp32" else layer.upper.view(torch.bfloat16).double()
        if which == "forward":
            product, scale = x @ read.t(), torch.addmm(bias.abs(), x.abs(), read.t().abs())
            wanted = product + bias
            wanted = torch.relu(wanted) if activation == "relu" else torch.sigmoid(wanted) if activation == "sigmoid" else wanted
            return inputs, [self._wanted(wanted, (c + 3) * _EPSILON * scale, product.abs())]
        if which == "backward_data":
            product, scale = dy @ read, dy.abs() @ read.abs()
            return inputs, [self._wanted(product * (inputs[0] > 0) if masked else product, (k + 1) * _EPSILON * scale, product.abs())]
        exact = inputs[1].double()  # the gradient of the bias is not rounded
        gradients = ((dy.t() @ x, dy.t().abs() @ x.abs()), (exact.sum(0), exact.abs().sum(0)))
        return inputs, self._stepped((weight, bias), gradients, len(x) + 3)

    def _stepped(
        self, parts: tuple[torch.Tensor, ...], gradients: tuple[tuple[torch.Tensor, torch.Tensor], ...], length: int
    ) -> list[_Wanted]:
        """Weight and bias after one step, then what Adagrad has summed, from (gradient, sum of absolute products) of each.

        Adagrad's step g / sqrt(1 + g^2) moves no more than the gradient does, and is rounded four times.
        """
        stepped, sums = [], []
        for i, (before, (gradient, scale)) in enumerate(zip(parts, gradients, strict=True)):
            error, rounded, step, half = length * _EPSILON * scale, gradient.abs() * (i == 0), gradient, before.abs()
            if self._optimizer == "adagrad":
                total = 1.0 + gradient**2
                step, error = gradient / total.sqrt(), error + 4 * _EPSILON
                of_square = (2 * gradient.abs() + error) * error + 2 * _EPSILON * total
                sums.append(self._wanted(total, of_square, (2 * gradient.abs() + rounded) * rounded))
            stepped.append(self._wanted(before - _CHECK_RATE * step, _CHECK_RATE * error + 3 * _EPSILON * half, _CHECK_RATE * rounded))
        return stepped + sums

    def _wanted(self, value: torch.Tensor, allowed: torch.Tensor, product: torch.Tensor) -> _Wanted:
        rounded = product * (_BF16_EPSILON if self._dtype == "bf16" else 0.0)
        return _Wanted(value.float(), (allowed + 1e-6).float(), rounded.float())


def _updated(layer: Layer) -> list[torch.Tensor]:
    """What a step changes: weight, bias, and Adagrad's sums of both."""
    return [*layer.weights(), *(layer.state() or {}).values()]
