"""The kernels as torch operators with autograd, and as modules for anybody's model.

Registered under ``torch.ops.autotune``: `embedding_bag`, `linear`, `interaction` and their backwards, each with a fake implementation, so
that `torch.compile` and meta tensors see their shapes. fp32 on the CPU; threads are torch's (`torch.get_num_threads`).
Training inside this package does not go through them: it writes into buffers that stay (see `dlrm.model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from autotune.config.model import Dtype, Optimizer
from autotune.ops import interaction as _interaction
from autotune.ops.embedding_bag import default_forward, default_update
from autotune.ops.embedding_tables import EmbeddingBags, Lookups
from autotune.ops.interaction import InteractionKnobs
from autotune.ops.layer import Activation, LayerKnobs
from autotune.ops.layer_candidates import default_knobs
from autotune.ops.layer_shapes import Direction, Gemm
from autotune.ops.native import kernels

__all__ = ["FusedEmbeddingBags", "Linear", "embedding_bag", "interaction", "linear"]

Tensor = torch.Tensor


def _samples(weights: Sequence[Tensor], offsets: Tensor) -> int:
    return (offsets.shape[0] - 1) // len(weights)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous()


@torch.library.custom_op("autotune::embedding_bag", mutates_args=())
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
    samples, threads = _samples(weights, offsets), torch.get_num_threads()
    out = weights[0].new_empty(samples, len(weights), weights[0].shape[1])
    knobs = default_forward(samples, len(weights), weights[0].shape[1], threads)
    kernels.EmbeddingTables([_plain(w) for w in weights]).forward(
        _plain(indices), _plain(offsets), out, None if per_sample_weights is None else _plain(per_sample_weights), mean,
        knobs.prefetch_distance, 0, knobs.bags_per_task, knobs.streaming_stores, threads,
    )  # fmt: skip
    return out


@embedding_bag.register_fake
def _(weights: list[Tensor], indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, mean: bool) -> Tensor:
    return weights[0].new_empty(_samples(weights, offsets), len(weights), weights[0].shape[1])


@torch.library.custom_op("autotune::embedding_bag_backward", mutates_args=())
def embedding_bag_backward(
    gradient: Tensor, weights: list[Tensor], indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, mean: bool
) -> list[Tensor]:
    """Dense gradients of the tables: T tensors like `weights`; `gradient` is fp32 [N, T, E]."""
    threads = torch.get_num_threads()
    gradients = [torch.zeros(w.shape, dtype=w.dtype) for w in weights]
    knobs = default_update(weights[0].shape[1], threads)
    # An update of zeros at learning rate -1 adds up the gradient.
    kernels.EmbeddingTables(gradients).update(
        _plain(indices), _plain(offsets), _plain(gradient), -1.0, None if per_sample_weights is None else _plain(per_sample_weights), mean,
        knobs.strategy, knobs.prefetch_distance, threads,
    )  # fmt: skip
    return gradients


@embedding_bag_backward.register_fake
def _(
    gradient: Tensor, weights: list[Tensor], indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, mean: bool
) -> list[Tensor]:
    return [w.new_empty(w.shape) for w in weights]


def _save_embedding(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weights, indices, offsets, per_sample_weights, mean = inputs
    ctx.save_for_backward(indices, offsets, per_sample_weights, *weights)
    ctx.mean = mean


def _embedding_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    indices, offsets, per_sample_weights, *weights = ctx.saved_tensors
    of_weights = embedding_bag_backward(gradient, weights, indices, offsets, per_sample_weights, ctx.mean)
    of_scales = None
    if per_sample_weights is not None and ctx.needs_input_grad[3]:
        # d out / d scale of a look-up is its row: <gradient of its bag, row>.
        samples = _samples(weights, offsets)
        bags = torch.repeat_interleave(torch.arange(offsets.shape[0] - 1), offsets.diff().long())
        rows = torch.cat([w[indices[int(offsets[t * samples]) : int(offsets[(t + 1) * samples])].long()] for t, w in enumerate(weights)])
        of_scales = (gradient[bags % samples, bags // samples] * rows).sum(1)
    return of_weights, None, None, of_scales, None


embedding_bag.register_autograd(_embedding_gradients, setup_context=_save_embedding)


def _knobs(which: Direction, samples: int, weight: Tensor) -> LayerKnobs:
    outputs, inputs = weight.shape
    return default_knobs(Gemm(which, samples, inputs, outputs), torch.get_num_threads())


def _grid(knobs: LayerKnobs) -> tuple[bool, int, int]:
    return knobs.loop_order == "columns_outer", knobs.thread_columns, torch.get_num_threads()


def _packed(weight: Tensor, forward: LayerKnobs, backward: LayerKnobs) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight.shape
    for_forward = torch.empty(-(-outputs // forward.bk) * forward.bk * inputs)
    for_backward = torch.empty(-(-inputs // backward.bk) * backward.bk * outputs)
    kernels.pack_weights(_plain(weight), for_forward, forward.bk, for_backward, backward.bk, torch.get_num_threads())
    return for_forward, for_backward


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
    packed, _ = _packed(weight, knobs, knobs)
    y = x.new_empty(x.shape[0], weight.shape[0])
    kernels.linear_forward(
        _plain(x), packed, None if bias is None else _plain(bias), y, cast("Activation", activation),
        knobs.bn, knobs.bc, knobs.bk, *_grid(knobs),
    )  # fmt: skip
    return y


@linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("autotune::linear_backward", mutates_args=())
def linear_backward(d_pre: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias from that before the activation, fp32 [N, K]."""
    d_pre, x = _plain(d_pre), _plain(x)
    data, weights = _knobs("backward_data", x.shape[0], weight), _knobs("backward_weights", x.shape[0], weight)
    _, packed = _packed(weight, data, data)
    dx, d_weight, d_bias = torch.empty_like(x), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])
    kernels.linear_backward_data(d_pre, packed, None, dx, data.bn, data.bc, data.bk, *_grid(data))
    kernels.linear_backward_weights(d_pre, x, d_weight, d_bias, None, None, 0.0, weights.bn, weights.bc, weights.bk, *_grid(weights))
    return dx, d_weight, d_bias


@linear_backward.register_fake
def _(d_pre: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


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
def interaction(features: Tensor) -> Tensor:
    """Dot interaction of fp32 [N, F, E]: the first vector, then the lower triangle of dot products; fp32 [N, E + F(F-1)/2]."""
    samples, count, dim = features.shape
    out = features.new_empty(samples, dim + _interaction.pairs(count))
    _interaction.forward(_plain(features), out, InteractionKnobs(), torch.get_num_threads())
    return out


@interaction.register_fake
def _(features: Tensor) -> Tensor:
    samples, count, dim = features.shape
    return features.new_empty(samples, dim + _interaction.pairs(count))


@torch.library.custom_op("autotune::interaction_backward", mutates_args=())
def interaction_backward(gradient: Tensor, features: Tensor) -> Tensor:
    """Gradient of the features, fp32 [N, F, E], from that of the output."""
    d_features = torch.empty(features.shape)
    _interaction.backward(_plain(features), _plain(gradient), d_features, InteractionKnobs(), torch.get_num_threads())
    return d_features


@interaction_backward.register_fake
def _(gradient: Tensor, features: Tensor) -> Tensor:
    return features.new_empty(features.shape)


def _save_interaction(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _interaction_gradient(ctx: Any, gradient: Tensor) -> Tensor:
    (features,) = ctx.saved_tensors
    d_features: Tensor = interaction_backward(gradient, features)
    return d_features


interaction.register_autograd(_interaction_gradient, setup_context=_save_interaction)


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

    Raises:
        InputError: an unknown dtype or optimizer.
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
    ) -> None:
        super().__init__()
        self.bags = EmbeddingBags(rows, dim, threads=torch.get_num_threads(), seed=seed, dtype=dtype, optimizer=optimizer)
        for name, array in self.bags.arrays().items():
            self.register_buffer(name, array)
        self.learning_rate, self.mean = learning_rate, mean
        self._anchor = torch.zeros((), requires_grad=True)  # autograd calls backward only where something wants a gradient

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """indices [L], offsets [T*N + 1], as in `embedding_bag`; returns fp32 [N, T, E]."""
        out: Tensor = _FusedUpdate.apply(self._anchor, self, Lookups(indices, offsets))  # type: ignore[no-untyped-call]
        return out
