"""Embedding bags: forward and fused update on every target, against formulas in double and against the reference target."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from embedding_cases import DIMS, Case, cases, make_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from autotune import _kernels as kernels

DRAWN = settings(
    deadline=None,
    max_examples=int(os.environ.get("AUTOTUNE_TEST_EXAMPLES", "12")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
STRATEGIES = ("race_free_range", "race_free_modulo", "bucketed", "atomic", "unfused")
ORDERED = ("race_free_range", "race_free_modulo", "bucketed")  # one writer a row, which sees its look-ups in order
FORWARD = {"prefetch_distance": 0, "prefetch_hint": 0, "bags_per_task": 4, "streaming_stores": False, "threads": 2}


def update(case: Case, tables: list[Tensor], strategy: str, threads: int, distance: int = 8, learning_rate: float = 0.25) -> list[Tensor]:
    handle = kernels.EmbeddingTables(tables)
    handle.update(case.indices, case.offsets, case.gradient, learning_rate, case.scales, case.mean, strategy, distance, threads)  # type: ignore[arg-type]
    return tables


def copies(case: Case) -> list[Tensor]:
    return [table.clone() for table in case.tables]


@DRAWN
@given(
    case=cases(),
    slots=st.integers(0, 1),
    padding=st.integers(0, 16),
    shift=st.sampled_from((0, 0, 1)),
    distance=st.sampled_from((0, 1, 2, 8, 1024)),
    hint=st.integers(0, 1),
    bags_per_task=st.sampled_from((1, 2, 5, 1000, 2**63 - 1)),
    streaming=st.booleans(),
    threads=st.integers(1, 4),
)
def test_forward_pools_into_strided_outputs_and_nowhere_else(
    case: Case,
    slots: int,
    padding: int,
    shift: int,
    distance: int,
    hint: int,
    bags_per_task: int,
    streaming: bool,
    threads: int,
    target: str,
    guarded: Any,
    close: Any,
    rounding_of: Any,
    on_target: Any,
) -> None:
    shape = (case.num_bags, len(case.tables), case.tables[0].shape[1])
    expected, tolerance = case.forward(), rounding_of(case.longest(), case.forward(magnitude=True))
    tables = [guarded.of(table, fill=float("nan")) for table in case.tables]
    handle = kernels.EmbeddingTables([table.view for table in tables])

    def run() -> Tensor:
        out = guarded(*shape, padding=(0, slots, padding), shift=shift)
        handle.forward(case.indices, case.offsets, out.view, case.scales, case.mean, distance, hint, bags_per_task, streaming, threads)
        out.assert_untouched()
        result: Tensor = out.view
        return result

    actual = run()
    close(actual, expected, tolerance, f"forward on {target}")
    with on_target("reference"):
        reference = run()
    close(actual, reference.double(), tolerance, f"{target} against the reference")
    assert all(torch.equal(table.view, before) for table, before in zip(tables, case.tables, strict=True))


@pytest.mark.parametrize("dim", DIMS)
def test_forward_is_the_same_to_the_bit_at_every_prefetch_task_store_and_team(target: str, dim: int) -> None:
    case = make_case(dim, [50, 3], torch.randint(0, 12, (2, 9), generator=torch.Generator().manual_seed(3)), "mean", True, 0.2, seed=5)
    handle = kernels.EmbeddingTables(case.tables)
    options = [(0, 0, 1, False, 1)]
    options += [(distance, hint, 4, streaming, 2) for distance in (0, 2, 4, 8, 16, 32) for hint in (0, 1) for streaming in (False, True)]
    options += [(8, 0, bags, False, threads) for bags in (1, 3, 64) for threads in (1, 3, 5)]
    results = []
    for chosen in options:
        out = torch.full((9, 2, dim), float("nan"))
        handle.forward(case.indices, case.offsets, out, None, True, *chosen)
        results.append(out)
    different = [chosen for chosen, result in zip(options, results, strict=True) if not torch.equal(result, results[0])]
    assert not different


@pytest.mark.parametrize("mean", [False, True])
def test_empty_bags_give_zeros(target: str, mean: bool) -> None:
    out = torch.full((3, 1, 20), float("nan"))
    handle = kernels.EmbeddingTables([torch.full((4, 20), float("nan"))])
    handle.forward(torch.zeros(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), out, None, mean, 8, 0, 2, True, 2)
    assert not out.any()


def test_handle_tells_its_shape_and_takes_numpy(target: str) -> None:
    tables = [np.ones((4, 3), np.float32), np.ones((9, 3), np.float32)]
    handle = kernels.EmbeddingTables(tables)
    assert (handle.num_tables, handle.dim, handle.rows) == (2, 3, [4, 9])
    out = np.zeros((1, 2, 3), np.float32)
    handle.forward(np.array([3, 8, 8], np.int32), np.array([0, 1, 3], np.int32), out, None, **FORWARD, mean=False)  # type: ignore[arg-type]
    assert out[0, :, 0].tolist() == [1.0, 2.0]


def test_a_handle_keeps_its_tables_alive(target: str) -> None:
    handle = kernels.EmbeddingTables([torch.ones(1000, 128)])
    out = torch.zeros(1, 1, 128)
    handle.forward(torch.tensor([999]), torch.tensor([0, 1]), out, None, False, **FORWARD)  # type: ignore[arg-type]
    assert bool((out == 1).all())


@pytest.mark.parametrize("strategy", STRATEGIES)
@DRAWN
@given(
    case=cases(), threads=st.integers(1, 4), distance=st.sampled_from((0, 1, 8, 1024)), slots=st.integers(0, 1), padding=st.integers(0, 5)
)
def test_update_steps_every_row_looked_up_and_no_other(
    strategy: str,
    case: Case,
    threads: int,
    distance: int,
    slots: int,
    padding: int,
    target: str,
    guarded: Any,
    close: Any,
    rounding_of: Any,
    on_target: Any,
) -> None:
    wide = guarded.of(case.gradient, padding=(0, slots, padding), fill=float("nan"))
    case.gradient = wide.view
    tables = [guarded.of(table) for table in case.tables]
    update(case, [table.view for table in tables], strategy, threads, distance)
    with on_target("reference"):
        references = update(case, copies(case), strategy, 1)
    for t, table in enumerate(tables):
        table.assert_untouched()
        expected, magnitude = case.updated(t, 0.25)
        rows, _, _ = case.pooled_of(t)
        tolerance = rounding_of(int(rows.bincount().max()) + 2 if len(rows) else 0, magnitude)
        close(table.view, expected, tolerance, f"{strategy} on {target}, table {t}")
        close(table.view, references[t].double(), tolerance, f"{strategy} on {target} against the reference, table {t}")
        others = torch.ones(len(table.view), dtype=torch.bool).index_fill(0, rows, False)
        assert torch.equal(table.view[others], case.tables[t][others])


@DRAWN
@given(case=cases())
def test_race_free_strategies_agree_to_the_bit_at_any_team_size(case: Case, target: str) -> None:
    first = update(case, copies(case), "race_free_range", 1)
    for strategy in ORDERED:
        for threads in range(1, 6):
            actual = update(case, copies(case), strategy, threads)
            assert all(map(torch.equal, actual, first)), f"{strategy} with {threads} threads"
    # Written out first, a gradient row is rounded once more than in a fused multiply-add: the same bits at any team size, but its own.
    unfused = update(case, copies(case), "unfused", 1)
    for threads in range(2, 6):
        assert all(map(torch.equal, update(case, copies(case), "unfused", threads), unfused)), f"unfused with {threads} threads"


@DRAWN
@given(case=cases(whole=True), threads=st.integers(1, 5))
def test_every_strategy_is_exact_where_no_sum_is_rounded(case: Case, threads: int, target: str) -> None:
    for strategy in STRATEGIES:
        for t, actual in enumerate(update(case, copies(case), strategy, threads)):
            expected, _ = case.updated(t, 0.25)
            assert torch.equal(actual.double(), expected), f"{strategy}, table {t}"


@pytest.mark.parametrize("mode", ["sum", "mean", "weighted"])
def test_a_hot_row_looked_up_thousands_of_times(target: str, mode: str) -> None:
    """More look-ups than a thread holds back at once (1024), nearly all to one row."""
    lengths = torch.tensor([[700, 0, 1, 1500], [0, 0, 40, 0]])
    case = make_case(20, [37, 5], lengths, mode, wide=False, hot=0.95, seed=11)
    first = update(case, copies(case), "race_free_range", 1)
    for strategy in STRATEGIES:
        for threads in (1, 2, 5):
            actual = update(case, copies(case), strategy, threads)
            if strategy in ORDERED:
                assert all(map(torch.equal, actual, first))
            for t in range(2):
                expected, magnitude = case.updated(t, 0.25)
                error = (actual[t].double() - expected).abs()
                assert bool((error <= 2300 * 2.0**-23 * magnitude).all()), f"{strategy} with {threads} threads, table {t}"


def halves(table: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower 16 bits of every weight, int16."""
    both = table.contiguous().view(torch.int16).view(*table.shape, 2)
    return both[..., 1].contiguous(), both[..., 0].contiguous()


def joined(upper: Tensor, lower: Tensor) -> Tensor:
    return torch.stack([lower, upper], -1).view(torch.float32)[..., 0]


def inside(array: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of the array inside a larger buffer, which must stay 77 around it."""
    buffer = torch.full((64 + array.numel() + 64,), 77, dtype=array.dtype)
    view = buffer[64 : 64 + array.numel()].view(array.shape)
    view.copy_(array)
    return view, buffer


def update_all(
    case: Case, strategy: str, threads: int, *, split: bool, states: list[Tensor] | None, epsilon: float = 1e-10, distance: int = 8
) -> list[Tensor]:
    """Tables, then states, after one update; arrays that are written lie between guards."""
    views, buffers = [], []
    for array in (*(half for table in case.tables for half in halves(table)), *(states or ())):
        view, buffer = inside(array)
        views.append(view)
        buffers.append(buffer)
    count = 2 * len(case.tables)
    kept = views[count:] or None
    tables = copies(case)
    if split:
        handle = kernels.EmbeddingTables.split(views[:count:2], views[1:count:2], kept, epsilon)  # type: ignore[arg-type]
    else:
        handle = kernels.EmbeddingTables(tables, kept, epsilon)  # type: ignore[arg-type]
    handle.update(case.indices, case.offsets, case.gradient, 0.25, case.scales, case.mean, strategy, distance, threads)  # type: ignore[arg-type]
    assert all(bool((buffer[:64] == 77).all() and (buffer[-64:] == 77).all()) for buffer in buffers)
    if split:
        tables = [joined(*views[i : i + 2]) for i in range(0, count, 2)]
    return [*tables, *views[count:]]


def states_of(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(len(table), generator=generator) for table in case.tables]


@DRAWN
@given(case=cases(), distance=st.sampled_from((0, 1, 8, 1024)), hint=st.integers(0, 1), bags=st.sampled_from((1, 5, 1000)))
def test_forward_of_split_tables_is_that_of_their_upper_halves(case: Case, distance: int, hint: int, bags: int, target: str) -> None:
    parts = [halves(table) for table in case.tables]
    whole = [joined(upper, torch.zeros_like(lower)) for upper, lower in parts]
    split = kernels.EmbeddingTables.split([upper for upper, _ in parts], [lower for _, lower in parts])
    results = []
    for handle in (split, kernels.EmbeddingTables(whole)):
        out = torch.full((case.num_bags, len(case.tables), case.tables[0].shape[1]), float("nan"))
        handle.forward(case.indices, case.offsets, out, case.scales, case.mean, distance, hint, bags, False, 3)
        results.append(out)
    assert torch.equal(*results)


@DRAWN
@given(case=cases(), threads=st.integers(1, 4), adagrad=st.booleans())
def test_update_of_split_tables_is_that_of_fp32_to_the_bit(case: Case, threads: int, adagrad: bool, target: str) -> None:
    states = states_of(case) if adagrad else None
    for strategy in ORDERED if adagrad else (*ORDERED, "unfused"):
        got = update_all(case, strategy, threads, split=True, states=states)
        wanted = update_all(case, strategy, threads, split=False, states=states)
        assert all(map(torch.equal, got, wanted)), strategy


def check_adagrad(case: Case, strategy: str, threads: int, distance: int, close: Any, rounding_of: Any, split: bool = False) -> None:
    """Against the formula in double. The step is lr * G / (sqrt(state) + eps), G off by its rounding and state relatively by G^2's."""
    learning_rate, epsilon, states = 0.25, 1e-3, states_of(case)
    results = update_all(case, strategy, threads, split=split, states=states, epsilon=epsilon, distance=distance)
    for t, before in enumerate(states):
        rows, bags, weights = case.pooled_of(t)
        table = case.tables[t].double()
        terms = weights[:, None] * case.gradient[:, t].double()[bags]
        total, magnitude = torch.zeros_like(table).index_add(0, rows, terms), torch.zeros_like(table).index_add(0, rows, terms.abs())
        of_sum = rounding_of(int(rows.bincount().max()) + 2 if len(rows) else 0, magnitude)
        state, dim = before.double() + total.square().mean(1), table.shape[1]
        of_state = rounding_of(dim + 6, state) + (2 * total.abs() * of_sum + of_sum.square()).mean(1)
        close(results[len(states) + t], state, of_state, f"state of table {t}, {strategy}")
        root = state.sqrt() + epsilon
        of_root = of_state / (2 * state.sqrt()).clamp_min(1e-6) + 2.0**-22 * root
        step = learning_rate * total / root[:, None]
        of_step = learning_rate * of_sum / root[:, None] + 2 * step.abs() * (of_root / root)[:, None]
        close(results[t], table - step, of_step + rounding_of(2, table.abs() + step.abs()), f"table {t}, {strategy}")
        others = torch.ones(len(table), dtype=torch.bool).index_fill(0, rows, False)
        assert torch.equal(results[t][others], case.tables[t][others])
        assert torch.equal(results[len(states) + t][others], before[others])


@DRAWN
@given(case=cases(), threads=st.integers(1, 4), distance=st.sampled_from((0, 1, 8, 1024)), split=st.booleans())
def test_row_wise_adagrad_steps_by_the_summed_gradient(
    case: Case, threads: int, distance: int, split: bool, target: str, close: Any, rounding_of: Any
) -> None:
    for strategy in ORDERED:
        check_adagrad(case, strategy, threads, distance, close, rounding_of, split)


@DRAWN
@given(case=cases())
def test_adagrad_is_the_same_to_the_bit_in_every_strategy_and_team(case: Case, target: str) -> None:
    first = update_all(case, "race_free_range", 1, split=False, states=states_of(case))
    for strategy in ORDERED:
        for threads in range(1, 6):
            actual = update_all(case, strategy, threads, split=False, states=states_of(case))
            assert all(map(torch.equal, actual, first)), f"{strategy} with {threads} threads"


@pytest.mark.parametrize("mode", ["sum", "mean", "weighted"])
def test_adagrad_with_a_hot_row_looked_up_thousands_of_times(target: str, mode: str, close: Any, rounding_of: Any) -> None:
    case = make_case(20, [3000, 5], torch.tensor([[700, 0, 1, 1500], [0, 0, 40, 0]]), mode, wide=False, hot=0.5, seed=11)
    first = update_all(case, "bucketed", 1, split=True, states=states_of(case))
    for strategy in ORDERED:
        check_adagrad(case, strategy, 3, 8, close, rounding_of)
        assert all(map(torch.equal, update_all(case, strategy, 5, split=True, states=states_of(case)), first))
