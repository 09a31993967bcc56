"""Tables of bf16 with stochastic rounding: every target against a plain reference, bit for bit, and what the drawn bits are worth."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest
import torch
from embedding_cases import Case, cases, make_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from autotune import _kernels as kernels

DRAWN = settings(
    deadline=None,
    max_examples=int(os.environ.get("AUTOTUNE_TEST_EXAMPLES", "12")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ORDERED = ("race_free_range", "race_free_modulo", "bucketed")
RATE = 0.25
Words = NDArray[np.uint32]


def mixed(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def random_bits(stream: int, step: int, row: int, lookup: int, columns: int) -> Words:
    """16 bits for each column."""
    key = mixed((mixed((mixed(stream) + step) % 2**64) + (row << 32 | lookup % 2**32)) % 2**64)
    with np.errstate(over="ignore"):
        h = np.arange(columns, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(key % 2**32)
        h = (h ^ h >> np.uint32(16)) * np.uint32(0x7FEB352D)
        h = (h ^ h >> np.uint32(15) ^ np.uint32(key >> 32)) * np.uint32(0x846CA68B)
    return h >> np.uint32(16)


def rounded(values: Tensor, bits: Words) -> Tensor:
    """bf16 patterns, int16: the upper half of the sum of both; cut off where the neighbour is infinite, and NaN stays NaN."""
    plain = values.numpy().view(np.uint32)
    magnitude = plain & np.uint32(0x7FFFFFFF)
    result = np.where(magnitude < 0x7F7F0000, plain + bits, plain)
    result = np.where(magnitude > 0x7F800000, plain | np.uint32(0x400000), result)
    return torch.from_numpy((result >> np.uint32(16)).astype(np.uint16).view(np.int16))


def narrowed(table: Tensor) -> Tensor:
    return table.bfloat16().view(torch.int16)


def widened(upper: Tensor) -> Tensor:
    return upper.view(torch.bfloat16).float()


def states_of(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(len(table), generator=generator) for table in case.tables]


def streams_of(case: Case) -> list[int]:
    return [2**64 - 1 - 7 * t for t in range(len(case.tables))]


def update(case: Case, strategy: str, threads: int, guarded: Any, adagrad: bool = False, step: int = 3, distance: int = 8) -> list[Tensor]:
    """Tables, then states, after one update; whatever is written lies between guards."""
    uppers = [guarded.of(narrowed(table)) for table in case.tables]
    states = [guarded.of(state) for state in states_of(case)] if adagrad else []
    handle = kernels.EmbeddingTables.rounded([each.view for each in uppers], streams_of(case), [each.view for each in states] or None)
    handle.update(
        case.indices, case.offsets, case.gradient, RATE, case.scales, case.mean, strategy, distance, threads, step  # type: ignore[arg-type]
    )  # fmt: skip
    for each in (*uppers, *states):
        each.assert_untouched()
    return [each.view.clone() for each in (*uppers, *states)]


def stepped(row: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """One look-up's step on an fp32 row: what a target's addition rounds to is the target's own."""
    table = row[None].contiguous()
    handle = kernels.EmbeddingTables([table])
    handle.update(torch.tensor([0]), torch.tensor([0, 1]), gradient[None, None], rate, None, False, "race_free_range", 0, 1)
    return table[0]


def expected_sgd(case: Case, step: int, unfused: bool = False) -> list[Tensor]:
    results = []
    for t, table in enumerate(case.tables):
        upper, start = narrowed(table), int(case.offsets[t * case.num_bags])
        rows, bags, _ = case.pooled_of(t)
        lengths = case.offsets.diff()[t * case.num_bags :]
        for j, (row, bag) in enumerate(zip(rows.tolist(), bags.tolist(), strict=True)):
            rate = np.float32(RATE)
            if case.scales is not None:
                rate = rate * np.float32(case.scales[start + j])
            elif case.mean:
                rate = rate / np.float32(lengths[bag])
            gradient = case.gradient[bag, t]
            if unfused:  # the product is rounded before it is added
                gradient, rate = gradient * float(rate), np.float32(1)
            value = stepped(widened(upper[row]), gradient, float(rate))
            upper[row] = rounded(value, random_bits(streams_of(case)[t], step, row, start + j, len(value)))
        results.append(upper)
    return results


@DRAWN
@given(case=cases(), threads=st.integers(1, 4), step=st.sampled_from((0, 1, 2**40)), distance=st.sampled_from((0, 1, 8, 1024)))
def test_sgd_is_the_plain_reference_to_the_bit(case: Case, threads: int, step: int, distance: int, target: str, guarded: Any) -> None:
    if target == "reference":
        return  # it adds in double: compared below, where no addition is rounded
    expected = expected_sgd(case, step)
    for strategy in ORDERED:
        assert all(map(torch.equal, update(case, strategy, threads, guarded, step=step, distance=distance), expected)), strategy
    got = update(case, "unfused", threads, guarded, step=step, distance=distance)
    assert all(map(torch.equal, got, expected_sgd(case, step, unfused=True)))


@DRAWN
@given(case=cases(), threads=st.integers(1, 4), distance=st.sampled_from((0, 1, 8, 1024)))
def test_adagrad_rounds_what_fp32_tables_would_hold(case: Case, threads: int, distance: int, target: str, guarded: Any) -> None:
    tables, states = [widened(narrowed(table)) for table in case.tables], states_of(case)
    handle = kernels.EmbeddingTables(tables, states)
    handle.update(case.indices, case.offsets, case.gradient, RATE, case.scales, case.mean, "bucketed", 0, 1)
    expected = []
    for t, table in enumerate(tables):
        bits = [random_bits(streams_of(case)[t], 3, row, 0, table.shape[1]) for row in range(len(table))]
        expected.append(rounded(table, np.stack(bits)))  # rows that nobody met are bf16, and stay
    for strategy in ORDERED:
        got = update(case, strategy, threads, guarded, adagrad=True, distance=distance)
        assert all(map(torch.equal, got, [*expected, *states])), strategy


@DRAWN
@given(case=cases(whole=True))
def test_every_target_draws_the_same_bits(case: Case, guarded: Any, on_target: Any) -> None:
    """Steps of which bf16 holds only a part, in multiples of 2^-10, so that no addition is rounded before it is stored."""
    case.gradient = case.gradient * (1 + 2.0**-8)
    results = []
    for name in kernels.targets():
        with on_target(name):
            results.append([update(case, strategy, 2, guarded) for strategy in (*ORDERED, "unfused")])
    for result in itertools.chain(*results):
        assert all(map(torch.equal, result, results[0][0]))


@pytest.mark.parametrize("mode", ["sum", "mean", "weighted"])
@pytest.mark.parametrize("adagrad", [False, True])
def test_any_team_gives_the_same_bits_also_with_a_hot_row(target: str, mode: str, adagrad: bool, guarded: Any) -> None:
    case = make_case(20, [37, 5, 9], torch.tensor([[700, 0, 1, 1500], [0, 0, 40, 0], [0, 0, 0, 0]]), mode, False, 0.9, seed=11)
    first = update(case, "race_free_range", 1, guarded, adagrad)
    for strategy, threads in itertools.product(ORDERED, (1, 2, 3, 5)):
        assert all(map(torch.equal, update(case, strategy, threads, guarded, adagrad), first)), f"{strategy} with {threads} threads"
    if not adagrad:
        unfused = update(case, "unfused", 1, guarded)
        assert all(map(torch.equal, update(case, "unfused", 4, guarded), unfused))


def test_forward_reads_bf16(target: str) -> None:
    case = make_case(20, [50, 3], torch.randint(0, 12, (2, 9), generator=torch.Generator().manual_seed(3)), "mean", True, 0.2, seed=5)
    uppers = [narrowed(table) for table in case.tables]
    outs = []
    for handle in (kernels.EmbeddingTables.rounded(uppers, [1, 2]), kernels.EmbeddingTables([widened(upper) for upper in uppers])):
        outs.append(torch.full((9, 2, 20), float("nan")))
        handle.forward(case.indices, case.offsets, outs[-1], None, True, 4, 0, 3, False, 2)
    assert torch.equal(*outs)


def added(weights: Tensor, addend: Tensor, *, step: int = 0, lookups: int = 1, stream: int = 9) -> Tensor:
    """Weights [rows, E], each row of which takes `lookups` steps by its addend; as fp32."""
    upper, rows = narrowed(weights), len(weights)
    handle = kernels.EmbeddingTables.rounded([upper], [stream])
    indices, offsets = torch.arange(rows).repeat_interleave(lookups), torch.arange(rows + 1) * lookups
    handle.update(indices, offsets, addend[:, None].contiguous(), -1.0, None, False, "race_free_range", 0, 1, step)
    return widened(upper)


def test_what_bf16_holds_stays_and_the_rest_stays_what_it_is(target: str) -> None:
    """All patterns of bf16, stepped by zero; then the edges: NaN whose payload a cut would lose, infinity, the largest finite values."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(256, 256)
    kept = added(widened(every), torch.zeros(256, 256))
    assert torch.equal(kept.isnan(), widened(every).isnan())
    finite = ~kept.isnan()
    zero = widened(every) == 0  # -0 + 0 is 0
    assert torch.equal(narrowed(kept)[finite & ~zero], every[finite & ~zero])
    largest, infinity = float(widened(torch.tensor([0x7F7F], dtype=torch.int16))), float("inf")
    beyond = torch.finfo(torch.float32).max
    weights = torch.zeros(1, 40)
    low_nan = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32).expand(8)
    addend = torch.cat([torch.full((8,), value) for value in (infinity, -infinity, beyond, -beyond)] + [low_nan])[None]
    for step in range(8):
        result = added(weights, addend, step=step)[0]
        assert result[:32].view(4, 8).T.unique(dim=0).tolist() == [[infinity, -infinity, largest, -largest]]
        assert bool(result[32:].isnan().all())


@pytest.mark.parametrize("fraction", [2.0**-16, 0.1, 0.5, 0.9, 1 - 2.0**-16])
@pytest.mark.parametrize("weight", [1.0, -3.0, 2.0**-100, 0.0])
def test_the_mean_of_many_roundings_is_the_value(fraction: float, weight: float, target: str) -> None:
    """Over rows, columns, steps and look-ups; within five standard deviations of a mean of that many draws. Fixed: it holds or does not."""
    spacing = 2.0 ** (np.frexp(weight)[1] - 8) if weight else 2.0**-133
    below = torch.full((256, 512), weight)
    addend = torch.full((256, 512), float(np.copysign(fraction * spacing, weight)))
    ups = torch.stack([(added(below, addend, step=step).double() - weight).abs() / spacing for step in range(4)])
    assert set(ups.unique().tolist()) <= {0.0, 1.0}
    count = ups.numel()
    kept = np.floor(fraction * 2**16) / 2**16  # a chance has 16 bits
    assert abs(float(ups.mean()) - kept) <= 5 * np.sqrt(kept * (1 - kept) / count)
    # A hundred look-ups add up to as many fractions; rounded to the nearest, small ones would leave the weight where it is.
    if weight == 1.0:
        sums = (added(below[:64], addend[:64], lookups=100).double() - weight) / spacing
        assert abs(float(sums.mean()) - 100 * kept) <= 5 * np.sqrt(100 * kept * (1 - kept) / sums.numel())


def test_neighbours_draw_independent_bits(target: str) -> None:
    """Correlation of one chance in two between columns, rows, steps, look-ups and tables: below five standard deviations, 5 / sqrt(count);
    between all of the 16 bits in the reference of the formula."""
    weights = torch.ones(512, 256)
    addend = torch.full((512, 256), 2.0**-8)

    def signs(**changed: int) -> Tensor:
        return (added(weights, addend, **changed) > 1).double() * 2 - 1

    base, limit = signs(), 5 / np.sqrt(512 * 256 / 2)
    pairs = {"columns": (base[:, :-1], base[:, 1:]), "rows": (base[:-1], base[1:]), "lanes": (base[:, :-8], base[:, 8:])}
    pairs |= {"steps": (base, signs(step=1)), "later steps": (base, signs(step=2**32)), "tables": (base, signs(stream=10))}
    for what, (left, right) in pairs.items():
        assert abs(float((left * right).mean())) < limit, what
    # Two look-ups of a row by half a spacing each: in a quarter of the cases neither rounds up, in a quarter both.
    twice = ((added(weights, addend, lookups=2) - 1) * 2**7).round()
    for ups, chance in ((0.0, 0.25), (1.0, 0.5), (2.0, 0.25)):
        assert abs(float((twice == ups).double().mean()) - chance) < limit
    # All 16 bits, of look-ups side by side and of columns side by side.
    words = np.stack([random_bits(9, 0, row, lookup, 64) for row in range(16) for lookup in range(64)])
    bits = (words[..., None] >> np.arange(16, dtype=np.uint32) & 1).astype(np.float64) * 2 - 1
    deviation = 1 / np.sqrt(bits.size / 16)
    assert abs(bits.mean((0, 1))).max() < 5 * deviation
    for left, right in ((bits[:-1], bits[1:]), (bits[:, :-1], bits[:, 1:])):
        products = np.einsum("rci,rcj->ij", left, right) / (left.shape[0] * left.shape[1])
        assert abs(products).max() < 6 * deviation


def test_what_does_not_fit_is_refused() -> None:
    upper = torch.zeros(4, 16, dtype=torch.int16)
    with pytest.raises(ValueError, match="streams must have one number a table, got 2"):
        kernels.EmbeddingTables.rounded([upper], [1, 2])
    with pytest.raises(TypeError):
        kernels.EmbeddingTables.rounded([upper.float()], [1])  # type: ignore[list-item]
    handle = kernels.EmbeddingTables.rounded([upper], [1])
    with pytest.raises(ValueError, match="tables of bf16 cannot be updated by strategy atomic"):
        handle.update(torch.tensor([0]), torch.tensor([0, 1]), torch.ones(1, 1, 16), 0.1, None, False, "atomic", 0, 1)
