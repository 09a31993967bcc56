from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autotune.config.model import Changes, Model, Table
from autotune.config.required_memory import required_memory_bytes
from autotune.errors import InputError


def model(**changes: Any) -> Model:
    values: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "source": "test",
        "description": "test",
        "minibatch": 2048,
        "bottom_mlp": (512, 512, 64),
        "top_mlp": (1024, 1024, 1024, 1),
        "tables": ({"rows": 1_000_000, "dim": 64, "pooling": 50, "count": 8},),
    }
    return Model.model_validate(values | changes)


def test_a_count_repeats_the_table() -> None:
    tables = model().tables
    assert tables == (Table(rows=1_000_000, dim=64, pooling=50),) * 8
    assert model(tables=tables) == model()
    assert model(tables=tables).hash() == model().hash()


def test_derived_sizes_follow_from_the_shape() -> None:
    m = model()
    assert (m.num_tables, m.embedding_dim, m.dense_features, m.num_features) == (8, 64, 512, 9)
    assert (m.top_input, m.top_sizes) == (100, (100, 1024, 1024, 1024, 1))
    assert m.table_bytes == 8 * 1_000_000 * 64 * 4
    assert m.lookups_per_iteration == 2048 * 8 * 50
    weights = 512 * 512 + 512 * 64 + 100 * 1024 + 2 * 1024 * 1024 + 1024
    biases = 512 + 64 + 3 * 1024 + 1
    assert m.dense_parameters == weights + biases
    arrays = m.num_tables + 8 * (len(m.bottom_mlp) + len(m.top_mlp))
    rounding = required_memory_bytes(m) - (m.table_bytes + m.dense_bytes + m.activation_bytes)
    assert 0 <= rounding <= arrays * 2 * 1024**2


@given(st.integers(1, 40), st.integers(1, 64), st.lists(st.integers(1, 50), max_size=3))
def test_top_input_counts_every_pair_or_every_column_once(tables: int, dim: int, hidden: list[int]) -> None:
    shapes: dict[str, Any] = {"bottom_mlp": (3, *hidden, dim), "top_mlp": (1,), "tables": (Table(rows=5, dim=dim),) * tables}
    m, features = model(**shapes), range(tables + 1)
    assert m.top_input == dim + sum(1 for i in features for j in features if j < i)
    assert m.top_sizes[0] == m.top_input
    assert model(**shapes, interaction="dot_with_diagonal").top_input == m.top_input + tables + 1
    assert model(**shapes, interaction="concatenation").top_input == dim + sum(table.dim for table in m.tables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a\nb"}, "name must be printable, on one line"),
        ({"seed": 2**64}, "less than or equal to 4398046511103"),
        ({"tables": ({"rows": 5, "dim": -4},)}, "embedding dim must be positive, got -4"),
        ({"tables": ({"rows": 0, "dim": 64},)}, "rows must be positive, got 0"),
        ({"tables": ({"rows": 5, "dim": 64, "pooling": -1},)}, "pooling factor must not be negative, got -1"),
        ({"tables": ({"rows": 5, "dim": 64, "pooling": 2.5},)}, "a fixed pooling factor must be whole, got 2.5"),
        ({"tables": ({"rows": 5, "dim": 32},)}, r"equal to the last size of bottom_mlp \(64\), got 32"),
        ({"tables": ({"rows": 5, "dim": 64, "count": 0},)}, "count must be positive, got 0"),
        ({"tables": ({"rows": 5, "dim": 64, "count": 10**9},)}, "count must be at most"),
        ({"tables": ({"rows": 5, "dim": 64, "count": 2, "name": "a"},)}, "a named table cannot be repeated, got 2"),
        ({"tables": ({"rows": 5, "dim": 64, "name": "a"},) * 2}, "table names must differ, got 'a'"),
        ({"tables": ({"rows": 3 * 10**9, "dim": 64},), "index_dtype": "int32"}, "int32 indices reach"),
        ({"tables": ()}, "at least one table"),
        ({"top_mlp": (5, 2)}, "last layer of top_mlp must be 1, the click probability, got 2"),
        ({"top_mlp": ()}, "at least one layer"),
        ({"bottom_mlp": (64,)}, "input size and at least one layer"),
        ({"bottom_mlp": (5, 0, 64)}, "layer size must be positive, got 0"),
        ({"minibatch": 0}, "minibatch must be positive, got 0"),
        ({"learning_rate": 0.0}, "learning rate must be positive, got 0"),
        ({"data": {"distribution": "zipf"}}, "zipf distribution needs a positive alpha, got None"),
        ({"data": {"alpha": 1.0}}, "alpha belongs to zipf, not to uniform"),
        ({"data": {"distribution": "criteo"}}, "a criteo distribution reads a file"),
        ({"data": {"path": "x.csv"}}, "a uniform distribution reads no file"),
        ({"interaction": "cat"}, "interaction must be one of dot, dot_with_diagonal, concatenation, got 'cat'"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_an_invalid_model_says_which_rule_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model(**changes)


def test_concatenated_vectors_are_counted_once_in_memory() -> None:
    sizes = {name: model(interaction=name).activation_bytes for name in ("dot", "concatenation")}
    assert sizes["dot"] - sizes["concatenation"] == 2 * 4 * 2048 * model().top_input


def test_a_varying_pooling_factor_may_be_fractional() -> None:
    m = model(data={"pooling_kind": "varying"}, tables=({"rows": 5, "dim": 64, "pooling": 2.5},))
    assert m.lookups_per_iteration == 5120


def test_a_model_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        model().minibatch = 1  # type: ignore[misc]


def test_the_hash_follows_what_is_computed_and_not_the_prose() -> None:
    assert model().hash() == model(source="other", description="other").hash()
    assert len(model().hash()) == 64
    different = [model(), model(minibatch=1), model(seed=1), model(data={"distribution": "zipf", "alpha": 1.1})]
    different.append(model().changed(Changes(max_rows=9)))
    different += [model(interaction="dot_with_diagonal"), model(interaction="concatenation")]
    assert len({m.hash() for m in different}) == len(different)


def test_a_scaled_model_says_so_in_its_name() -> None:
    m = model().changed(Changes(max_rows=10_000, minibatch=64))
    assert m.name == "small[max_rows=10000,minibatch=64]"
    assert {table.rows for table in m.tables} == {10_000}
    assert m.minibatch == 64
    assert Model.model_validate(m.model_dump()) == m


def test_scaling_that_changes_nothing_gives_the_same_model() -> None:
    assert model().changed(Changes(max_rows=10**9, minibatch=2048)) == model()
    assert model().changed(Changes()) == model()


@pytest.mark.parametrize("changes", [{"max_rows": 0}, {"minibatch": -1}])
def test_scaling_to_nothing_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"must be positive, got (0|-1) \(model small\)"):
        model().changed(Changes(**changes))


def test_dtype_and_optimizer_are_changed_by_name_and_decide_the_hash_only_where_they_differ() -> None:
    m = model()
    changed = m.changed(Changes(dtype="bf16", optimizer="adagrad"))
    assert (changed.dtype, changed.optimizer) == ("bf16", "adagrad")
    assert changed.name == f"{m.name}[dtype=bf16,optimizer=adagrad]"
    assert m.changed(Changes(dtype="fp32", optimizer="sgd")) == m
    assert len({m.hash(), m.changed(Changes(dtype="bf16")).hash(), m.changed(Changes(optimizer="adagrad")).hash()}) == 3
    # Half the packed copies; a state element for every dense parameter and one for every row.
    assert m.changed(Changes(dtype="bf16")).dense_bytes == 12 * m.dense_parameters
    assert changed.dense_bytes == 16 * m.dense_parameters
    assert (m.state_bytes, changed.state_bytes) == (0, 4 * sum(table.rows for table in m.tables))
    with pytest.raises(InputError, match="dtype must be one of fp32, bf16, got 'fp16'"):
        m.changed(Changes(dtype="fp16"))


def test_stochastic_tables_are_of_bf16_alone_take_half_the_memory_and_are_told_apart() -> None:
    m = model()
    split, stochastic = (m.changed(Changes(dtype="bf16", table_storage=storage)) for storage in ("split", "stochastic"))
    assert stochastic.name == "small[dtype=bf16,table_storage=stochastic]"
    assert split == m.changed(Changes(dtype="bf16"))
    assert stochastic.hash() != split.hash()
    assert Model.model_validate(stochastic.model_dump()) == stochastic
    assert (stochastic.table_bytes, stochastic.dense_bytes) == (split.table_bytes // 2, split.dense_bytes)
    saved = required_memory_bytes(split) - required_memory_bytes(stochastic)
    assert 0 <= saved - stochastic.table_bytes <= 3 * m.num_tables * 2**21  # two pages of the lower halves, and one that is not filled
    # fp32 has one storage: whoever asks for fp32 alone, gets it.
    assert stochastic.changed(Changes(dtype="fp32")).table_storage == "split"
    with pytest.raises(InputError, match="table_storage stochastic needs dtype bf16, got fp32"):
        m.changed(Changes(table_storage="stochastic"))
    with pytest.raises(InputError, match="table_storage must be one of split, stochastic, got 'half'"):
        m.changed(Changes(dtype="bf16", table_storage="half"))
    with pytest.raises(ValidationError, match="table_storage stochastic needs dtype bf16"):
        model(table_storage="stochastic")
