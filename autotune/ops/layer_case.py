"""Passes of a layer timed alone, each candidate held against double precision first."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autotune.machine.topology import vector_lanes
from autotune.ops.base import Case, Check
from autotune.ops.layer import Layer, LayerKnobs
from autotune.ops.layer_candidates import REDUCTIONS, ROW_BLOCKS, default_knobs
from autotune.ops.native import cold_sets, empty_rows, kernels, torch

if TYPE_CHECKING:
    from autotune.ops.mlp import LayerPass

_EPSILON = 2.0**-23
_BF16_EPSILON = 2.0**-8

# What a check runs on: enough rows and reduction steps for every block size to be met more than once, with a remainder.
_CHECK_ROWS = 2 * max(ROW_BLOCKS) + 3
_CHECK_REDUCTION = max(REDUCTIONS) + 3
_CHECK_RATE = 0.1
# Weights whose outputs a check compares: 2900 x 2900 take 32 MiB in fp32, and some hundreds where they are worked out in double precision.
# Up to 16 times as many, that is still an output of nearly every panel.
_CHECK_WEIGHTS = 1 << 23
# Panels of all widths that a race keeps at once.
_PANELS_BYTES = 256 << 20


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


_Inputs = tuple["torch.Tensor", "torch.Tensor"]
"""x [n, C] and dy [n, K]."""


class LayerCase(Case):
    """Activations rotate through more than the caches; weights stay, as they do in training.

    The weights are the model's own where the pass belongs to one: timing takes no step, and a check restores what it changes.
    """

    def __init__(self, operator: LayerPass, seed: int, warm: bool) -> None:
        self._pass, self._seed = operator, seed
        n, c, k = operator.samples, operator.inputs, operator.outputs
        live = operator.live
        self._layer: Layer = live.memory.modules[operator.layer] if live else self._alone()
        self._layers: dict[int, Layer] = {}
        self._inputs = itertools.cycle([self._draw(n, seed + i) for i in range(1 if warm else cold_sets(4 * n * (c + k)))])
        self._out = None
        if operator.direction != "backward_weights":
            self._out = empty_rows(n, k if operator.direction == "forward" else c)
        self._checked = _checked_outputs(*((c, k) if operator.direction == "backward_data" else (k, c)))

    def _alone(self) -> Layer:
        """A layer of its own, packed as the defaults of its passes want it."""
        layer = self._pass.make_layer(torch.Generator().manual_seed(self._seed))
        gemms = (replace(self._pass.gemm, direction=direction) for direction in ("forward", "backward_data"))
        forward, backward = (default_knobs(gemm, 1, vector_lanes()) for gemm in gemms)
        layer.configure(forward, backward)
        return layer

    def _draw(self, n: int, seed: int) -> _Inputs:
        x, dy = empty_rows(n, self._pass.inputs), empty_rows(n, self._pass.outputs)
        for tensor, low in ((x, -0.5), (dy, -1.0)):
            whole = tensor.as_strided((tensor.shape[0] * tensor.stride(0),), (1,))
            kernels.fill_uniform(whole, low, 1.0, seed, 1)
        return x, dy

    def _width(self, knobs: LayerKnobs) -> int:
        """Of the panels that these knobs read; 0 for backward-weights, which reads none and refreshes the layer's own."""
        return 0 if self._out is None else knobs.bk

    def fits(self, knobs: LayerKnobs) -> bool:
        """Panels of a second width, and of more while all are small."""
        width, count = self._width(knobs), len(self._layers)
        each_bytes = 4 * self._pass.inputs * self._pass.outputs
        return width in self._layers or count < 2 or (count + 1) * each_bytes <= _PANELS_BYTES

    def _packed_for(self, knobs: LayerKnobs) -> Layer:
        """A layer packed for these knobs: in training, weights are packed when they are updated, so packing is never inside the clock."""
        width = self._width(knobs)
        if width not in self._layers:
            if width:
                layer = self._layer.with_panels("forward" if self._pass.direction == "forward" else "backward", width)
            else:
                layer = copy.copy(self._layer)
                # At 0 the first step of Adagrad is the sign of the gradient, which rounding may turn; and the model's own stay as they are.
                layer.state = {name: torch.ones_like(state) for name, state in layer.state.items()}
            self._layers[width] = layer
        return self._layers[width]

    def _call(self, layer: Layer, inputs: _Inputs, out: torch.Tensor | None, rate: float, knobs: LayerKnobs, threads: int) -> None:
        x, dy = inputs
        if out is None:
            layer.backward_weights(dy, x, rate, knobs, threads)
        elif self._pass.direction == "forward":
            layer.forward(x, out, knobs, threads)
        else:
            layer.backward_data(dy, x if self._pass.masked else None, out, knobs, threads)

    def run(self, knobs: LayerKnobs, threads: int) -> None:
        self._call(self._packed_for(knobs), next(self._inputs), self._out, 0.0, knobs, threads)

    def check(self, knobs: LayerKnobs, threads: int) -> Check:
        """Against double precision: two of the largest row blocks and a remainder; backward-weights more than its longest `bc`."""
        inputs, wanted = self._reference
        layer, rounds = self._packed_for(knobs), knobs.implementation == "torch"
        if self._out is None:
            weight, bias, *sums = (part.clone() for part in _updated(layer))
            self._call(layer, inputs, None, _CHECK_RATE, knobs, threads)
            checks = [output.check(got[self._checked], rounds) for got, output in zip(_updated(layer), wanted, strict=True)]
            layer.load(weight, bias)
            for state, before in zip(layer.state.values(), sums, strict=True):
                state.copy_(before)
            return max(checks, key=lambda check: math.inf if math.isnan(check.worst) else check.worst)
        out = empty_rows(len(inputs[0]), self._out.shape[1])
        self._call(layer, inputs, out, _CHECK_RATE, knobs, threads)
        return wanted[0].check(out[:, self._checked], rounds)

    @functools.cached_property
    def _reference(self) -> tuple[_Inputs, list[_Wanted]]:
        """Inputs; and by output what is wanted and how far off it may be: the same for every candidate, so it is computed once.

        The bound is the standard one of a dot product: its length x epsilon x the sum of absolute products, from inputs that in bf16 were
        rounded before. One more than the length stands for rounding the double-precision result to fp32.
        """
        direction, activation, checked = self._pass.direction, self._pass.activation, self._checked
        rows = _CHECK_REDUCTION if direction == "backward_weights" else _CHECK_ROWS
        inputs = self._draw(min(self._pass.samples, rows), self._seed)
        layer = self._packed_for(LayerKnobs())
        x, dy = (tensor.double() if self._pass.dtype == "fp32" else tensor.bfloat16().double() for tensor in inputs)
        if direction == "forward":
            bias, read = layer.bias[checked].double(), layer.read[checked].double()
            product, scale = x @ read.t(), torch.addmm(bias.abs(), x.abs(), read.t().abs())
            wanted = product + bias
            wanted = torch.relu(wanted) if activation == "relu" else torch.sigmoid(wanted) if activation == "sigmoid" else wanted
            return inputs, [self._wanted(wanted, (self._pass.inputs + 3) * _EPSILON * scale, product.abs())]
        if direction == "backward_data":
            read = layer.read[:, checked].double()
            product, scale = dy @ read, dy.abs() @ read.abs()
            wanted = product * (inputs[0][:, checked] > 0) if self._pass.masked else product
            return inputs, [self._wanted(wanted, (self._pass.outputs + 1) * _EPSILON * scale, product.abs())]
        dy, exact = dy[:, checked], inputs[1][:, checked].double()  # the gradient of the bias is not rounded
        gradients = ((dy.t() @ x, dy.t().abs() @ x.abs()), (exact.sum(0), exact.abs().sum(0)))
        parts = tuple(part[checked].double() for part in layer.weights())
        return inputs, self._stepped(parts, gradients, len(x) + 3)

    def _stepped(
        self, parts: tuple[torch.Tensor, ...], gradients: tuple[tuple[torch.Tensor, torch.Tensor], ...], length: int
    ) -> list[_Wanted]:
        """Weight and bias after one step, then what Adagrad has summed, from (gradient, sum of absolute products) of each.

        Adagrad's step g / sqrt(1 + g^2) moves no more than the gradient does, and is rounded four times.
        """
        stepped, sums = [], []
        for i, (before, (gradient, scale)) in enumerate(zip(parts, gradients, strict=True)):
            error, rounded, step, half = length * _EPSILON * scale, gradient.abs() * (i == 0), gradient, before.abs()
            if self._pass.optimizer == "adagrad":
                total = 1.0 + gradient**2
                step, error = gradient / total.sqrt(), error + 4 * _EPSILON
                square_error = (2 * gradient.abs() + error) * error + 2 * _EPSILON * total
                sums.append(self._wanted(total, square_error, (2 * gradient.abs() + rounded) * rounded))
            stepped.append(self._wanted(before - _CHECK_RATE * step, _CHECK_RATE * error + 3 * _EPSILON * half, _CHECK_RATE * rounded))
        return stepped + sums

    def _wanted(self, value: torch.Tensor, allowed: torch.Tensor, product: torch.Tensor) -> _Wanted:
        rounded = product * (_BF16_EPSILON if self._pass.dtype == "bf16" else 0.0)
        return _Wanted(value.float(), (allowed + 1e-6).float(), rounded.float())


def _checked_outputs(outputs: int, others: int) -> Any:
    """Which rows of a weight, or columns, a check compares: all, or of a large layer some of every panel and the last panel whole."""
    step = -(-outputs * others // _CHECK_WEIGHTS)
    if step == 1:
        return slice(None)
    # An odd step meets every place in a panel.
    return torch.tensor(sorted({*range(0, outputs, step | 1), *range(max(0, outputs - 64), outputs)}))


def _updated(layer: Layer) -> list[torch.Tensor]:
    """What a step changes: weight, bias, and Adagrad's sums of both."""
    return [*layer.weights(), *layer.state.values()]


def mask(gradient: torch.Tensor, output: torch.Tensor) -> None:
    """gradient *= output > 0, in place."""
    torch.ops.aten.threshold_backward.grad_input(gradient, output, 0.0, grad_input=gradient)


class MaskCase(Case):
    """Both arrays [N, K] rotate through more than the caches."""

    def __init__(self, samples: int, columns: int, seed: int, warm: bool) -> None:
        generator, sets = torch.Generator().manual_seed(seed), 1 if warm else cold_sets(8 * samples * columns)
        arrays = [[empty_rows(samples, columns).normal_(generator=generator) for _ in range(2)] for _ in range(sets)]
        self._first, self._arrays = arrays[0], itertools.cycle(arrays)

    def run(self, knobs: Any, threads: int) -> None:
        mask(*next(self._arrays))

    def check(self, knobs: Any, threads: int) -> Check:
        gradient, output = (tensor.clone() for tensor in self._first)
        wanted = gradient * (output > 0)
        mask(gradient, output)
        return Check(float((gradient - wanted).abs().max()), 0.0)
