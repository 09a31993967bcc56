"""Tables with their storage and optimizer: the same weights in either storage, Adagrad against torch's, cases that change nothing."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from autotune.config.profile import Topology
from autotune.errors import InputError
from autotune.ops.base import Work
from autotune.ops.embedding_case import EmbeddingCase
from autotune.ops.embedding_tables import EmbeddingBags, EmbeddingForwardKnobs, EmbeddingUpdateKnobs, Lookups, strategies
from autotune.ops.functional import FusedEmbeddingBags
from autotune.ops.table_alone import tables_alone

ROWS, DIM, SAMPLES = (70000, 9, 300), 12, 40
CHOICES = list(itertools.product(("fp32", "bf16"), ("sgd", "adagrad")))
STORED = [(*choice, "split") for choice in CHOICES] + [("bf16", optimizer, "stochastic") for optimizer in ("sgd", "adagrad")]


def lookups_of(seed: int) -> Lookups:
    """Several look-ups a bag, some bags empty, many rows met again."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (len(ROWS) * SAMPLES,), generator=generator)
    counts = lengths.view(len(ROWS), SAMPLES).sum(1).tolist()
    drawn = [torch.randint(min(rows, 20), (count,), generator=generator) for rows, count in zip(ROWS, counts, strict=True)]
    return Lookups(torch.cat(drawn), torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]))


def tables_of(bags: EmbeddingBags) -> list[torch.Tensor]:
    return [bags.table(t).clone() for t in range(len(bags.rows))]


@pytest.mark.parametrize("huge_pages", [False, True])
def test_split_tables_begin_train_and_move_as_fp32_ones_do(huge_pages: bool) -> None:
    for optimizer in ("sgd", "adagrad"):
        whole, split = (
            EmbeddingBags(ROWS, DIM, huge_pages=huge_pages, seed=3, dtype=dtype, optimizer=optimizer) for dtype in ("fp32", "bf16")
        )
        for step in range(3):
            assert all(map(torch.equal, tables_of(split), tables_of(whole)))
            gradient = torch.randn(SAMPLES, len(ROWS), DIM, generator=torch.Generator().manual_seed(step))
            for bags in (whole, split):
                bags.update(lookups_of(step), gradient, 0.1, EmbeddingUpdateKnobs(), 2)
            split.move(huge_pages == (step % 2 == 1), 2)
        for t in range(len(ROWS)):
            states = [bags.state(t) for bags in (whole, split)]
            assert (states[0] is None) == (optimizer == "sgd")
            assert states[0] is None or torch.equal(*states)


def test_the_forward_pass_of_split_tables_reads_bf16() -> None:
    split, lookups = EmbeddingBags(ROWS, DIM, seed=3, dtype="bf16"), lookups_of(1)
    truncated = EmbeddingBags.of([(t.view(torch.int32) & -65536).view(torch.float32) for t in tables_of(split)])
    outs = [torch.empty(SAMPLES, len(ROWS), DIM) for _ in range(2)]
    for bags, out in zip((split, truncated), outs, strict=True):
        bags.forward(lookups, out, EmbeddingForwardKnobs(), 2)
    assert torch.equal(*outs)


def test_existing_tables_are_split_by_copying_and_loaded_back_to_the_bit() -> None:
    weights = [torch.randn(rows, DIM, generator=torch.Generator().manual_seed(rows)) for rows in ROWS]
    weights[1][0, :4] = torch.tensor([float("inf"), float("nan"), -0.0, 1e-42])
    split = EmbeddingBags.of(weights, dtype="bf16", optimizer="adagrad")
    assert split.dtype == "bf16"
    for t, table in enumerate(weights):
        assert torch.equal(split.table(t).view(torch.int32), table.view(torch.int32))
        split.load(t, table.flip(0))
        split.load_state(t, torch.full((len(table),), 2.5))
        assert torch.equal(split.table(t).view(torch.int32), table.flip(0).view(torch.int32))
        assert bool((split.state(t) == 2.5).all())
    with pytest.raises(InputError, match=r"dtype bf16.*table\(t\)"):
        _ = split.weights
    whole = EmbeddingBags.of(weights)
    whole.load(1, torch.zeros(ROWS[1], DIM))
    assert not weights[1].any()


def test_what_does_not_fit_is_refused() -> None:
    bags = EmbeddingBags(ROWS, DIM)
    with pytest.raises(InputError, match=r"shape \[9, 12\], got \[8, 12\] \(table 1\)"):
        bags.load(1, torch.zeros(8, 12))
    with pytest.raises(InputError, match="only Adagrad"):
        bags.load_state(0, torch.zeros(ROWS[0]))
    with pytest.raises(InputError, match=r"shape \[300\]"):
        EmbeddingBags(ROWS, DIM, optimizer="adagrad").load_state(2, torch.zeros(3))
    with pytest.raises(InputError, match="stochastic storage needs tables of dtype bf16, got fp32"):
        EmbeddingBags(ROWS, DIM, storage="stochastic")
    for wrong in ({"dtype": "fp16"}, {"optimizer": "adam"}, {"storage": "half"}):
        with pytest.raises(InputError, match="must be one of"):
            EmbeddingBags(ROWS, DIM, **wrong)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("strategy", strategies("bf16", "adagrad"))
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_adagrad_of_one_column_is_that_of_torch(dtype: str, strategy: str) -> None:
    """Row-wise and element-wise are one where a row is one element; torch coalesces a sparse gradient as the fused update does."""
    rows = 30
    bags = EmbeddingBags([rows], 1, seed=2, dtype=dtype, optimizer="adagrad")
    plain = torch.nn.EmbeddingBag(rows, 1, mode="sum", sparse=True)
    with torch.no_grad():
        plain.weight.copy_(bags.table(0))
    optimizer = torch.optim.Adagrad(plain.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        indices, offsets = torch.randint(rows, (90,), generator=generator), torch.arange(0, 91, 9)
        gradient = torch.randn(10, 1, 1, generator=generator)
        optimizer.zero_grad()
        plain(indices, offsets[:-1]).backward(gradient[:, 0])
        optimizer.step()
        bags.update(Lookups(indices, offsets), gradient, 0.1, EmbeddingUpdateKnobs(strategy=strategy), 2)
        torch.testing.assert_close(bags.state(0)[:, None], optimizer.state[plain.weight]["sum"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(bags.table(0), plain.weight.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "optimizer", "storage"), STORED)
def test_every_candidate_passes_its_check_and_timing_changes_nothing(topology: Topology, dtype: str, optimizer: str, storage: str) -> None:
    bags = EmbeddingBags(ROWS, DIM, dtype=dtype, optimizer=optimizer, storage=storage)
    if optimizer == "adagrad":
        for t, rows in enumerate(ROWS):
            bags.load_state(t, torch.rand(rows, generator=torch.Generator().manual_seed(t)))
    before = {name: array.clone() for name, array in bags.arrays().items()}
    batches = [lookups_of(0), lookups_of(1)]
    first = next(tables_alone(bags, range(len(ROWS)), batches, SAMPLES))
    for operator, update in ((first.forward, False), (first.update, True)):
        case, candidates = EmbeddingCase(bags, batches, SAMPLES, 1, False, update=update), operator.candidates(topology, 2)
        assert operator.default(2) in candidates
        for knobs in candidates:
            assert not isinstance(knobs, EmbeddingUpdateKnobs) or knobs.strategy in strategies(dtype, optimizer)
            check = case.check(knobs, 2)
            assert check.passed, (knobs, check)
            case.run(knobs, 2)
    assert all(torch.equal(array, before[name]) for name, array in bags.arrays().items())


def test_a_split_forward_moves_half_the_row_bytes_and_adagrad_adds_its_state() -> None:
    lookups = lookups_of(0)
    forward, update = (
        {
            (dtype, optimizer): functools.reduce(
                Work.__add__, (getattr(table, which).work() for table in tables_alone(bags, range(len(ROWS)), [lookups], SAMPLES))
            )
            for dtype, optimizer in CHOICES
            for bags in [EmbeddingBags(ROWS, DIM, dtype=dtype, optimizer=optimizer)]
        }
        for which in ("forward", "update")
    )
    for optimizer in ("sgd", "adagrad"):
        whole, split = forward["fp32", optimizer], forward["bf16", optimizer]
        unique = sum(rows.unique for rows in whole.rows)
        assert whole.bytes_read - split.bytes_read == unique * DIM * 2
        assert (split.rows[0].row_bytes, split.rows[0].table_bytes) == (DIM * 2, ROWS[0] * DIM * 2)
        assert split.bytes_written == whole.bytes_written == SAMPLES * len(ROWS) * DIM * 4
    for dtype in ("fp32", "bf16"):
        assert [update[dtype, optimizer].rows[0].row_bytes for optimizer in ("sgd", "adagrad")] == [DIM * 4, DIM * 4 + 4]
        assert update[dtype, "adagrad"].bytes_written - update[dtype, "sgd"].bytes_written == unique * 4


def test_stochastic_tables_move_half_the_row_bytes_in_both_passes() -> None:
    for optimizer in ("sgd", "adagrad"):
        whole, rounded = (
            next(tables_alone(EmbeddingBags(ROWS, DIM, optimizer=optimizer, **of), range(len(ROWS)), [lookups_of(0)], SAMPLES))
            for of in ({}, {"dtype": "bf16", "storage": "stochastic"})
        )
        for which in ("forward", "update"):
            plain, half = getattr(whole, which).work(), getattr(rounded, which).work()
            assert plain.bytes_read - half.bytes_read == plain.rows[0].unique * DIM * 2
            assert plain.rows[0].row_bytes - half.rows[0].row_bytes == DIM * 2
            assert plain.rows[0].table_bytes - half.rows[0].table_bytes == ROWS[0] * DIM * 2


def stochastic(optimizer: str = "sgd", seed: int = 3) -> EmbeddingBags:
    return EmbeddingBags(ROWS, DIM, seed=seed, dtype="bf16", storage="stochastic", optimizer=optimizer)


def gradient_of(step: int) -> torch.Tensor:
    return torch.randn(SAMPLES, len(ROWS), DIM, generator=torch.Generator().manual_seed(step))


def test_stochastic_tables_begin_rounded_to_the_nearest_and_load_back_to_the_bit() -> None:
    bags = stochastic()
    assert (bags.dtype, bags.storage) == ("bf16", "stochastic")
    assert set(bags.arrays()) == {"steps", *(f"upper_{t}" for t in range(len(ROWS)))}
    for t, whole in enumerate(tables_of(EmbeddingBags(ROWS, DIM, seed=3))):
        assert torch.equal(bags.table(t), whole.bfloat16().float())
    bags.update(lookups_of(0), gradient_of(0), 0.1, EmbeddingUpdateKnobs(), 2)
    other = stochastic(seed=4)
    for t, table in enumerate(tables_of(bags)):
        other.load(t, table)
        assert torch.equal(other.table(t), table)
    with pytest.raises(InputError, match=r"dtype bf16.*table\(t\)"):
        _ = bags.weights


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_stochastic_training_is_that_of_its_seed_for_any_team_page_size_and_stop(optimizer: str) -> None:
    plain, moved, other = stochastic(optimizer), stochastic(optimizer), stochastic(optimizer)
    other._streams = stochastic(seed=4)._streams
    other._make_handle()
    for step in range(4):
        for bags, strategy, threads in ((plain, "bucketed", 1), (moved, "race_free_modulo", 3), (other, "bucketed", 1)):
            bags.update(lookups_of(step), gradient_of(step), 0.1, EmbeddingUpdateKnobs(strategy=strategy), threads)
        moved.move(step % 2 == 0, 2)
        if step == 1:
            begun = stochastic(optimizer, seed=9)
            begun._streams = plain._streams
            begun._make_handle()
            for t in range(len(ROWS)):
                begun.load(t, plain.table(t))
                if (state := plain.state(t)) is not None:
                    begun.load_state(t, state)
            begun.continue_from(plain.steps)
        if step >= 2:
            begun.update(lookups_of(step), gradient_of(step), 0.1, EmbeddingUpdateKnobs(), 2)
    assert all(map(torch.equal, tables_of(moved), tables_of(plain)))
    assert all(map(torch.equal, tables_of(begun), tables_of(plain)))
    assert not all(map(torch.equal, tables_of(other), tables_of(plain)))
    assert plain.steps == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_a_dense_step_of_stochastic_tables_is_the_fp32_step_rounded_the_same_in_every_copy(optimizer: str) -> None:
    copies, whole = [stochastic(optimizer) for _ in range(2)], EmbeddingBags(ROWS, DIM, optimizer=optimizer)
    gradients = [torch.randn(rows, DIM, generator=torch.Generator().manual_seed(rows)) for rows in ROWS]
    for t in range(len(ROWS)):
        whole.load(t, copies[0].table(t))
    for threads, bags in enumerate((*copies, whole), 1):
        bags.descend(gradients, 0.01, threads)
    for t in range(len(ROWS)):
        first, second, wide = copies[0].table(t), copies[1].table(t), whole.table(t)
        assert torch.equal(first, second)
        assert bool(((first - wide).abs() <= 2.0**-7 * wide.abs() + 1e-8).all())
        assert not torch.equal(first, wide.bfloat16().float())
    # 840,000 errors, each below a spacing and of mean zero.
    errors = ((copies[0].table(0) - whole.table(0)) / whole.table(0).abs().clamp_min(1e-4)).double()
    assert abs(float(errors.mean())) < 5 * 2.0**-8 / errors.numel() ** 0.5
    assert [bags.steps for bags in (*copies, whole)] == [1, 1, 0]


def test_the_module_takes_storage_and_optimizer_and_saves_both() -> None:
    modules = [FusedEmbeddingBags([50, 9], 16, learning_rate=0.5, dtype=dtype, optimizer="adagrad") for dtype in ("fp32", "bf16")]
    gradient = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))
    for module in modules:
        module(torch.tensor([1, 2, 3, 8, 8, 0]), torch.arange(7)).backward(gradient)
    whole, split = modules
    assert all(torch.equal(whole.bags.table(t), split.bags.table(t)) for t in range(2))
    assert set(split.state_dict()) == {f"{name}_{t}" for name in ("upper", "lower", "state") for t in range(2)}
    fresh = FusedEmbeddingBags([50, 9], 16, learning_rate=0.5, dtype="bf16", optimizer="adagrad")
    fresh.load_state_dict(split.state_dict())
    assert torch.equal(fresh.bags.table(0), split.bags.table(0))
    assert torch.equal(fresh.bags.state(1), whole.bags.state(1))
    begun, continued = (FusedEmbeddingBags([50, 9], 16, learning_rate=0.5, dtype="bf16", storage="stochastic") for _ in range(2))
    for modules in ([begun], [begun, continued]):
        for module in modules:
            module(torch.tensor([1, 2, 3, 8, 8, 0]), torch.arange(7)).backward(gradient)
        continued.load_state_dict(begun.state_dict()) if continued not in modules else None
    assert torch.equal(begun.bags.table(0), continued.bags.table(0))
    assert begun.bags.steps == continued.bags.steps == 2
