#!/usr/bin/env bash
# The gradient of a bf16 embedding loses what meets in a row beyond 256 look-ups of a batch, without an error.
#
# torch 2.13.0 (CPU; the same with 2.14.1). The forward pass of EmbeddingBag sums a bag in fp32 and rounds once. The backward pass, of
# Embedding too, adds up the gradients of one row in bf16, one after another: once the sum is 256 times the next gradient, that is half of
# the sum's last bit, and adding it changes nothing. `coalesce()`, `to_dense()` and SGD on the sparse gradient do the same. torch.sum and
# `index_add_` on the same values are right, and so is the gradient of an fp32 table. A table of few rows, or a popular row of a large
# one, is met that often in every batch.
#
# Seen, where each of 2000 look-ups of one row has a gradient of 1 (expected: 2000 everywhere, which bf16 holds exactly):
#   EmbeddingBag, forward of one bag            2000
#   torch.sum; index_add_                       2000
#   EmbeddingBag, dense gradient                256
#   EmbeddingBag, sparse gradient, coalesced    256
#   EmbeddingBag, sparse gradient, to_dense     256
#   EmbeddingBag, sparse gradient, SGD step     256
#   EmbeddingBag in fp32, sparse gradient       2000
#   Embedding, dense gradient                   256
#   Embedding, sparse gradient, coalesced       256
#
# Exits with 1 where any of these changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy

cat >"$work/rows.py" <<'PY'
import sys

import torch
from torch.nn.functional import embedding, embedding_bag

LOOKUPS = 2000
row, offsets = torch.zeros(LOOKUPS, dtype=torch.long), torch.arange(LOOKUPS)
ones = torch.ones(LOOKUPS, 16, dtype=torch.bfloat16)


def gradient(dtype, sparse, lookup):
    weight = torch.zeros(4, 16, dtype=dtype, requires_grad=True)
    lookup(weight, sparse).backward(ones.to(dtype))
    return weight.grad


def bag(weight, sparse):
    return embedding_bag(row, weight, offsets, mode="sum", sparse=sparse)


def alone(weight, sparse):
    return embedding(row, weight, sparse=sparse)


def updated(grad):
    weight = torch.nn.Parameter(torch.zeros(4, 16, dtype=grad.dtype))
    weight.grad = grad
    torch.optim.SGD([weight], lr=1.0).step()
    return -weight.detach()


narrow = torch.bfloat16
held = {
    "EmbeddingBag, forward of one bag": (2000, embedding_bag(row, torch.ones(4, 16, dtype=narrow), torch.tensor([0]), mode="sum")),
    "torch.sum": (2000, ones.sum(0, keepdim=True)),
    "index_add_": (2000, torch.zeros(4, 16, dtype=narrow).index_add_(0, row, ones)),
    "EmbeddingBag, dense gradient": (256, gradient(narrow, False, bag)),
    "EmbeddingBag, sparse gradient, coalesced": (256, gradient(narrow, True, bag).coalesce().to_dense()),
    "EmbeddingBag, sparse gradient, to_dense": (256, gradient(narrow, True, bag).to_dense()),
    "EmbeddingBag, sparse gradient, SGD step": (256, updated(gradient(narrow, True, bag))),
    "EmbeddingBag in fp32, sparse gradient": (2000, gradient(torch.float32, True, bag).to_dense()),
    "Embedding, dense gradient": (256, gradient(narrow, False, alone)),
    "Embedding, sparse gradient, coalesced": (256, gradient(narrow, True, alone).coalesce().to_dense()),
}
for name, (seen, tensor) in held.items():
    print(f"{name:<43} {tensor[0, 0].item():g}{'' if tensor[0, 0] == seen else '   changed'}", flush=True)
sys.exit(any(bool(tensor[0, 0] != seen) for seen, tensor in held.values()))
PY
"$work/venv/bin/python" -W ignore "$work/rows.py"
