"""Embedding passes timed alone, on a model's own tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from autotune.ops.base import Case, Check
from autotune.ops.embedding_tables import EmbeddingBags, EmbeddingForwardKnobs, EmbeddingUpdateKnobs, Lookups
from autotune.ops.native import kernels, target, torch, zeros

_EPSILON = 2.0**-23


class EmbeddingCase(Case):
    """Both passes on the live tables. The update runs with nothing to add, the same traffic: at learning rate 0, and from a gradient of
    zeros where Adagrad would sum up its squares. Not a bit of a table or its state changes."""

    def __init__(self, bags: EmbeddingBags, batches: Sequence[Lookups], samples: int, seed: int, warm: bool, *, update: bool) -> None:
        self._bags, self._update = bags, update
        self._lookups, self._index_dtype = itertools.cycle(batches[:1] if warm else batches), batches[0].indices.dtype
        self._pooled = zeros(samples, len(bags.rows), bags.dim)
        self._seed = seed
        if update and bags.optimizer == "sgd":
            kernels.fill_uniform(self._pooled.view(-1), -1.0, 1.0, seed, 1)

    def __del__(self) -> None:
        # Not when knobs change: a step that is timed would have to touch the memory anew.
        if self._update:
            self._bags.release_workspace()

    def run(self, knobs: EmbeddingForwardKnobs | EmbeddingUpdateKnobs, threads: int) -> None:
        lookups = next(self._lookups)
        if isinstance(knobs, EmbeddingUpdateKnobs):
            self._bags.update(lookups, self._pooled, 0.0, knobs, threads)
        else:
            self._bags.forward(lookups, self._pooled, knobs, threads)

    def check(self, knobs: EmbeddingForwardKnobs | EmbeddingUpdateKnobs, threads: int) -> Check:
        """On small tables of the same dim, with collisions and empty bags: the reference walks every row."""
        generator = torch.Generator().manual_seed(self._seed)
        rows, samples = (97, 3, 1000), 37
        lengths = torch.randint(0, 20, (len(rows) * samples,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        counts = lengths.view(len(rows), samples).sum(1).tolist()
        drawn = [torch.randint(0, limit, (count,), generator=generator) for limit, count in zip(rows, counts, strict=True)]
        indices = torch.cat(drawn)
        gradient = torch.rand(samples, len(rows), self._bags.dim, generator=generator) - 0.5
        lookups = Lookups(indices.to(self._index_dtype), offsets.to(self._index_dtype))

        stochastic = self._bags.storage == "stochastic"
        if stochastic:  # multiples of 2^-16 throughout, so that no order of additions decides which way a step is rounded
            gradient = (gradient * 256).round() / 256

        def outcome() -> torch.Tensor:
            bags = EmbeddingBags(
                rows, self._bags.dim, huge_pages=False, seed=self._seed,
                dtype=self._bags.dtype, storage=self._bags.storage, optimizer=self._bags.optimizer,
            )  # fmt: skip
            for t in range(len(rows) if stochastic else 0):
                bags.load(t, (bags.table(t) * 2048).round() / 2048)
            if isinstance(knobs, EmbeddingUpdateKnobs):
                bags.update(lookups, gradient, 0.125, knobs, threads)
                states = [state for t in range(len(rows)) if (state := bags.state(t)) is not None]
                return torch.cat([part.reshape(-1) for part in (*map(bags.table, range(len(rows))), *states)])
            out = torch.empty(samples, len(rows), self._bags.dim)
            bags.forward(lookups, out, knobs, threads)
            return out.reshape(-1)

        got = outcome()
        with target("reference"):
            wanted = outcome()
        # Every element is a sum of at most `longest` terms below 1: each addition rounds by half an epsilon of the sum so far.
        longest = int(indices.bincount().max()) if self._update else 20
        epsilon = longest * _EPSILON
        if stochastic and self._update and self._bags.optimizer == "adagrad":
            epsilon += 2.0**-7  # the last bit of a quotient may decide which way a weight is rounded
        worst = (got - wanted).abs()
        return Check(float(worst.max()), epsilon * max(1.0, float(wanted.abs().max())), f"element {int(worst.argmax())}")
