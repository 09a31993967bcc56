"""The public DLRM's modules and states, small."""

from __future__ import annotations

import torch

from autotune.config.model import Model, Table
from autotune.dlrm.checkpoint import state_shapes

MODEL = Model(
    name="tiny",
    source="test",
    description="test",
    minibatch=2,
    bottom_mlp=(13, 8, 4),
    top_mlp=(6, 5, 1),
    tables=(Table(rows=10, dim=4), Table(rows=3, dim=4)),
)


class PlainDLRM(torch.nn.Module):
    """Modules named and nested as in the public DLRM."""

    def __init__(self) -> None:
        super().__init__()
        self.emb_l = torch.nn.ModuleList(torch.nn.EmbeddingBag(rows, 4, mode="sum") for rows in (10, 3))
        # Three vectors interact: 4 + 3 inputs at the top.
        self.bot_l = torch.nn.Sequential(torch.nn.Linear(13, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4), torch.nn.ReLU())
        self.top_l = torch.nn.Sequential(
            torch.nn.Linear(7, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1), torch.nn.Sigmoid()
        )


def random_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in state_shapes(MODEL).items()}
