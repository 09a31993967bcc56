"""Where every embedding table lies when a model runs on several ranks, and how the ranks talk.

One rank is one socket. The dense layers are data-parallel on all of them; a table is placed as `Placement` says.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from autotune.config.base import Frozen, rule_error
from autotune.config.words import ALL_TO_ALL_FORMS as ALL_TO_ALL_FORMS
from autotune.config.words import KINDS as KINDS
from autotune.config.words import MAX_RANKS as MAX_RANKS
from autotune.config.words import AllToAllForm as AllToAllForm
from autotune.config.words import Kind as Kind


class Placement(Frozen):
    """One table on its ranks."""

    kind: Kind
    ranks: tuple[int, ...] = ()
    """Owners: one where table-wise, the holder of each part in order where row- or column-wise, empty where replicated (all of them)."""
    bounds: tuple[int, ...] = ()
    """Row-wise and column-wise: part i holds rows, or columns, ``bounds[i]`` up to ``bounds[i + 1]``; begins with 0. Otherwise empty."""

    @model_validator(mode="after")
    def _consistent(self) -> Placement:
        wanted = {"table_wise": 1, "replicated": 0}.get(self.kind)
        if wanted is not None and len(self.ranks) != wanted:
            raise rule_error(("ranks",), f"a {self.kind} table must name {wanted} ranks", list(self.ranks), "plan anew")
        if wanted is not None and self.bounds:
            raise rule_error(("bounds",), f"a {self.kind} table has no bounds", list(self.bounds), "drop them")
        if wanted is None:
            if len(self.bounds) != len(self.ranks) + 1 or not self.ranks:
                rule = "a split table needs a rank for every part and one bound more than parts"
                raise rule_error(("bounds",), rule, f"{len(self.ranks)} ranks and {len(self.bounds)} bounds", "plan anew")
            if self.bounds[0] != 0 or any(low >= high for low, high in pairwise(self.bounds)):
                raise rule_error(("bounds",), "bounds must rise from 0", list(self.bounds), "plan anew")
        if len(set(self.ranks)) != len(self.ranks):
            raise rule_error(("ranks",), "a rank holds at most one part of a table", list(self.ranks), "name each rank once")
        return self


class Partition(Frozen):
    """A placement for every table of a model."""

    ranks: int = Field(ge=1, le=MAX_RANKS)
    tables: tuple[Placement, ...]
    """In the order of the model's tables."""

    @property
    def summary(self) -> str:
        """``20 table-wise, 6 replicated``."""
        kinds = [placement.kind for placement in self.tables]
        return ", ".join(f"{kinds.count(kind)} {kind.replace('_', '-')}" for kind in dict.fromkeys(kinds))

    @model_validator(mode="after")
    def _inside(self) -> Partition:
        for t, table in enumerate(self.tables):
            outside = [rank for rank in table.ranks if not 0 <= rank < self.ranks]
            if outside:
                raise rule_error(("tables", t, "ranks"), f"ranks must be 0 to {self.ranks - 1}", outside, "plan for this number of sockets")
        return self


class CommunicationKnobs(Frozen):
    """How ranks exchange pooled rows and reduce dense gradients."""

    backend: str = "gloo"
    """Backend of torch.distributed."""
    all_to_all: AllToAllForm = "native"
    """A scatter for every table, one fused scatter for every rank, or one native all-to-all."""
    overlap: bool = True
    """Whether exchanges run beside the MLPs; False waits for each at once."""
    wire_dtype: Literal["fp32", "bf16"] = "fp32"
    """Element type of pooled rows and their gradients on the network."""
    bucket_bytes: int = Field(8 << 20, ge=1 << 10, le=1 << 34)
    """Dense gradients are reduced in buckets of at least this size, as soon as they are complete."""
    communication_cores: int = Field(0, ge=0, le=4096)
    """Cores of a socket left to the network's threads."""
