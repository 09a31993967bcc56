"""Buckets of gradients and what their reduction moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autotune.catalog import load_model_by_name
from autotune.config.knobs import FixedKnobs, RunConfig
from autotune.ops.all_reduce import AllReduce, Gradient, buckets, padded_elements
from autotune.ops.memory import Memory, World

SHAPES = st.lists(st.one_of(st.tuples(st.integers(1, 300)), st.tuples(st.integers(1, 60), st.integers(1, 60))), min_size=1, max_size=12)


def gradients_of(shapes: list[tuple[int, ...]]) -> list[Gradient]:
    return [(f"gradient.{i}", shape) for i, shape in enumerate(shapes)]


@given(SHAPES, st.integers(1, 20_000))
def test_every_gradient_is_in_one_bucket_and_every_bucket_but_the_last_is_full(shapes: list[tuple[int, ...]], bucket_bytes: int) -> None:
    gradients = gradients_of(shapes)
    groups = list(buckets(gradients, bucket_bytes))
    assert [gradient for group in groups for gradient in group] == gradients
    sizes = [[4 * padded_elements(shape) for _, shape in group] for group in groups]
    assert all(sum(group) >= bucket_bytes for group in sizes[:-1])
    assert all(sum(group[:-1]) < bucket_bytes for group in sizes)  # closed as soon as it is full


@given(SHAPES)
def test_gradients_are_aligned_views_side_by_side_in_one_array(shapes: list[tuple[int, ...]]) -> None:
    gradients = gradients_of(shapes)
    operator = AllReduce("all_reduce", 0, tuple(gradients), 2)
    memory = Memory(load_model_by_name("tiny"), World(), 0, 1)
    operator.prepare(memory, FixedKnobs(), RunConfig(threads=1))
    flat: torch.Tensor = memory.modules["bucket.0"]
    assert 4 * flat.numel() == operator.size_bytes
    end = flat.data_ptr()
    for name, shape in gradients:
        view = memory.buffers[name]
        assert view.shape == shape
        assert view.is_contiguous()
        assert end <= view.data_ptr() < end + 64
        assert (view.data_ptr() - flat.data_ptr()) % 64 == 0
        end = view.data_ptr() + 4 * view.numel()
    assert end <= flat.data_ptr() + operator.size_bytes


@pytest.mark.parametrize(("ranks", "messages", "moved"), [(2, 2, 576), (3, 4, 768), (4, 6, 864)])
def test_a_ring_moves_every_part_twice_through_all_other_ranks(ranks: int, messages: int, moved: int) -> None:
    """Gradients of 1, 100 and 16 floats take 16 + 112 + 16 places, 576 bytes."""
    work = AllReduce("all_reduce", 0, (("loss", (1,)), ("w", (10, 10)), ("b", (16,))), ranks).work()
    assert (work.operation, work.messages, work.message_bytes) == ("all_reduce", messages, moved)
    assert (work.flops, work.bytes_read, work.bytes_written) == (144, 576, 576)
