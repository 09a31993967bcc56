"""One fully connected layer in memory: its weights, the packed copies that the blocked GEMM reads, and its passes.

N samples, C inputs, K outputs. In bf16 a weight is kept as the two halves of an fp32: passes read the upper one, a bf16; the step joins
both, and splits them again (Split-SGD-BF16, arXiv 2005.04680, section III.C). No fp32 copy exists. Activations and gradients stay fp32 in
memory; the GEMM rounds what it reads.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

from pydantic import Field

from autotune.config.knobs import MAX_SIZE, MAX_THREADS, Knobs
from autotune.config.model import Dtype, Optimizer
from autotune.ops.native import ADAGRAD_EPSILON, kernels, torch, zeros

Activation = Literal["none", "relu", "sigmoid"]


class LayerKnobs(Knobs):
    """How one pass of one fully connected layer is computed (N samples, C inputs, K outputs)."""

    kind: Literal["layer"] = "layer"
    implementation: Literal["blocked", "torch", "libxsmm"] = "blocked"
    """The blocked batch-reduce GEMM of this package; torch's own (oneDNN or MKL); or our loops around libxsmm's kernels."""
    bn: int = Field(64, ge=1, le=65536)
    """Rows of the output computed by one task."""
    bc: int = Field(512, ge=1, le=MAX_SIZE)
    """Length of the reduction held in cache at a time."""
    bk: Literal[16, 32, 48, 64] = 64
    """Columns of the output in one packed panel."""
    loop_order: Literal["rows_outer", "columns_outer"] = "rows_outer"
    """Which output dimension a thread walks last."""
    thread_columns: int = Field(1, ge=1, le=MAX_THREADS)
    """Columns of the rows x columns thread grid; it divides the thread count."""

    def valid_for(self, threads: int) -> bool:
        return threads % self.thread_columns == 0

    def with_threads(self, threads: int) -> LayerKnobs:
        return self if self.valid_for(threads) else self.model_copy(update={"thread_columns": 1})

    def changes(self, chosen: Knobs) -> str:
        """As for all knobs, but torch's GEMM, which takes no blockings, is named alone."""
        if isinstance(chosen, LayerKnobs) and chosen.implementation == "torch" != self.implementation:
            return f"implementation {self.implementation} -> torch"
        return super().changes(chosen)

    def distance(self, other: Knobs) -> int:
        """As for all knobs, but another implementation counts one, since its blockings mean nothing."""
        same = isinstance(other, LayerKnobs) and other.implementation == self.implementation
        return super().distance(other) if same else 1


def split_weights(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper and lower 16 bits, int16, of fp32."""
    bits = weight.view(torch.int32)
    return (bits >> 16).to(torch.int16), bits.to(torch.int16)


def join_weights(upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """The fp32 whose halves these are, exactly."""
    return ((upper.to(torch.int32) << 16) | (lower.to(torch.int32) & 0xFFFF)).view(torch.float32)


def packed_values(columns: int, reduction: int, width: int, dtype: Dtype) -> int:
    """Values in the panels of a weight: pairs along the reduction in bf16."""
    return -(-columns // width) * width * (reduction if dtype == "fp32" else -(-reduction // 2) * 2)


def _int16_zeros(count: int) -> torch.Tensor:
    return zeros(-(-count // 2)).view(torch.int16)[:count]


class Layer:
    """One fully connected layer with its weights, and the packed copies that the blocked GEMM reads; `configure` makes those.

    Args:
        inputs: C.
        outputs: K.
        activation: applied to the output.
        generator: initial weights are normal with variance 2/(C+K), biases normal with variance 1/K, as in the public DLRM.
        dtype: of the arithmetic.
        optimizer: sgd, or adagrad: s += g^2, w -= learning_rate * g / (sqrt(s) + 1e-10), with a state s for weight and bias.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Activation,
        *,
        generator: torch.Generator,
        dtype: Dtype = "fp32",
        optimizer: Optimizer = "sgd",
    ) -> None:
        self.activation: Activation = activation
        self.dtype: Dtype = dtype
        self._shape = (outputs, inputs)
        weight, self.bias = zeros(outputs, inputs), zeros(outputs)
        weight.normal_(0.0, math.sqrt(2.0 / (inputs + outputs)), generator=generator)
        self.bias.normal_(0.0, math.sqrt(1.0 / outputs), generator=generator)
        self.parts: tuple[torch.Tensor, ...] = (weight,)
        """The live weight [K, C]: fp32, or in bf16 its upper and lower 16 bits, int16."""
        if dtype == "bf16":
            self.parts = tuple(_int16_zeros(weight.numel()).view(outputs, inputs) for _ in range(2))
            self._set(weight)
        self.d_weight, self.d_bias = zeros(outputs, inputs), zeros(outputs)
        self.state: dict[str, torch.Tensor] = {}
        """What Adagrad has summed, live: of ``weight`` [K, C] and ``bias`` [K], fp32; empty with SGD."""
        if optimizer == "adagrad":
            self.state = {"weight": zeros(outputs, inputs), "bias": zeros(outputs)}
        self._packed: dict[str, tuple[int, torch.Tensor]] = {}
        self._knobs: dict[str, LayerKnobs] = {}
        self._packs = False
        """Whether a pass reads the packed copies."""

    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """weight [K, C] and bias [K], fp32: the live ones, but for a weight in halves, which is joined into a new tensor."""
        return (self.parts[0] if self.dtype == "fp32" else join_weights(*self.parts)), self.bias

    @property
    def read(self) -> torch.Tensor:
        """The weight as passes read it, live: fp32, or its upper halves as bf16."""
        return self.parts[0] if self.dtype == "fp32" else self.parts[0].view(torch.bfloat16)

    def load(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Copy weight [K, C] and bias [K], fp32, in; the packed copies follow."""
        self._set(weight)
        self.bias.copy_(bias)
        self.pack(torch.get_num_threads())

    def _set(self, weight: torch.Tensor) -> None:
        weight = weight.detach().float()
        for part, value in zip(self.parts, (weight,) if self.dtype == "fp32" else split_weights(weight), strict=True):
            part.copy_(value)

    def _kernel(self, name: str) -> Any:
        """The kernel of this name for the dtype of the layer."""
        return getattr(kernels, name if self.dtype == "fp32" else f"{name}_bf16")

    def _multiply(self, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
        """out = left right by torch's GEMM, from operands of the dtype of the layer."""
        if self.dtype == "fp32":
            torch.mm(left, right, out=out)
        else:
            out.copy_(torch.mm(left.bfloat16(), right.bfloat16()))

    def configure(self, forward: LayerKnobs | None = None, backward_data: LayerKnobs | None = None) -> None:
        """Make the packed copies fit the panel widths, and fill them.

        None leaves the knobs of a pass as they are; one that was never given follows the other's.
        """
        self._knobs |= {key: knobs for key, knobs in (("forward", forward), ("backward", backward_data)) if knobs is not None}
        first = self._knobs.get("forward") or self._knobs["backward"]
        chosen = {"forward": first, "backward": self._knobs.get("backward", first)}
        packs = any(knobs.implementation != "torch" for knobs in chosen.values())  # torch's GEMM reads no packed copy
        stale = packs and not self._packs
        for key, knobs in chosen.items():
            if self._packed.get(key, (0,))[0] != knobs.bk:
                self._packed[key] = (knobs.bk, self._panels(key, knobs.bk))
                stale = True
        self._packs = packs
        if stale:
            self.pack(1)

    def with_panels(self, direction: Literal["forward", "backward"], width: int) -> Layer:
        """The same weights and gradients, live, with panels `width` wide for one direction; the other direction's panels are shared.

        `configure` must have been called.
        """
        same = copy.copy(self)
        same._packed, same._packs = dict(self._packed), True
        if self._packed[direction][0] != width:
            same._packed[direction] = (width, self._panels(direction, width))
        same.pack(1)
        return same

    def _panels(self, direction: str, width: int) -> torch.Tensor:
        columns, reduction = self._shape if direction == "forward" else self._shape[::-1]
        count = packed_values(columns, reduction, width, self.dtype)
        return zeros(count) if self.dtype == "fp32" else _int16_zeros(count)

    def pack(self, threads: int) -> None:
        """Bring the packed copies up to date with the weights."""
        if self._packs:
            (forward_width, forward), (backward_width, backward) = self._packed["forward"], self._packed["backward"]
            self._kernel("pack_weights")(self.parts[0], forward, forward_width, backward, backward_width, threads)

    def forward(self, x: torch.Tensor, y: torch.Tensor, knobs: LayerKnobs, threads: int) -> None:
        """y[n, k] = act(sum_c x[n, c] weight[k, c] + bias[k]); x fp32 [N, C], y fp32 [N, K], written."""
        if knobs.implementation == "torch":
            if self.dtype == "fp32":
                torch.addmm(self.bias, x, self.read.t(), out=y)
            else:
                self._multiply(x, self.read.t(), y)
                y.add_(self.bias)
            if self.activation == "relu":
                y.relu_()
            elif self.activation == "sigmoid":
                y.sigmoid_()
        else:
            width, packed = self._packed["forward"]
            blocking = (knobs.bn, knobs.bc, width, *_grid(knobs, threads))
            self._kernel("linear_forward")(x, packed, self.bias, y, self.activation, *blocking)

    def backward_data(self, dy: torch.Tensor, x: torch.Tensor | None, dx: torch.Tensor, knobs: LayerKnobs, threads: int) -> None:
        """dx = (dy weight) * (x > 0): dy fp32 [N, K] before the activation; x [N, C] the ReLU output below, None without; dx written."""
        if knobs.implementation == "torch":
            self._multiply(dy, self.read, dx)
            if x is not None:
                torch.ops.aten.threshold_backward.grad_input(dx, x, 0.0, grad_input=dx)
        else:
            width, packed = self._packed["backward"]
            self._kernel("linear_backward_data")(dy, packed, x, dx, knobs.bn, knobs.bc, width, *_grid(knobs, threads))

    def backward_weights(self, dy: torch.Tensor, x: torch.Tensor, learning_rate: float, knobs: LayerKnobs, threads: int) -> None:
        """A step along dy^T x and sum_n dy[n]; the packed copies follow. A learning rate of 0 changes nothing, the state included."""
        if knobs.implementation == "torch":
            self.gradients(dy, x, knobs, threads)
            self.descend(learning_rate, threads)
        else:
            self._kernel("linear_backward_weights")(
                dy, x, self.d_weight, self.d_bias, *self.parts, self.bias, learning_rate, knobs.bn, knobs.bc, knobs.bk,
                *_grid(knobs, threads), state=self.state.get("weight"), bias_state=self.state.get("bias"), epsilon=ADAGRAD_EPSILON,
            )  # fmt: skip
            self.pack(threads)

    def gradients(self, dy: torch.Tensor, x: torch.Tensor, knobs: LayerKnobs, threads: int) -> None:
        """d_weight = dy^T x and d_bias = sum_n dy[n], for a step that is taken later: where other ranks have gradients too."""
        if knobs.implementation == "torch":
            self._multiply(dy.t(), x, self.d_weight)
            torch.sum(dy, 0, out=self.d_bias)
        else:
            weight_and_bias = [None] * (len(self.parts) + 1)
            self._kernel("linear_backward_weights")(
                dy, x, self.d_weight, self.d_bias, *weight_and_bias, 0.0, knobs.bn, knobs.bc, knobs.bk, *_grid(knobs, threads)
            )

    def descend(self, learning_rate: float, threads: int) -> None:
        """One step along d_weight and d_bias; the packed copies follow."""
        state = (self.state.get("weight"), self.state.get("bias"))
        self._kernel("linear_descend")(
            self.d_weight, self.d_bias, *self.parts, self.bias, *state, learning_rate, ADAGRAD_EPSILON, threads
        )  # fmt: skip
        self.pack(threads)


def _grid(knobs: LayerKnobs, threads: int) -> tuple[bool, int, int, bool]:
    return knobs.loop_order == "columns_outer", knobs.thread_columns, threads, knobs.implementation == "libxsmm"
