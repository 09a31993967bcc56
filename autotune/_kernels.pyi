# Written by kernels/stub.py with nanobind 3.1; not to be edited.
"""
Kernels of the optimized DLRM. Import torch first, so that both share one OpenMP library.

Arrays are taken in place, never converted or copied: fp32 on the CPU (halves of weights: int16), rows contiguous, outputs overlapping
nothing else. What does not fit raises TypeError (dtype, number of dimensions, read-only output) or ValueError (sizes, strides, overlaps,
options) before anything is written. `threads` is the size of the OpenMP team.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy
from numpy.typing import NDArray
from torch import Tensor


def targets() -> list[str]:
    """
    Kernel targets that this CPU runs, in rising order of preference; `reference` first.
    """

def target() -> str:
    """
    The target in use. Raises ValueError when AUTOTUNE_TARGET names none that runs here.
    """

def set_target(name: str) -> None:
    """
    Use one target from now on. Raises ValueError when it does not run here.
    """

def lanes() -> int:
    """Floats per vector of the target in use."""

def allocate(count: int, huge_pages: bool) -> Annotated[NDArray[numpy.float32], dict(shape=(None,))]:
    """
    Zero floats [count] on pages of their own, aligned to 2 MiB. Raises MemoryError.
    """

def fill_uniform(data: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')], low: float, high: float, seed: int, threads: int, first: int = 0) -> None:
    """
    data [n]: uniform in low..high from (seed, first + position) alone, the same at any team size.
    """

def fill_zero(data: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')], threads: int) -> None:
    """data [n] = 0, each page touched by the thread that owns its slice."""

def ceiling_fma(iterations: int, threads: int) -> float:
    """
    Runs independent chains of vector FMAs; returns the flops done by the whole team.
    """

def ceiling_stream(kind: Literal['read', 'copy', 'triad', 'copy_nt', 'update'], a: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')], b: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')], c: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')], threads: int) -> None:
    """
    One pass over arrays [n], n a multiple of 16: sum b | a = b | a = b + c/2 | a = b past the caches | a = a/2.
    """

def watch_teams(watched: bool) -> None:
    """Whether teams are timed from now on."""

def take_team_times() -> tuple[int, float, float, float]:
    """
    Of the parallel regions that this thread forked since it last asked: how many, and seconds of each region's busiest thread at
    work, of that thread on a core meanwhile, and of the mean thread on a core while at work.
    """

def fork_join(repeats: int, threads: int) -> None:
    """Runs empty parallel regions."""

class RowWalk:
    """
    Rows of table [R, E], listed by rows [n] (int64), to be gathered or updated in that order; the list must not change afterwards.
    """

    def __init__(self, table: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')], rows: Annotated[Tensor | NDArray[numpy.int64], dict(shape=(None,), device='cpu', writable=False)]) -> None:
        """Raises IndexError when a row is outside the table."""

    def gather(self, prefetch_distance: int, threads: int) -> None:
        """Sums the rows into registers."""

    def scatter(self, prefetch_distance: int, threads: int) -> None:
        """
        Scales each listed row in place; the threads' slices of the list must name disjoint rows.
        """

class EmbeddingTables:
    """
    T contiguous tables [rows_t, E] as one native handle; keeps their memory alive.

    Look-ups are table-major: bag b = t*N + n pools indices[offsets[b] : offsets[b + 1]]; indices [L] and offsets [T*N + 1] are both
    int32 or both int64. Raises IndexError for an index outside its table and ValueError for offsets that decrease or leave 0..L,
    before anything is written.
    """

    def __init__(self, weights: Sequence[Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')]], state: Sequence[Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')]] | None = None, epsilon: float = 1e-10) -> None:
        """
        fp32 tables. With `state`, fp32 [rows_t] each, updates are row-wise Adagrad: with G the sum of a row's gradients,
        state += mean(G^2), row -= learning_rate * G / (sqrt(state) + epsilon); else SGD.
        """

    @staticmethod
    def split(upper: Sequence[Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None, None), device='cpu')]], lower: Sequence[Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None, None), device='cpu')]], state: Sequence[Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')]] | None = None, epsilon: float = 1e-10) -> EmbeddingTables:
        """
        Tables of fp32 weights kept as int16 bit patterns: upper[t] the upper 16 bits, a bf16 number that the forward pass reads;
        lower[t] the rest, which an update joins to it.
        """

    @staticmethod
    def rounded(upper: Sequence[Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None, None), device='cpu')]], streams: Sequence[int], state: Sequence[Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')]] | None = None, epsilon: float = 1e-10) -> EmbeddingTables:
        """
        Tables of bf16, int16 bit patterns. An update steps in fp32 and rounds stochastically, by bits that are a hash of streams[t], the step,
        row and column, and with SGD the position of the look-up in the batch. A value that is bf16 is kept; NaN, infinities, and finite
        values as such too.
        """

    def forward(self, indices: Annotated[Tensor | NDArray[Any], dict(shape=(None,), device='cpu', writable=False)], offsets: Annotated[Tensor | NDArray[Any], dict(shape=(None,), device='cpu', writable=False)], out: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu')], per_sample_weights: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)] | None, mean: bool, prefetch_distance: int, prefetch_hint: int, bags_per_task: int, streaming_stores: bool, threads: int) -> None:
        """
        out [N, T, E] = pooled rows; an empty bag gives zeros. prefetch_distance in look-ups, prefetch_hint 0 (L1) or 1 (L2).
        """

    def update(self, indices: Annotated[Tensor | NDArray[Any], dict(shape=(None,), device='cpu', writable=False)], offsets: Annotated[Tensor | NDArray[Any], dict(shape=(None,), device='cpu', writable=False)], gradient: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)], learning_rate: float, per_sample_weights: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)] | None, mean: bool, strategy: Literal['race_free_range', 'race_free_modulo', 'bucketed', 'atomic', 'unfused'], prefetch_distance: int, threads: int, step: int = 0) -> None:
        """
        Backward and SGD step: every looked-up row -= learning_rate * weight * gradient [N, T, E] of its bag. `step` numbers the updates of
        stochastically rounded tables: each draws other bits.
        """

    def validate(self, indices: Annotated[Tensor | NDArray[Any], dict(shape=(None,), device='cpu', writable=False)], offsets: Annotated[Tensor | NDArray[Any], dict(shape=(None,), device='cpu', writable=False)], num_bags: int, threads: int) -> None:
        """Only the checks of the look-ups, for N = num_bags."""

    def task_sizes(self, indices: Annotated[Tensor | NDArray[Any], dict(shape=(None,), device='cpu', writable=False)], offsets: Annotated[Tensor | NDArray[Any], dict(shape=(None,), device='cpu', writable=False)], num_bags: int, bags_per_task: int) -> list[int]:
        """Look-ups and bags of each task of a forward pass."""

    def owner_sizes(self, indices: Annotated[Tensor | NDArray[Any], dict(shape=(None,), device='cpu', writable=False)], offsets: Annotated[Tensor | NDArray[Any], dict(shape=(None,), device='cpu', writable=False)], num_bags: int, strategy: Literal['race_free_range', 'race_free_modulo', 'bucketed', 'atomic', 'unfused'], threads: int, first_table: int = 0) -> list[int]:
        """
        Look-ups that each thread applies in an update by race_free_range, race_free_modulo or bucketed.

        The buckets of bucketed go, the largest first, to the thread with the fewest look-ups so far. Table t counts as number
        first_table + t of those updated together.
        """

    def bucket_sizes(self) -> list[int]:
        """
        Look-ups that the last update by bucketed filed into each of its 8 * threads buckets; none before an update or after
        release_workspace, and zeros by target `reference`, which has no buckets.
        """

    def release_workspace(self) -> None:
        """Free what updates keep between calls."""

    @property
    def num_tables(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def rows(self) -> list[int]: ...

def libxsmm_open(name: str) -> str:
    """
    Opens libxsmm by path or name, once a process. Returns why it cannot serve; empty when it can.
    """

def libxsmm_opened() -> bool:
    """
    Whether ``libxsmm=True`` works: the passes of a layer then run libxsmm's kernels instead of ours.
    """

def pack_weights(weights: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], forward: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')], forward_width: int, backward: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')], backward_width: int, threads: int) -> None:
    """
    weights [K, C] as zero-padded panels: forward [ceil(K/fw) * C * fw] over K, backward [ceil(C/bw) * K * bw] over C.
    """

def pack_weights_bf16(upper: Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None, None), device='cpu', writable=False)], forward: Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None,), device='cpu')], forward_width: int, backward: Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None,), device='cpu')], backward_width: int, threads: int) -> None:
    """
    The same of bf16, int16 [K, C], in pairs: forward [ceil(K/fw) * ceil(C/2) * fw * 2], backward [ceil(C/bw) * ceil(K/2) * bw * 2].
    """

def linear_forward(x: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], packed: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)], bias: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)] | None, y: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')], activation: Literal['none', 'relu', 'sigmoid'], bn: int, bc: int, bk: int, columns_outer: bool, thread_columns: int, threads: int, libxsmm: bool = False) -> None:
    """
    y [N, K] = activation(x [N, C] w^T + bias [K]); packed: the forward panels, of width bk.
    """

def linear_backward_data(dy: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], packed: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)], mask: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)] | None, dx: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')], bn: int, bc: int, bk: int, columns_outer: bool, thread_columns: int, threads: int, libxsmm: bool = False) -> None:
    """
    dx [N, C] = dy [N, K] w, zero where mask [N, C] <= 0; packed: the backward panels, of width bk.
    """

def linear_forward_bf16(x: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], packed: Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None,), device='cpu', writable=False)], bias: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)] | None, y: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')], activation: Literal['none', 'relu', 'sigmoid'], bn: int, bc: int, bk: int, columns_outer: bool, thread_columns: int, threads: int, libxsmm: bool = False) -> None:
    """The same with x rounded to bf16, and packed in pairs, int16."""

def linear_backward_data_bf16(dy: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], packed: Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None,), device='cpu', writable=False)], mask: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)] | None, dx: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')], bn: int, bc: int, bk: int, columns_outer: bool, thread_columns: int, threads: int, libxsmm: bool = False) -> None:
    """The same with dy rounded to bf16, and packed in pairs, int16."""

def linear_backward_weights(dy: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], x: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], d_weights: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')], d_bias: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')], weights: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')] | None, bias: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')] | None, learning_rate: float, bn: int, bc: int, bk: int, columns_outer: bool, thread_columns: int, threads: int, libxsmm: bool = False, state: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')] | None = None, bias_state: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')] | None = None, epsilon: float = 1e-10) -> None:
    """
    d_weights [K, C] = dy^T x, d_bias [K] = sum of dy; or, with weights and bias, a step along both, d_weights and d_bias being scratch.

    SGD; or with state [K, C] and bias_state [K] Adagrad: s += g^2, w -= learning_rate * g / (sqrt(s) + epsilon). A learning rate of 0
    changes nothing, the states included.
    """

def linear_backward_weights_bf16(dy: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], x: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], d_weights: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')], d_bias: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')], upper: Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None, None), device='cpu')] | None, lower: Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None, None), device='cpu')] | None, bias: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')] | None, learning_rate: float, bn: int, bc: int, bk: int, columns_outer: bool, thread_columns: int, threads: int, libxsmm: bool = False, state: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')] | None = None, bias_state: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')] | None = None, epsilon: float = 1e-10) -> None:
    """
    The same with dy and x rounded to bf16 for d_weights, and weights as the upper and lower halves of fp32, int16 [K, C].
    """

def linear_descend(d_weights: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], d_bias: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)], weights: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')], bias: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')], state: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')] | None, bias_state: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')] | None, learning_rate: float, epsilon: float, threads: int) -> None:
    """
    The step that `linear_backward_weights` takes, along gradients that it wrote.
    """

def linear_descend_bf16(d_weights: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], d_bias: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)], upper: Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None, None), device='cpu')], lower: Annotated[Tensor | NDArray[numpy.int16], dict(shape=(None, None), device='cpu')], bias: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')], state: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')] | None, bias_state: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu')] | None, learning_rate: float, epsilon: float, threads: int) -> None:
    """The same on halves of weights, int16 [K, C]."""

def binary_cross_entropy(probabilities: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], labels: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)], d_logits: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')], scale: float, threads: int) -> float:
    """
    Mean of -(y log p + (1-y) log(1-p)) * scale over probabilities [N, 1] and labels [N], logarithms no lower than -100;
    d_logits [N, 1] = (p - y) / N * scale, written.
    """

def interaction_forward(features: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)], out: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu')], diagonal: bool, samples_per_task: int, threads: int) -> None:
    """
    out [N, E + P]: feature 0 of features [N, F, E], then the P dot products of pairs j < i, or with the diagonal j <= i, by rows of the
    lower triangle.
    """

def interaction_backward(features: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)], d_out: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None), device='cpu', writable=False)], d_features: Annotated[Tensor | NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu')], diagonal: bool, samples_per_task: int, threads: int) -> None:
    """d_features [N, F, E] from d_out [N, E + P]; written, not added to."""
