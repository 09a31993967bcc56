"""The registered operators: values, gradients and fake implementations, against torch's own."""

import pytest
import torch
from combined import combined
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.ops.functional import FusedEmbeddingBags, Linear, embedding_bag, interaction, linear


def bags_for(rows: tuple[int, ...], samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (len(rows) * samples,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    counts = lengths.view(len(rows), samples).sum(1)
    return torch.cat([torch.randint(0, r, (int(c),), generator=generator) for r, c in zip(rows, counts, strict=True)]), offsets


def plain_bags(weights, indices, offsets, mode, scales=None):
    samples, outs = (len(offsets) - 1) // len(weights), []
    for t, weight in enumerate(weights):
        own = offsets[t * samples : (t + 1) * samples + 1]
        part = slice(int(own[0]), int(own[-1]))
        own_scales = None if scales is None else scales[part]
        outs.append(torch.nn.functional.embedding_bag(indices[part], weight, own[:-1] - own[0], mode=mode, per_sample_weights=own_scales))
    return torch.stack(outs, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.sampled_from([1, 8, 20, 64]), st.sampled_from(["sum", "mean", "weighted"]), st.integers(0, 1000))
def test_embedding_bag_and_its_gradients_are_those_of_torch(samples: int, dim: int, mode: str, seed: int) -> None:
    rows = (5, 1, 40)
    indices, offsets = bags_for(rows, samples, seed)
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(r, dim, generator=generator) for r in rows]
    scales = torch.rand(len(indices), generator=generator) if mode == "weighted" else None
    gradient = torch.randn(samples, len(rows), dim, generator=generator)
    results = []
    for ours in (True, False):
        weights = [t.clone().requires_grad_() for t in tables]
        own = None if scales is None else scales.clone().requires_grad_()
        if ours:
            out = embedding_bag(weights, indices, offsets, own, mode == "mean")
        else:
            out = plain_bags(weights, indices, offsets, "mean" if mode == "mean" else "sum", own)
        out.backward(gradient)
        results.append([out.detach(), *(w.grad for w in weights), *([] if own is None else [own.grad])])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70), st.sampled_from(["none", "relu", "sigmoid"]), st.booleans())
def test_linear_and_its_gradients_are_those_of_torch(n: int, c: int, k: int, activation: str, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(n * 71 + c)
    x, weight, bias = torch.randn(n, c, generator=generator), torch.randn(k, c, generator=generator), torch.randn(k, generator=generator)
    act = {"none": lambda v: v, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation]
    results = []
    for ours in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        b = leaves[2] if with_bias else None
        y = linear(leaves[0], leaves[1], b, activation) if ours else act(torch.nn.functional.linear(leaves[0], leaves[1], b))
        (y * y).sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.sampled_from([1, 7, 16, 64, 100]), st.booleans())
def test_interaction_and_its_gradient_are_those_of_torch(n: int, f: int, e: int, diagonal: bool) -> None:
    features = torch.randn(n, f, e, generator=torch.Generator().manual_seed(n + f + e))
    results = []
    for ours in (True, False):
        leaf = features.clone().requires_grad_()
        name = "dot_with_diagonal" if diagonal else "dot"
        out = interaction(leaf, diagonal) if ours else combined(name, leaf.unbind(1))
        (out * out).sum().backward()
        results.append((out.detach(), leaf.grad))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-2)


def test_opcheck_accepts_every_operator() -> None:
    indices, offsets = bags_for((5, 7), 3, 0)
    weights = [torch.randn(5, 8, requires_grad=True), torch.randn(7, 8, requires_grad=True)]
    torch.library.opcheck(embedding_bag, (weights, indices, offsets, None, False))
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((4, 5), (6, 5), (6,)))
    torch.library.opcheck(linear, (x, weight, bias, "relu"))
    torch.library.opcheck(interaction, (torch.randn(3, 4, 8, requires_grad=True),))
    torch.library.opcheck(interaction, (torch.randn(3, 4, 8, requires_grad=True), True))


def test_the_modules_train_like_torch_modules() -> None:
    rows = (50, 9)
    indices, offsets = bags_for(rows, 6, 3)
    fused = FusedEmbeddingBags(rows, 16, learning_rate=0.5)
    plain = [table.clone().requires_grad_() for table in fused.bags.weights]
    layer = Linear(32, 1, activation="sigmoid")
    for _ in range(3):
        layer(fused(indices, offsets).flatten(1)).sum().backward()
        layer(plain_bags(plain, indices, offsets, "sum").flatten(1)).sum().backward()
        with torch.no_grad():
            for table in plain:
                table -= 0.5 * table.grad
                table.grad = None
    for got, wanted in zip(fused.bags.weights, plain, strict=True):
        torch.testing.assert_close(got, wanted.detach())


def test_a_bad_index_reaches_the_caller_as_index_error() -> None:
    with pytest.raises(IndexError, match=r"got 5 \(table 1"):
        embedding_bag([torch.zeros(9, 4), torch.zeros(5, 4)], torch.tensor([8, 5]), torch.tensor([0, 1, 2]), None, False)
