"""Kernels of the optimized DLRM. Import torch first, so that both share one OpenMP library.

Arrays are taken in place, never converted or copied: fp32 on the CPU (halves of weights: int16), rows contiguous, outputs overlapping
nothing else. What does not fit raises TypeError (dtype, number of dimensions, read-only output) or ValueError (sizes, strides, overlaps,
options) before anything is written. `threads` is the size of the OpenMP team.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy
import numpy.typing
import torch

_Array: TypeAlias = torch.Tensor | numpy.ndarray[Any, Any]
_Activation: TypeAlias = Literal["none", "relu", "sigmoid"]
_Strategy: TypeAlias = Literal["race_free_range", "race_free_modulo", "bucketed", "atomic", "unfused"]
_Stream: TypeAlias = Literal["read", "copy", "triad", "copy_nt", "update"]

def targets() -> list[str]:
    """Kernel targets that this CPU runs, in rising order of preference; `reference` first."""

def target() -> str:
    """The target in use. Raises ValueError when AUTOTUNE_TARGET names none that runs here."""

def set_target(name: str) -> None:
    """Use one target from now on. Raises ValueError when it does not run here."""

def lanes() -> int:
    """Floats per vector of the target in use."""

def allocate(count: int, huge_pages: bool) -> numpy.typing.NDArray[numpy.float32]:
    """Zero floats [count] on pages of their own, aligned to 2 MiB. Raises MemoryError."""

def fill_uniform(data: _Array, low: float, high: float, seed: int, threads: int, first: int = 0) -> None:
    """data [n]: uniform in low..high from (seed, first + position) alone, the same at any team size."""

def fill_zero(data: _Array, threads: int) -> None:
    """data [n] = 0, each page touched by the thread that owns its slice."""

def ceiling_fma(iterations: int, threads: int) -> float:
    """Runs independent chains of vector FMAs; returns the flops done by the whole team."""

def ceiling_stream(kind: _Stream, a: _Array, b: _Array, c: _Array, threads: int) -> None:
    """One pass over arrays [n], n a multiple of 16: sum b | a = b | a = b + c/2 | a = b past the caches | a = a/2."""

def watch_teams(watched: bool) -> None:
    """Whether teams are timed from now on."""

def take_team_times() -> tuple[int, float, float, float]:
    """Of the parallel regions that this thread forked since it last asked: how many, and seconds of each region's busiest thread at
    work, of that thread on a core meanwhile, and of the mean thread on a core while at work."""

def fork_join(repeats: int, threads: int) -> None:
    """Runs empty parallel regions."""

class RowWalk:
    """Rows of table [R, E], listed by rows [n] (int64), to be gathered or updated in that order; the list must not change afterwards."""

    def __init__(self, table: _Array, rows: _Array) -> None:
        """Raises IndexError when a row is outside the table."""

    def gather(self, prefetch_distance: int, threads: int) -> None:
        """Sums the rows into registers."""

    def scatter(self, prefetch_distance: int, threads: int) -> None:
        """Scales each listed row in place; the threads' slices of the list must name disjoint rows."""

class EmbeddingTables:
    """T contiguous tables [rows_t, E] as one native handle; keeps their memory alive.

    Look-ups are table-major: bag b = t*N + n pools indices[offsets[b] : offsets[b + 1]]; indices [L] and offsets [T*N + 1] are both int32
    or both int64. Raises IndexError for an index outside its table and ValueError for offsets that decrease or leave 0..L, before
    anything is written.
    """

    def __init__(self, weights: Sequence[_Array], state: Sequence[_Array] | None = None, epsilon: float = 1e-10) -> None:
        """fp32 tables. With `state`, fp32 [rows_t] each, updates are row-wise Adagrad: with G the sum of a row's gradients,
        state += mean(G^2), row -= learning_rate * G / (sqrt(state) + epsilon); else SGD."""

    @staticmethod
    def split(
        upper: Sequence[_Array], lower: Sequence[_Array], state: Sequence[_Array] | None = None, epsilon: float = 1e-10
    ) -> EmbeddingTables:
        """Tables of fp32 weights kept as int16 bit patterns: upper[t] the upper 16 bits, a bf16 number that the forward pass reads;
        lower[t] the rest, which an update joins to it."""

    @property
    def num_tables(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def rows(self) -> list[int]: ...
    def forward(
        self,
        indices: _Array,
        offsets: _Array,
        out: _Array,
        per_sample_weights: _Array | None,
        mean: bool,
        prefetch_distance: int,
        prefetch_hint: int,
        bags_per_task: int,
        streaming_stores: bool,
        threads: int,
    ) -> None:
        """out [N, T, E] = pooled rows; an empty bag gives zeros. prefetch_distance in look-ups, prefetch_hint 0 (L1) or 1 (L2)."""

    def update(
        self,
        indices: _Array,
        offsets: _Array,
        gradient: _Array,
        learning_rate: float,
        per_sample_weights: _Array | None,
        mean: bool,
        strategy: _Strategy,
        prefetch_distance: int,
        threads: int,
    ) -> None:
        """Backward and SGD step: every looked-up row -= learning_rate * weight * gradient [N, T, E] of its bag."""

    def validate(self, indices: _Array, offsets: _Array, num_bags: int, threads: int) -> None:
        """Only the checks of the look-ups, for N = num_bags."""
    def task_sizes(self, indices: _Array, offsets: _Array, num_bags: int, bags_per_task: int) -> list[int]:
        """Look-ups and bags of each task of a forward pass."""

    def owner_sizes(self, indices: _Array, offsets: _Array, num_bags: int, strategy: _Strategy, threads: int) -> list[int]:
        """Look-ups that each owner applies in an update, by race_free_range, race_free_modulo or bucketed (where a look-up takes all
        threads the same time, so that the buckets are claimed in turn)."""

    def release_workspace(self) -> None:
        """Free what updates keep between calls."""

def libxsmm_open(name: str) -> str:
    """Opens libxsmm by path or name, once a process. Returns why it cannot serve; empty when it can."""

def libxsmm_opened() -> bool:
    """Whether ``libxsmm=True`` works: the passes of a layer then run libxsmm's kernels instead of ours."""

def pack_weights(weights: _Array, forward: _Array, forward_width: int, backward: _Array, backward_width: int, threads: int) -> None:
    """weights [K, C] as zero-padded panels: forward [ceil(K/fw) * C * fw] over K, backward [ceil(C/bw) * K * bw] over C."""

def pack_weights_bf16(upper: _Array, forward: _Array, forward_width: int, backward: _Array, backward_width: int, threads: int) -> None:
    """The same of bf16, int16 [K, C], in pairs: forward [ceil(K/fw) * ceil(C/2) * fw * 2], backward [ceil(C/bw) * ceil(K/2) * bw * 2]."""

def linear_forward(
    x: _Array,
    packed: _Array,
    bias: _Array | None,
    y: _Array,
    activation: _Activation,
    bn: int,
    bc: int,
    bk: int,
    columns_outer: bool,
    thread_columns: int,
    threads: int,
    libxsmm: bool = False,
) -> None:
    """y [N, K] = activation(x [N, C] w^T + bias [K]); packed: the forward panels, of width bk."""

def linear_backward_data(
    dy: _Array,
    packed: _Array,
    mask: _Array | None,
    dx: _Array,
    bn: int,
    bc: int,
    bk: int,
    columns_outer: bool,
    thread_columns: int,
    threads: int,
    libxsmm: bool = False,
) -> None:
    """dx [N, C] = dy [N, K] w, zero where mask [N, C] <= 0; packed: the backward panels, of width bk."""

def linear_forward_bf16(
    x: _Array,
    packed: _Array,
    bias: _Array | None,
    y: _Array,
    activation: _Activation,
    bn: int,
    bc: int,
    bk: int,
    columns_outer: bool,
    thread_columns: int,
    threads: int,
    libxsmm: bool = False,
) -> None:
    """The same with x rounded to bf16, and packed in pairs, int16."""

def linear_backward_data_bf16(
    dy: _Array,
    packed: _Array,
    mask: _Array | None,
    dx: _Array,
    bn: int,
    bc: int,
    bk: int,
    columns_outer: bool,
    thread_columns: int,
    threads: int,
    libxsmm: bool = False,
) -> None:
    """The same with dy rounded to bf16, and packed in pairs, int16."""

def linear_backward_weights(
    dy: _Array,
    x: _Array,
    d_weights: _Array,
    d_bias: _Array,
    weights: _Array | None,
    bias: _Array | None,
    learning_rate: float,
    bn: int,
    bc: int,
    bk: int,
    columns_outer: bool,
    thread_columns: int,
    threads: int,
    libxsmm: bool = False,
    state: _Array | None = None,
    bias_state: _Array | None = None,
    epsilon: float = 1e-10,
) -> None:
    """d_weights [K, C] = dy^T x, d_bias [K] = sum of dy; or, with weights and bias, a step along both, d_weights and d_bias being scratch.

    SGD; or with state [K, C] and bias_state [K] Adagrad: s += g^2, w -= learning_rate * g / (sqrt(s) + epsilon). A learning rate of 0
    changes nothing, the states included.
    """

def linear_backward_weights_bf16(
    dy: _Array,
    x: _Array,
    d_weights: _Array,
    d_bias: _Array,
    upper: _Array | None,
    lower: _Array | None,
    bias: _Array | None,
    learning_rate: float,
    bn: int,
    bc: int,
    bk: int,
    columns_outer: bool,
    thread_columns: int,
    threads: int,
    libxsmm: bool = False,
    state: _Array | None = None,
    bias_state: _Array | None = None,
    epsilon: float = 1e-10,
) -> None:
    """The same with dy and x rounded to bf16 for d_weights, and weights as the upper and lower halves of fp32, int16 [K, C]."""

def linear_descend(
    d_weights: _Array,
    d_bias: _Array,
    weights: _Array,
    bias: _Array,
    state: _Array | None,
    bias_state: _Array | None,
    learning_rate: float,
    epsilon: float,
    threads: int,
) -> None:
    """The step that `linear_backward_weights` takes, along gradients that it wrote."""

def linear_descend_bf16(
    d_weights: _Array,
    d_bias: _Array,
    upper: _Array,
    lower: _Array,
    bias: _Array,
    state: _Array | None,
    bias_state: _Array | None,
    learning_rate: float,
    epsilon: float,
    threads: int,
) -> None:
    """The same on halves of weights, int16 [K, C]."""

def interaction_forward(features: _Array, out: _Array, samples_per_task: int, threads: int) -> None:
    """out [N, E + F(F-1)/2]: feature 0 of features [N, F, E], then the dot products of pairs j < i, by rows of the lower triangle."""

def interaction_backward(features: _Array, d_out: _Array, d_features: _Array, samples_per_task: int, threads: int) -> None:
    """d_features [N, F, E] from d_out [N, E + F(F-1)/2]; written, not added to."""
