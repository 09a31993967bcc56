"""The peers' models: built from the weights of ours, trained by their own means, with the semantics of `dlrm.model`.

In bf16 the tables themselves are bf16, with gradients to match, and the dense part runs under autocast: its weights stay fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Protocol

import torch

from autotune.config.interactions import CONCATENATION, DOT_WITH_DIAGONAL
from autotune.config.model import Model
from autotune.data.batches import Batch

State = dict[str, torch.Tensor]


class _Bags(Protocol):
    def prepare(self, batch: Batch) -> Any: ...

    def pooled(self, prepared: Any) -> list[torch.Tensor]: ...

    parameters: list[torch.Tensor]
    """What the optimizer beside the bags must update; none where they update themselves."""


class _StockBags:
    """One `EmbeddingBag` a table, with sparse gradients."""

    def __init__(self, model: Model, state: State) -> None:
        self._model = model
        self._bags = []
        for t in range(model.num_tables):
            # Fresh memory of this process's own allocator, so that the environment under test serves the tables too.
            weight = state.pop(f"emb_l.{t}.weight").to(torch.bfloat16 if model.dtype == "bf16" else torch.float32, copy=True)
            self._bags.append(torch.nn.EmbeddingBag.from_pretrained(weight, freeze=False, mode="sum", sparse=True))
        self.parameters: list[torch.Tensor] = [bag.weight for bag in self._bags]

    def prepare(self, batch: Batch) -> Any:
        parts = []
        for t in range(self._model.num_tables):
            offsets = batch.offsets[t * self._model.minibatch : (t + 1) * self._model.minibatch + 1]
            begin, end = int(offsets[0]), int(offsets[-1])
            parts.append((batch.indices[begin:end].contiguous(), (offsets[:-1] - begin).contiguous()))
        return parts

    def pooled(self, prepared: Any) -> list[torch.Tensor]:
        return [bag(*part) for bag, part in zip(self._bags, prepared, strict=True)]


class _FbgemmBags:
    """fbgemm's table-batched embeddings with SGD fused into their backward."""

    def __init__(self, model: Model, state: State) -> None:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen

        specs = [(table.rows, table.dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for table in model.tables]
        self._bags = SplitTableBatchedEmbeddingBagsCodegen(
            specs, optimizer=EmbOptimType.EXACT_SGD, learning_rate=model.learning_rate, pooling_mode=PoolingMode.SUM
        )
        for t, weight in enumerate(self._bags.split_embedding_weights()):
            weight.copy_(state.pop(f"emb_l.{t}.weight"))
        self._tables, self._dim = model.num_tables, model.embedding_dim
        self.parameters: list[torch.Tensor] = []

    def prepare(self, batch: Batch) -> Any:
        return batch.indices.long(), batch.offsets.long()

    def pooled(self, prepared: Any) -> list[torch.Tensor]:
        joined: torch.Tensor = self._bags(*prepared)
        return list(joined.view(-1, self._tables, self._dim).unbind(1))


class _TorchrecBags:
    """torchrec's fused collection of bags."""

    def __init__(self, model: Model, state: State) -> None:
        from torchrec.modules.embedding_configs import EmbeddingBagConfig
        from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

        self._keys = [f"f{t}" for t in range(model.num_tables)]
        configs = [
            EmbeddingBagConfig(name=f"t{t}", num_embeddings=table.rows, embedding_dim=table.dim, feature_names=[key])
            for t, (table, key) in enumerate(zip(model.tables, self._keys, strict=True))
        ]
        options = {"lr": model.learning_rate}
        self._bags = FusedEmbeddingBagCollection(configs, torch.optim.SGD, options, device=torch.device("cpu"))
        for name, weight in self._bags.state_dict().items():
            t = int(name.split("embedding_bags.t")[1].split(".")[0])
            weight.copy_(state.pop(f"emb_l.{t}.weight"))
        self.parameters: list[torch.Tensor] = []

    def prepare(self, batch: Batch) -> Any:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        lengths = (batch.offsets[1:] - batch.offsets[:-1]).int()
        return KeyedJaggedTensor(keys=self._keys, values=batch.indices.long(), lengths=lengths)

    def pooled(self, prepared: Any) -> list[torch.Tensor]:
        joined = self._bags(prepared).to_dict()
        return [joined[key] for key in self._keys]


class _Dense(torch.nn.Module):
    """Bottom MLP, interaction, top MLP, and the loss."""

    def __init__(self, model: Model, state: State) -> None:
        super().__init__()
        self.bottom = _mlp(model.bottom_mlp, "bot_l", state)
        self.top = _mlp(model.top_sizes, "top_l", state)
        self._narrow = model.dtype == "bf16"
        self._concatenated = model.interaction == CONCATENATION
        count, highest = model.num_features, 0 if model.interaction == DOT_WITH_DIAGONAL else -1
        self._lower = tuple(torch.tril_indices(count, count, highest))

    def forward(self, dense: torch.Tensor, pooled: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._narrow):
            low = torch.relu(self.bottom(dense))
            logits = self.top(torch.cat([low, *(pooled if self._concatenated else [self._dots([low, *pooled])])], 1))
        # In fp32: bf16 has no probability between 0.996 and 1, and torch refuses binary cross entropy in it.
        return torch.nn.functional.binary_cross_entropy(torch.sigmoid(logits.float()).squeeze(1), labels)

    def _dots(self, vectors: list[torch.Tensor]) -> torch.Tensor:
        stacked = torch.stack(vectors, 1)
        rows, columns = self._lower
        return torch.bmm(stacked, stacked.transpose(1, 2))[:, rows, columns]


def _mlp(sizes: tuple[int, ...], name: str, state: State) -> torch.nn.Sequential:
    """Linear layers with ReLU between them, none at the end."""
    layers: list[torch.nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        linear = torch.nn.Linear(inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(state[f"{name}.{2 * i}.weight"])
            linear.bias.copy_(state[f"{name}.{2 * i}.bias"])
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


class TorchModel:
    """Dense part and optimizer of stock PyTorch around some bags.

    Args:
        model: what is trained.
        state: initial weights under the public DLRM's names; the tables are taken out of it, so that few are in memory twice.
        bags: builds them.
        compiled: the dense part by torch.compile.
    """

    def __init__(self, model: Model, state: State, bags: Callable[[Model, State], _Bags], *, compiled: bool = False) -> None:
        self._bags = bags(model, state)
        dense = _Dense(model, state)
        self._optimizer = torch.optim.SGD([*dense.parameters(), *self._bags.parameters], lr=model.learning_rate)
        self._dense: Callable[..., torch.Tensor] = torch.compile(dense) if compiled else dense

    def prepare(self, batch: Batch) -> Any:
        """The batch in the peer's own form; outside the clock."""
        return batch, self._bags.prepare(batch)

    def step(self, prepared: Any) -> float:
        """One training iteration; its mean loss."""
        batch, parts = prepared
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._dense(batch.dense, self._bags.pooled(parts), batch.labels)
        torch.autograd.backward(loss)
        self._optimizer.step()
        return float(loss.detach())


BUILDERS: Mapping[str, Callable[[Model, State], TorchModel]] = {
    "stock": lambda model, state: TorchModel(model, state, _StockBags),
    "compiled": lambda model, state: TorchModel(model, state, _StockBags, compiled=True),
    "fbgemm": lambda model, state: TorchModel(model, state, _FbgemmBags),
    "torchrec": lambda model, state: TorchModel(model, state, _TorchrecBags),
}
