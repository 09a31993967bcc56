"""Fully connected layers as operators: forward, backward-data and backward-weights with the fused step of the optimizer.

N samples, C inputs, K outputs. Activations are row-major with a padded leading dimension, so that layers hand them on without repacking.
The blocked batch-reduce GEMM follows arXiv 2005.04680, section III.B, with activations left flat: its microkernel broadcasts them, and a
broadcast reads a row as well as a block.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.config.knobs import Knobs, RunConfig
from autotune.config.model import FLOAT_BYTES, Dtype, Optimizer
from autotune.config.profile import Topology
from autotune.errors import InputError
from autotune.ops.base import Case, Copying, Family, Features, Measured, Observation, Operator, Rates, Residence, Work
from autotune.ops.layer import Activation, Layer, LayerKnobs
from autotune.ops.layer_candidates import default_knobs, layer_candidates
from autotune.ops.layer_case import LayerCase, MaskCase, mask
from autotune.ops.layer_features import GEMM_PRIOR, blocked_features, weight_features
from autotune.ops.layer_shapes import Direction, Gemm, busiest, padded
from autotune.ops.memory import Memory
from autotune.ops.native import torch

BOTTOM, TOP = Family("bottom MLP", "#1f9d55"), Family("top MLP", "#8bd3a8")

_LEAST_WASTE = 0.1
"""Share of the arithmetic spent on padding, or of the threads' time spent waiting for the busiest, from which it is worth a word."""


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
    def gemm(self) -> Gemm:
        """The pass as a matrix product."""
        return Gemm(self.direction, self.samples, self.inputs, self.outputs, self.dtype)

    @property
    def shape(self) -> Hashable:
        return (self.direction, self.samples, self.inputs, self.outputs, self.activation, self.masked)

    def work(self) -> Work:
        """2*N*C*K flops. Every matrix of the pass is read or written once: x [N, C], y or dy [N, K], weight [K, C], the mask [N, C], and
        in the update Adagrad's state [K, C]. Two bytes of a weight are read in bf16, but for the update, which takes both halves."""
        n, c, k = self.samples, self.inputs, self.outputs
        x, y, weights = 4 * n * c, 4 * n * k, c * k
        w = self.gemm.element_bytes * weights
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
            knobs = self.default(rates.threads, rates.lanes)
        features = blocked_features(self.gemm, knobs, self.masked, rates)
        return features | weight_features(self.gemm, knobs, not self.reduced, rates) if self.direction == "backward_weights" else features

    def default(self, threads: int, lanes: int) -> LayerKnobs:
        return default_knobs(self.gemm, threads, lanes)

    def candidates(self, machine: Topology, threads: int) -> Sequence[LayerKnobs]:
        return layer_candidates(self.gemm, machine, threads)

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
        layer = memory.module(self.layer, lambda: self.make_layer(memory.generator))
        if self.direction == "forward":
            layer.configure(forward=knobs)
        elif self.direction == "backward_data":
            layer.configure(backward_data=knobs)

    def make_layer(self, generator: torch.Generator) -> Layer:
        """The layer with initial weights; its packed copies are made by `Layer.configure`."""
        return Layer(self.inputs, self.outputs, self.activation, generator=generator, dtype=self.dtype, optimizer=self.optimizer)

    def case(self, seed: int, warm: bool = False) -> Case:
        return LayerCase(self, seed, warm)

    def findings(self, measured: Measured) -> Iterator[Observation]:
        if isinstance(measured.knobs, LayerKnobs) and measured.knobs.implementation == "blocked" and self.outputs > 1:
            yield from self._padding(measured)
            yield from self._uneven_blocks(measured.knobs, measured)
        fractions = measured.fractions
        memory_bound = measured.bound_by == "memory" or fractions.get("memory", 0.0) > fractions.get("compute", 0.0)
        if memory_bound and measured.balance is not None:
            yield self._too_few_flops(measured, measured.balance)

    def _padding(self, measured: Measured) -> Iterator[Observation]:
        """Output columns that fill no whole vector."""
        (_, columns, _), lanes = self.gemm.dims, measured.lanes
        covered = padded(columns, lanes)
        waste = 1.0 - columns / covered
        if waste < _LEAST_WASTE:
            return
        remedy = f"make the layer {covered} or {columns // lanes * lanes} wide, a multiple of {lanes}"
        if columns < lanes:
            remedy = "a layer so narrow is cheapest in torch's own product (implementation: torch), or fused with its neighbour"
        evidence = f"its {columns} output columns fill vectors of {lanes} up to {covered}: {waste:.0%} of the arithmetic is padding."
        yield Observation("padded_layer", min(measured.time_s * waste, measured.above_ceiling_s), evidence, remedy)

    def _uneven_blocks(self, knobs: LayerKnobs, measured: Measured) -> Iterator[Observation]:
        """Blocks that do not divide by the threads."""
        (rows, columns, _), threads, bn = self.gemm.dims, measured.threads, knobs.bn
        row_threads = threads // knobs.thread_columns
        load = threads * busiest(rows, bn, row_threads) / rows * busiest(columns, knobs.bk, knobs.thread_columns) / columns
        waste = 1.0 - 1.0 / load
        if waste < _LEAST_WASTE:
            return
        blocks, panels = -(-rows // bn), -(-columns // knobs.bk)
        evidence = f"{blocks} row blocks x {panels} panels over {threads} threads: the busiest gets {load:.2f}x the mean."
        remedy = f"smaller row blocks (bn below {bn}) or a minibatch of a multiple of {bn * row_threads} rows deals them out evenly"
        yield Observation("uneven_blocks", min(measured.time_s * waste, measured.above_ceiling_s), evidence, remedy)

    def _too_few_flops(self, measured: Measured, balance: float) -> Observation:
        """Fewer flops a byte than the machine needs: the first layer, as a rule, whose inputs are few."""
        samples, inputs, outputs = self.samples, self.inputs, self.outputs
        activations = samples * (inputs + outputs) / (samples * (inputs + outputs) + inputs * outputs)
        does = f"{inputs} x {outputs} does {self.work().intensity:.1f} flops a byte"
        evidence = f"{does}, and this machine needs {balance:.0f} to be kept busy by arithmetic."
        remedy = f"{1 - activations:.0%} of its bytes are weights: a larger minibatch re-uses them"
        if activations > 0.5:
            fixed = f"{activations:.0%} of its bytes are activations, which no minibatch changes"
            remedy = f"{fixed}: bf16 halves them, a wider layer uses them more"
        return Observation("memory_bound_layer", measured.above_ceiling_s, evidence, remedy)


@dataclass(eq=False)
class LayerForward(LayerPass):
    """y = act(x weight^T + bias)."""

    kind: ClassVar[str] = "mlp.forward"
    shortest_words: ClassVar[Mapping[str, str]] = {"bottom_mlp": "bot", "top_mlp": "top", "forward": "fwd"}
    direction: ClassVar[Direction] = "forward"
    prior: ClassVar[Mapping[str, float]] = {**GEMM_PRIOR, "call": 15.0, "memory": 1.9, "shared": 0.8}

    def run(self, memory: Memory, knobs: LayerKnobs, threads: int) -> None:
        memory.modules[self.layer].forward(memory.buffers[self.below], memory.buffers[self.above], knobs, threads)


@dataclass(eq=False)
class LayerBackwardData(LayerPass):
    """dx = (dy weight) * (x > 0)."""

    kind: ClassVar[str] = "mlp.backward_data"
    short_words: ClassVar[Mapping[str, str]] = {"backward_data": "bwd_data"}
    shortest_words: ClassVar[Mapping[str, str]] = {"backward_data": "bwd_d"}
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
    short_words: ClassVar[Mapping[str, str]] = {"backward_weights": "bwd_weights"}
    shortest_words: ClassVar[Mapping[str, str]] = {"backward_weights": "bwd_w"}
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


@dataclass(eq=False)
class ReluMask(Copying):
    """d = d * (y > 0), in place: the gradient that reaches a layer's output from an operator that knows nothing of its ReLU.

    Args:
        buffer: name of y [N, K]; the gradient is ``d_`` and the name.
        samples, columns: N, K.
    """

    buffer: str
    samples: int
    columns: int

    kind: ClassVar[str] = "mlp.mask"
    family: ClassVar[Family] = BOTTOM
    prior: ClassVar[Mapping[str, float]] = {"moved": 3.6, "call": 7.0}

    @classmethod
    def is_key(cls, key: str) -> bool:
        return key == "bottom_mlp.mask"

    def work(self) -> Work:
        """y and the gradient are read, the gradient written."""
        size = FLOAT_BYTES * self.samples * self.columns
        return Work(flops=self.samples * self.columns, bytes_read=2 * size, bytes_written=size)

    def size(self) -> Mapping[str, float]:
        return {"elements": float(self.samples * self.columns)}

    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        mask(memory.buffers[f"d_{self.buffer}"], memory.buffers[self.buffer])

    def case(self, seed: int, warm: bool = False) -> Case:
        return MaskCase(self.samples, self.columns, seed, warm)
