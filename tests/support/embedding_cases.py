"""Batches of look-ups with their tables and gradients, and what the kernels must make of them, in double."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

DIMS = (1, 2, 13, 16, 20, 64, 100, 128, 256)


@dataclass
class Case:
    tables: list[Tensor]
    indices: Tensor
    offsets: Tensor
    num_bags: int
    scales: Tensor | None
    mean: bool
    gradient: Tensor

    def pooled_of(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows looked up in table t, the bag of each, and its weight in double."""
        starts = self.offsets[t * self.num_bags : (t + 1) * self.num_bags + 1].long()
        begin, end = int(starts[0]), int(starts[-1])
        lengths = starts.diff()
        bags = torch.repeat_interleave(torch.arange(self.num_bags), lengths)
        weights = torch.ones(end - begin, dtype=torch.float64)
        if self.scales is not None:
            weights = self.scales[begin:end].double()
        elif self.mean:
            weights = 1.0 / lengths[bags].double()
        return self.indices[begin:end].long(), bags, weights

    def forward(self, magnitude: bool = False) -> Tensor:
        """[N, T, E] in double; with `magnitude`, of the absolute values."""
        out = torch.zeros(self.num_bags, len(self.tables), self.tables[0].shape[1], dtype=torch.float64)
        for t, table in enumerate(self.tables):
            rows, bags, weights = self.pooled_of(t)
            terms = weights[:, None] * table.double()[rows]
            out[:, t].index_add_(0, bags, terms.abs() if magnitude else terms)
        return out

    def updated(self, t: int, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Table t after the step, and the magnitudes that went into it, in double."""
        rows, bags, weights = self.pooled_of(t)
        steps = learning_rate * weights[:, None] * self.gradient[:, t].double()[bags]
        table = self.tables[t].double()
        return table.index_add(0, rows, -steps), table.abs().index_add(0, rows, steps.abs())

    def longest(self) -> int:
        return int(self.offsets.long().diff().max()) if len(self.offsets) > 1 else 0


def make_case(dim: int, rows: list[int], lengths: Tensor, mode: str, wide: bool, hot: float, seed: int, whole: bool = False) -> Case:
    """lengths [T, N]: look-ups of each bag. hot: the share of look-ups that go to one row. whole: small integers, which add up exactly."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.int64 if wide else torch.int32
    picks = []
    for table_rows, count in zip(rows, lengths.sum(1).tolist(), strict=True):
        drawn = torch.randint(table_rows, (count,), generator=generator)
        drawn[torch.rand(count, generator=generator) < hot] = seed % table_rows
        picks.append(drawn)
    indices = torch.cat(picks).to(dtype)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)]).to(dtype)

    def values(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape, generator=generator).float() if whole else torch.randn(shape, generator=generator)

    return Case(
        tables=[values(table_rows, dim) for table_rows in rows],
        indices=indices,
        offsets=offsets,
        num_bags=lengths.shape[1],
        scales=values(len(indices)) if mode == "weighted" else None,
        mean=mode == "mean",
        gradient=values(lengths.shape[1], len(rows), dim),
    )


@st.composite
def cases(draw: st.DrawFn, whole: bool = False) -> Case:
    rows = draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    num_bags = draw(st.integers(0, 7))
    lengths = draw(st.lists(st.integers(0, 9), min_size=len(rows) * num_bags, max_size=len(rows) * num_bags))
    return make_case(
        dim=draw(st.sampled_from(DIMS)),
        rows=rows,
        lengths=torch.tensor(lengths, dtype=torch.int64).view(len(rows), num_bags),
        mode=draw(st.sampled_from(("sum", "weighted") if whole else ("sum", "mean", "weighted"))),
        wide=draw(st.booleans()),
        hot=draw(st.sampled_from((0.0, 0.9))),
        seed=draw(st.integers(0, 2**31)),
        whole=whole,
    )
