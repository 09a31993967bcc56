"""The kernels as torch operators with autograd, and as modules for anybody's model.

Registered under ``torch.ops.autotune``: `embedding_bag`, `linear`, `interaction` and their backwards, each with a fake implementation, so
that `torch.compile` and meta tensors see their shapes. fp32 on the CPU; threads are torch's (`torch.get_num_threads`).
Training inside this package does not go through them: it writes into buffers that stay (see `dlrm.model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from autotune.config.interactions import pairs
from autotune.config.model import Dtype, Optimizer, TableStorage
from autotune.machine.topology import vector_lanes
from autotune.ops import interaction as _interaction
from autotune.ops.embedding_bag import default_forward, default_update
from autotune.ops.embedding_tables import EmbeddingBags, Lookups
from autotune.ops.interaction import InteractionKnobs
from autotune.ops.layer import Activation, LayerKnobs
from autotune.ops.layer_candidates import default_knobs
from autotune.ops.layer_shapes import Direction, Gemm, padded
from autotune.ops.native import kernels

Tensor = torch.Tensor


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous()


def _lookups(indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None) -> Lookups:
    return Lookups(_plain(indices), _plain(offsets), None if per_sample_weights is None else _plain(per_sample_weights))


def _pooled(weights: Sequence[Tensor], offsets: Tensor) -> Tensor:
    """Where the bags go: [N, T, E], not yet written."""
    return weights[0].new_empty((offsets.shape[0] - 1) // len(weights), len(weights), weights[0].shape[1])


# Written out: torch 2.6 does not take list[Tensor] for a schema, and 2.13 does not take typing.List.
_BAGS_SCHEMA = "Tensor[] weights, Tensor indices, Tensor offsets, Tensor? per_sample_weights, bool mean"


@torch.library.custom_op("autotune::embedding_bag", mutates_args=(), schema=f"({_BAGS_SCHEMA}) -> Tensor")
def embedding_bag(weights: list[Tensor], indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, mean: bool) -> Tensor:
    """Pooled look-ups of T tables.

    Args:
        weights: T tensors fp32 [rows_t, E].
        indices: int32 or int64 [L], all tables one after the other.
        offsets: same dtype, [T*N + 1].
        per_sample_weights: fp32 [L] or None; sum pooling only.
        mean: mean pooling instead of sum.

    Returns:
        fp32 [N, T, E].

    Raises:
        IndexError: an index outside its table.
    """
    out, threads = _pooled(weights, offsets), torch.get_num_threads()
    knobs = default_forward(out.shape[0], out.shape[1], out.shape[2], threads)
    tables = EmbeddingBags.of([_plain(weight) for weight in weights])
    tables.forward(_lookups(indices, offsets, per_sample_weights), out, knobs, threads, mean=mean)
    return out


embedding_bag.register_fake(lambda weights, indices, offsets, per_sample_weights, mean: _pooled(weights, offsets))


@torch.library.custom_op("autotune::embedding_bag_backward", mutates_args=(), schema=f"(Tensor gradient, {_BAGS_SCHEMA}) -> Tensor[]")
def embedding_bag_backward(
    gradient: Tensor, weights: list[Tensor], indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, mean: bool
) -> list[Tensor]:
    """Dense gradients of the tables: T tensors like `weights`; `gradient` is fp32 [N, T, E]."""
    gradients, threads = [torch.zeros(weight.shape, dtype=weight.dtype) for weight in weights], torch.get_num_threads()
    knobs = default_update(weights[0].shape[1], threads)
    # An update of zeros at learning rate -1 adds up the gradient.
    EmbeddingBags.of(gradients).update(_lookups(indices, offsets, per_sample_weights), _plain(gradient), -1.0, knobs, threads, mean=mean)
    return gradients


embedding_bag_backward.register_fake(
    lambda gradient, weights, indices, offsets, per_sample_weights, mean: [weight.new_empty(weight.shape) for weight in weights]
)


def _save_embedding(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weights, indices, offsets, per_sample_weights, mean = inputs
    ctx.save_for_backward(indices, offsets, per_sample_weights, *weights)
    ctx.mean = mean


def _embedding_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    indices, offsets, per_sample_weights, *weights = ctx.saved_tensors
    d_weights = embedding_bag_backward(gradient, weights, indices, offsets, per_sample_weights, ctx.mean)
    d_scales = None
    if per_sample_weights is not None and ctx.needs_input_grad[3]:
        # d out / d scale of a look-up is its row: <gradient of its bag, row>.
        samples = gradient.shape[0]
        bags = torch.repeat_interleave(torch.arange(offsets.shape[0] - 1), offsets.diff().long())
        rows = torch.cat([w[indices[int(offsets[t * samples]) : int(offsets[(t + 1) * samples])].long()] for t, w in enumerate(weights)])
        d_scales = (gradient[bags % samples, bags // samples] * rows).sum(1)
    return d_weights, None, None, d_scales, None


embedding_bag.register_autograd(_embedding_gradients, setup_context=_save_embedding)


def _knobs(which: Direction, samples: int, weight: Tensor) -> LayerKnobs:
    outputs, inputs = weight.shape
    return default_knobs(Gemm(which, samples, inputs, outputs), torch.get_num_threads(), vector_lanes())


def _grid(knobs: LayerKnobs) -> tuple[bool, int, int]:
    return knobs.loop_order == "columns_outer", knobs.thread_columns, torch.get_num_threads()


def _packed(weight: Tensor, knobs: LayerKnobs) -> tuple[Tensor, Tensor]:
    """The panels that the forward pass reads, and those of backward-data."""
    outputs, inputs = weight.shape
    forward, backward = torch.empty(padded(outputs, knobs.bk) * inputs), torch.empty(padded(inputs, knobs.bk) * outputs)
    kernels.pack_weights(_plain(weight), forward, knobs.bk, backward, knobs.bk, torch.get_num_threads())
    return forward, backward


@torch.library.custom_op("autotune::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """act(x weight^T + bias) by the blocked batch-reduce GEMM.

    Args:
        x: fp32 [N, C].
        weight: fp32 [K, C]; packed at every call.
        bias: fp32 [K] or None.
        activation: none, relu or sigmoid.

    Returns:
        fp32 [N, K].

    Raises:
        ValueError: shapes that do not fit, or an unknown activation.
    """
    knobs = _knobs("forward", x.shape[0], weight)
    packed, _ = _packed(weight, knobs)
    y = x.new_empty(x.shape[0], weight.shape[0])
    kernels.linear_forward(
        _plain(x), packed, None if bias is None else _plain(bias), y, cast("Activation", activation),
        knobs.bn, knobs.bc, knobs.bk, *_grid(knobs),
    )  # fmt: skip
    return y


linear.register_fake(lambda x, weight, bias, activation: x.new_empty(x.shape[0], weight.shape[0]))


@torch.library.custom_op("autotune::linear_backward", mutates_args=())
def linear_backward(d_pre: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias from that before the activation, fp32 [N, K]."""
    d_pre, x = _plain(d_pre), _plain(x)
    data, weights = _knobs("backward_data", x.shape[0], weight), _knobs("backward_weights", x.shape[0], weight)
    _, packed = _packed(weight, data)
    dx, d_weight, d_bias = torch.empty_like(x), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])
    kernels.linear_backward_data(d_pre, packed, None, dx, data.bn, data.bc, data.bk, *_grid(data))
    kernels.linear_backward_weights(d_pre, x, d_weight, d_bias, None, None, 0.0, weights.bn, weights.bc, weights.bk, *_grid(weights))
    return dx, d_weight, d_bias


linear_backward.register_fake(
    lambda d_pre, x, weight: (x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0]))
)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, activation = inputs
    ctx.save_for_backward(x, weight, output)
    ctx.activation, ctx.has_bias = activation, bias is not None


def _linear_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, weight, y = ctx.saved_tensors
    if ctx.activation == "relu":
        gradient = gradient * (y > 0)
    elif ctx.activation == "sigmoid":
        gradient = gradient * y * (1 - y)
    dx, d_weight, d_bias = linear_backward(gradient, x, weight)
    return dx, d_weight, d_bias if ctx.has_bias else None, None


linear.register_autograd(_linear_gradients, setup_context=_save_linear)


@torch.library.custom_op("autotune::interaction", mutates_args=())
def interaction(features: Tensor, diagonal: bool = False) -> Tensor:
    """Dot interaction of fp32 [N, F, E]: the first vector, then the lower triangle of dot products, with its diagonal where asked for; fp32
    [N, E + F(F-1)/2], or [N, E + F(F+1)/2]."""
    out = _interacted(features, diagonal)
    _interaction.forward(_plain(features), out, diagonal, InteractionKnobs(), torch.get_num_threads())
    return out


def _interacted(features: Tensor, diagonal: bool = False) -> Tensor:
    samples, count, dim = features.shape
    return features.new_empty(samples, dim + pairs(count, diagonal))


interaction.register_fake(_interacted)


@torch.library.custom_op("autotune::interaction_backward", mutates_args=())
def interaction_backward(gradient: Tensor, features: Tensor, diagonal: bool = False) -> Tensor:
    """Gradient of the features, fp32 [N, F, E], from that of the output."""
    d_features = torch.empty(features.shape)
    _interaction.backward(_plain(features), _plain(gradient), d_features, diagonal, InteractionKnobs(), torch.get_num_threads())
    return d_features


interaction_backward.register_fake(lambda gradient, features, diagonal=False: features.new_empty(features.shape))


def _save_interaction(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, ctx.diagonal = inputs
    ctx.save_for_backward(features)


interaction.register_autograd(
    lambda ctx, gradient: (interaction_backward(gradient, *ctx.saved_tensors, ctx.diagonal), None), setup_context=_save_interaction
)


class Linear(torch.nn.Linear):
    """A fully connected layer with its activation fused: `torch.nn.Linear` with the blocked GEMM.

    Example:
        >>> Linear(512, 64, activation="relu")(torch.zeros(8, 512)).shape
        torch.Size([8, 64])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, activation: str = "none") -> None:
        super().__init__(in_features, out_features, bias)
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = torch.ops.autotune.linear(input, self.weight, self.bias, self.activation)
        return y


class _FusedUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, module: FusedEmbeddingBags, lookups: Lookups) -> Tensor:
        ctx.module, ctx.lookups = module, lookups
        tables, threads = len(module.bags.rows), torch.get_num_threads()
        samples = (lookups.offsets.shape[0] - 1) // tables
        out = torch.empty(samples, tables, module.bags.dim)
        module.bags.forward(lookups, out, default_forward(samples, tables, module.bags.dim, threads), threads, mean=module.mean)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        module, threads = ctx.module, torch.get_num_threads()
        knobs = default_update(module.bags.dim, threads)
        module.bags.update(ctx.lookups, _plain(gradients[0]), module.learning_rate, knobs, threads, mean=module.mean)
        return None, None, None


class FusedEmbeddingBags(torch.nn.Module):
    """T tables whose update happens in the backward pass: no gradient of a table is ever written out.

    Keep the tables out of the optimizer; set `learning_rate` as the schedule says. The tables stay where they were made, on the CPU;
    `.to()` does not move them. They and what Adagrad keeps of them are buffers, so `state_dict` holds both: ``table_{t}``, or
    ``upper_{t}`` and ``lower_{t}`` where they are split, and ``state_{t}``.

    Args:
        rows: rows of each table.
        dim: E.
        learning_rate: of the fused step.
        mean: mean pooling instead of sum.
        seed: of the initial weights, uniform in +-1/sqrt(rows).
        dtype: fp32, or bf16 for weights split into halves, of which the forward pass reads the upper.
        optimizer: sgd, or adagrad for row-wise Adagrad.
        storage: of bf16, see `EmbeddingBags`; with stochastic there is no lower half, and ``steps`` numbers the updates.

    Raises:
        InputError: an unknown dtype, storage or optimizer, or stochastic storage of fp32.
    """

    def __init__(
        self,
        rows: Sequence[int],
        dim: int,
        *,
        learning_rate: float,
        mean: bool = False,
        seed: int = 0,
        dtype: Dtype = "fp32",
        optimizer: Optimizer = "sgd",
        storage: TableStorage = "split",
    ) -> None:
        super().__init__()
        self.bags = EmbeddingBags(rows, dim, threads=torch.get_num_threads(), seed=seed, dtype=dtype, storage=storage, optimizer=optimizer)
        for name, array in self.bags.arrays().items():
            self.register_buffer(name, array)
        self.learning_rate, self.mean = learning_rate, mean
        self._anchor = torch.zeros((), requires_grad=True)  # autograd calls backward only where something wants a gradient

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """indices [L], offsets [T*N + 1], as in `embedding_bag`; returns fp32 [N, T, E]."""
        out: Tensor = _FusedUpdate.apply(self._anchor, self, Lookups(indices, offsets))  # type: ignore[no-untyped-call]
        return out
