"""Dot interaction: the dense vector followed by all pairwise dot products of a sample's F feature vectors.

out[n] = [features[n, 0], <features[n, i], features[n, j]> for i in 0..F-1 for j < i]: the lower triangle by rows, P products; with its
diagonal for j <= i.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from autotune.config.interactions import pairs
from autotune.config.knobs import MAX_SIZE, Knobs
from autotune.config.profile import Topology
from autotune.ops.base import Case, Check, Family, Features, Operator, Rates, Residence, Work
from autotune.ops.memory import Memory
from autotune.ops.native import cold_sets, empty_rows, kernels, target, torch, zeros

FORWARD = "interaction.forward"
BACKWARD = "interaction.backward"
INTERACTION = Family("interaction", "#ff7f0e")
_EPSILON = 2.0**-23


class InteractionKnobs(Knobs):
    """How the pairwise dot products are computed."""

    kind: Literal["interaction"] = "interaction"
    implementation: Literal["fused", "bmm"] = "fused"
    samples_per_task: int = Field(32, ge=1, le=MAX_SIZE)


def forward(features: torch.Tensor, out: torch.Tensor, diagonal: bool, knobs: InteractionKnobs, threads: int) -> None:
    """features fp32 [N, F, E] -> out fp32 [N, E + P], written."""
    if knobs.implementation == "fused":
        kernels.interaction_forward(features, out, diagonal, knobs.samples_per_task, threads)
        return
    count, dim = features.shape[1:]
    out[:, :dim] = features[:, 0]
    rows, columns = torch.tril_indices(count, count, diagonal - 1)
    out[:, dim:] = torch.bmm(features, features.transpose(1, 2))[:, rows, columns]


def backward(
    features: torch.Tensor, d_out: torch.Tensor, d_features: torch.Tensor, diagonal: bool, knobs: InteractionKnobs, threads: int
) -> None:
    """d_features[n] = (G + G^T) features[n] with G the triangle in d_out [N, E + P], plus d_out[:, :E] on feature 0. Written."""
    if knobs.implementation == "fused":
        kernels.interaction_backward(features, d_out, d_features, diagonal, knobs.samples_per_task, threads)
        return
    samples, count, dim = features.shape
    square = torch.zeros(samples, count, count)
    rows, columns = torch.tril_indices(count, count, diagonal - 1)
    square[:, rows, columns] = d_out[:, dim:]
    torch.bmm(square + square.transpose(1, 2), features, out=d_features)
    d_features[:, 0] += d_out[:, :dim]


@dataclass(eq=False)
class Interaction(Operator):
    """One direction of the interaction.

    Args:
        samples, features_count, dim: N, F, E.
        diagonal: whether the products of vectors with themselves are among the P products.
        vectors: name of the buffer [N, F, E]; gradients are ``d_`` and the name.
        result: name of the buffer [N, E + P].
    """

    samples: int
    features_count: int
    dim: int
    diagonal: bool = False
    vectors: str = "vectors"
    result: str = "top.0"

    family: ClassVar[Family] = INTERACTION
    shortest_words: ClassVar[Mapping[str, str]] = {"interaction": "inter", "forward": "fwd", "backward": "bwd"}
    knobs_type: ClassVar[type[Knobs]] = InteractionKnobs
    direction: ClassVar[Literal["forward", "backward"]]

    @property
    def shape(self) -> Hashable:
        return (self.direction, self.samples, self.features_count, self.dim, self.diagonal)

    @property
    def outputs(self) -> int:
        """E + P."""
        return self.dim + pairs(self.features_count, self.diagonal)

    def work(self) -> Work:
        """Forward: a multiply-add per product and column, 2*N*P*E flops. Backward: one per vector, other vector and column, and with the
        diagonal for the vector itself too. Vectors are read, results written, once."""
        n, f, e = self.samples, self.features_count, self.dim
        vectors, results = 4 * n * f * e, 4 * n * self.outputs
        if self.direction == "forward":
            return Work(flops=2 * n * (self.outputs - e) * e, bytes_read=vectors, bytes_written=results)
        return Work(flops=2 * n * f * (f - 1 + self.diagonal) * e, bytes_read=vectors + results, bytes_written=vectors)

    def size(self) -> Mapping[str, float]:
        return {"samples": float(self.samples), "features": float(self.features_count), "dim": float(self.dim)}

    def default(self, threads: int, lanes: int = 0) -> InteractionKnobs:
        return InteractionKnobs()

    def candidates(self, machine: Topology, threads: int) -> Sequence[InteractionKnobs]:
        return [InteractionKnobs(), *(InteractionKnobs(samples_per_task=s) for s in (8, 128, 512)), InteractionKnobs(implementation="bmm")]

    def case(self, seed: int, warm: bool = False) -> Case:
        return _InteractionCase(self, seed, warm)


@dataclass(eq=False)
class InteractionForward(Interaction):
    """The dense vector and all pairwise dots of a sample."""

    kind: ClassVar[str] = FORWARD
    direction: ClassVar[Literal["forward", "backward"]] = "forward"
    prior: ClassVar[Mapping[str, float]] = {
        "dots": 0.39, "sums": 0.39, "copy": 5.6, "samples": 0.1, "call": 18.0, "fork": 2.0, "memory": 1.1, "shared": 1.0,
    }  # fmt: skip

    def features(self, knobs: Knobs | None, residence: Residence, rates: Rates) -> Features:
        high = 4 if rates.lanes == 16 else 2
        wide, count = rates.lanes // high, self.features_count + self.diagonal  # the triangle of one vector more has as many rows
        tiles = sum(-(-(min(count, i + high) - 1) // wide) for i in range(1, count, high))
        each = self.samples / rates.threads * rates.cycle_s
        return {
            "dots": each * tiles * rates.lanes * -(-self.dim // rates.lanes),
            "sums": each * tiles * rates.lanes,
            "copy": each * self.dim / rates.lanes,
            "samples": each,
        }

    def run(self, memory: Memory, knobs: InteractionKnobs, threads: int) -> None:
        forward(memory.buffers[self.vectors], memory.buffers[self.result], self.diagonal, knobs, threads)


@dataclass(eq=False)
class InteractionBackward(Interaction):
    """The gradient of every vector from those of the dots."""

    kind: ClassVar[str] = BACKWARD
    direction: ClassVar[Literal["forward", "backward"]] = "backward"
    prior: ClassVar[Mapping[str, float]] = {
        "dots": 0.39, "square": 0.1, "store": 8.7, "samples": 0.1, "call": 13.0, "fork": 2.0, "memory": 0.1, "shared": 0.4,
    }  # fmt: skip

    def features(self, knobs: Knobs | None, residence: Residence, rates: Rates) -> Features:
        count, vectors = self.features_count, math.ceil(self.dim / rates.lanes)
        each = self.samples / rates.threads * rates.cycle_s
        return {"dots": each * count**2 * vectors, "square": each * count**2, "store": each * count * vectors, "samples": each}

    def run(self, memory: Memory, knobs: InteractionKnobs, threads: int) -> None:
        vectors, d_result = memory.buffers[self.vectors], memory.buffers[f"d_{self.result}"]
        backward(vectors, d_result, memory.buffers[f"d_{self.vectors}"], self.diagonal, knobs, threads)


class _InteractionCase(Case):
    def __init__(self, operator: Interaction, seed: int, warm: bool) -> None:
        self._pass, self._seed = operator, seed
        n, f, e = operator.samples, operator.features_count, operator.dim
        sets = 1 if warm else cold_sets(8 * n * f * e)
        self._inputs = itertools.cycle([self._draw(n, seed + i) for i in range(sets)])
        self._d_features = zeros(n, f, e)

    def _draw(self, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        f, e = self._pass.features_count, self._pass.dim
        features, out = zeros(n, f, e), empty_rows(n, self._pass.outputs)
        kernels.fill_uniform(features.view(-1), -1.0, 1.0, seed, 1)
        kernels.fill_uniform(out.as_strided((n * out.stride(0),), (1,)), -1.0, 1.0, seed + 1, 1)
        return features, out

    def _call(self, features: torch.Tensor, out: torch.Tensor, d_features: torch.Tensor, knobs: InteractionKnobs, threads: int) -> None:
        if self._pass.direction == "forward":
            forward(features, out, self._pass.diagonal, knobs, threads)
        else:
            backward(features, out, d_features, self._pass.diagonal, knobs, threads)

    def run(self, knobs: InteractionKnobs, threads: int) -> None:
        self._call(*next(self._inputs), self._d_features, knobs, threads)

    def check(self, knobs: InteractionKnobs, threads: int) -> Check:
        f, e = self._pass.features_count, self._pass.dim
        samples = min(self._pass.samples, knobs.samples_per_task + 3, 67)
        features, out = self._draw(samples, self._seed)
        got, wanted = zeros(samples, f, e), zeros(samples, f, e)
        reference = out.clone()
        self._call(features, out, got, knobs, threads)
        with target("reference"):
            self._call(features, reference, wanted, InteractionKnobs(), 1)
        errors, length = ((out - reference).abs(), e) if self._pass.direction == "forward" else ((got - wanted).abs(), f)
        return Check(float(errors.max()), length * 2 * _EPSILON * max(e, f), f"element {int(errors.argmax())}")
