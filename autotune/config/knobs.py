"""Knobs of every operator pass, and the run configuration that holds one choice of all of them.

A run configuration is keyed by operator pass: ``embedding_bag.forward``, ``embedding_bag.update``, ``bottom_mlp.<i>.forward``,
``bottom_mlp.<i>.backward_data``, ``bottom_mlp.<i>.backward_weights`` (likewise ``top_mlp``), ``interaction.forward``,
``interaction.backward``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from autotune.config.base import Frozen
from autotune.config.partition import CommunicationKnobs, Partition

MAX_SIZE = 2**30
"""Far above any useful block or task, and within what the kernels count in."""
MAX_THREADS = 4096
"""What the kernels take."""


class EmbeddingForwardKnobs(Frozen):
    """How pooled look-ups are gathered."""

    kind: Literal["embedding_forward"] = "embedding_forward"
    prefetch_distance: int = Field(8, ge=0, le=128)
    """Rows ahead of the one being summed; 0 leaves it to the hardware."""
    prefetch_hint: Literal["t0", "t1"] = "t0"
    """Cache level the row is brought to: t0 is L1, t1 is L2."""
    bags_per_task: int = Field(256, ge=1, le=MAX_SIZE)
    """Bags of one table that one task pools."""
    streaming_stores: bool = False
    """Write pooled rows past the caches."""


class EmbeddingUpdateKnobs(Frozen):
    """How gradients reach the tables."""

    kind: Literal["embedding_update"] = "embedding_update"
    strategy: Literal["race_free_range", "race_free_modulo", "bucketed", "atomic", "unfused"] = "bucketed"
    """Who writes a row: its owner by range, by modulo, by bucket; anybody, atomically; or a second pass over written-out gradients."""
    prefetch_distance: int = Field(8, ge=0, le=128)
    """Rows ahead of the one being updated."""


class LayerKnobs(Frozen):
    """How one pass of one fully connected layer is computed (N samples, C inputs, K outputs)."""

    kind: Literal["layer"] = "layer"
    implementation: Literal["blocked", "torch", "libxsmm"] = "blocked"
    """The blocked batch-reduce GEMM of this package; torch's own (oneDNN or MKL); or our loops around libxsmm's kernels."""
    bn: int = Field(64, ge=1, le=65536)
    """Rows of the output computed by one task."""
    bc: int = Field(512, ge=1, le=MAX_SIZE)
    """Length of the reduction held in cache at a time."""
    bk: Literal[16, 32, 48, 64] = 64
    """Columns of the output in one packed panel."""
    loop_order: Literal["rows_outer", "columns_outer"] = "rows_outer"
    """Which output dimension a thread walks last."""
    thread_columns: int = Field(1, ge=1, le=MAX_THREADS)
    """Columns of the rows x columns thread grid; it divides the thread count."""


class InteractionKnobs(Frozen):
    """How the pairwise dot products are computed."""

    kind: Literal["interaction"] = "interaction"
    implementation: Literal["fused", "bmm"] = "fused"
    samples_per_task: int = Field(32, ge=1, le=MAX_SIZE)


class FixedKnobs(Frozen):
    """A pass with nothing to choose."""

    kind: Literal["fixed"] = "fixed"


Knobs = Annotated[
    EmbeddingForwardKnobs | EmbeddingUpdateKnobs | LayerKnobs | InteractionKnobs | FixedKnobs, Field(discriminator="kind")
]


class RunConfig(Frozen):
    """One choice for everything that can be chosen about a training step."""

    threads: int = Field(ge=1, le=MAX_THREADS)
    """Threads of the one OpenMP team that runs every operator."""
    huge_pages: bool = True
    """Ask the kernel for 2 MiB pages under the embedding tables."""
    operators: dict[str, Knobs] = Field(default_factory=dict)
    """Knobs by operator pass; a pass that is not named takes its default."""
    partition: Partition | None = None
    """Where the tables lie, a rank a socket; None on one socket."""
    communication: CommunicationKnobs | None = None
    """How the ranks talk; None on one socket."""
