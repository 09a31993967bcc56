"""Interactions as plain torch writes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def combined(interaction: str, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The top MLP's input of vectors [N, E], the bottom MLP's output first."""
    if interaction == "concatenation":
        return torch.cat(list(vectors), 1)
    stacked = torch.stack(list(vectors), 1)
    rows, columns = torch.tril_indices(len(vectors), len(vectors), {"dot": -1, "dot_with_diagonal": 0}[interaction])
    return torch.cat([vectors[0], torch.bmm(stacked, stacked.transpose(1, 2))[:, rows, columns]], 1)
