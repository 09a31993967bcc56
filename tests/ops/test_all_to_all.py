"""What all-to-alls are said to send, and what they send."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autotune.config.model import Model, Table
from autotune.config.partition import ALL_TO_ALL_FORMS, AllToAllForm, CommunicationKnobs, Partition, Placement
from autotune.dlrm.schedule import schedule
from autotune.ops import all_to_all
from autotune.ops.all_to_all import AllToAll, Direction, Exchange, sample_bounds

SLOTS = ((8, 4), (16,), ())
"""Widths of 12, 16 and 0 columns."""


def operator(
    direction: Direction, rank: int, form: AllToAllForm = "native", wire: str = "fp32", samples: int = 7, slots: Any = SLOTS
) -> AllToAll:
    knobs = CommunicationKnobs.model_validate({"all_to_all": form, "wire_dtype": wire})
    return AllToAll("all_to_all", direction, sample_bounds(samples, len(slots)), slots, rank, knobs)


class Transfers:
    """Stands in for torch.distributed: counts the messages and bytes that this rank would send to others."""

    def __init__(self, rank: int) -> None:
        self.rank, self.messages, self.sent_bytes = rank, 0, 0

    def wait(self) -> None:
        pass

    def _send(self, sizes: Sequence[int]) -> Transfers:
        others = [size for to, size in enumerate(sizes) if to != self.rank and size]
        self.messages += len(others)
        self.sent_bytes += sum(others)
        return self

    def all_to_all_single(
        self, received: torch.Tensor, sent: torch.Tensor, received_sizes: list[int], sent_sizes: list[int], **_: Any
    ) -> Transfers:
        assert (received.numel(), sent.numel()) == (sum(received_sizes), sum(sent_sizes))
        return self._send(sent_sizes)

    def scatter(self, received: torch.Tensor, pieces: list[torch.Tensor] | None, src: int, **_: Any) -> Transfers:
        return self._send([piece.numel() for piece in pieces or ()])

    def gather(self, sent: torch.Tensor, pieces: list[torch.Tensor] | None, dst: int, **_: Any) -> Transfers:
        return self._send([sent.numel() if to == dst else 0 for to in range(dst + 1)])


def transferred(exchange: AllToAll, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Messages and bytes that the operator's `Exchange` hands to the network."""
    transfers = Transfers(exchange.rank)
    monkeypatch.setattr(all_to_all, "dist", transfers)
    moved = Exchange(exchange.direction, exchange.bounds, exchange.slots, exchange.rank, exchange.knobs)
    moved.start()
    moved.wait()
    return transfers.messages, transfers.sent_bytes


@pytest.mark.parametrize(
    ("direction", "rank", "messages", "sent_bytes"),
    [
        ("forward", 0, 2, 4 * 5 * 12),  # samples are 2, 2 and 3
        ("forward", 1, 2, 4 * 5 * 16),
        ("forward", 2, 0, 0),
        ("backward", 0, 1, 4 * 2 * 16),
        ("backward", 1, 1, 4 * 2 * 12),
        ("backward", 2, 2, 4 * 3 * 28),
    ],
)
def test_bytes_and_messages_of_uneven_samples(direction: Direction, rank: int, messages: int, sent_bytes: int) -> None:
    work = operator(direction, rank).work()
    assert (work.operation, work.form, work.messages, work.message_bytes) == ("all_to_all", "native", messages, sent_bytes)


@pytest.mark.parametrize("form", ["fused_scatter", "scatter_list"])
@pytest.mark.parametrize(
    ("direction", "rank", "sent_bytes"),
    [("forward", 0, 4 * 6 * 12), ("forward", 1, 4 * 6 * 16), ("forward", 2, 0), ("backward", 0, 4 * 3 * 16), ("backward", 2, 4 * 3 * 28)],
)
def test_scatters_of_uneven_samples_are_padded_to_the_largest_share(
    direction: Direction, rank: int, sent_bytes: int, form: AllToAllForm
) -> None:
    """Samples are 2, 2 and 3: every block travels as 3 rows."""
    assert operator(direction, rank, form).work().message_bytes == sent_bytes


def test_bf16_halves_the_bytes_on_the_network() -> None:
    assert operator("forward", 0, wire="bf16").work().message_bytes == 2 * 5 * 12
    assert operator("backward", 2, wire="bf16").work().message_bytes == 2 * 3 * 28


def test_a_scatter_list_sends_a_message_for_every_part() -> None:
    assert [operator("forward", rank, "scatter_list").work().messages for rank in range(3)] == [4, 2, 0]
    assert [operator("backward", rank, "scatter_list").work().messages for rank in range(3)] == [1, 2, 3]


def test_copies_in_memory_are_fp32_of_all_columns() -> None:
    forward, backward = operator("forward", 0, wire="bf16").work(), operator("backward", 0, wire="bf16").work()
    assert (forward.bytes_read, forward.bytes_written) == (4 * 7 * 12, 4 * 2 * 28)
    assert (backward.bytes_read, backward.bytes_written) == (4 * 2 * 28, 4 * 7 * 12)


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
@pytest.mark.parametrize("form", ALL_TO_ALL_FORMS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_work_counts_what_the_exchange_sends(direction: Direction, form: AllToAllForm, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """7 samples are 2, 2 and 3: scatters and gathers are padded."""
    for rank, samples in itertools.product(range(3), (6, 7)):
        exchange = operator(direction, rank, form, wire, samples=samples)
        work = exchange.work()
        assert transferred(exchange, monkeypatch) == (work.messages, work.message_bytes)


@given(
    st.lists(st.lists(st.integers(1, 64), max_size=4).map(tuple), min_size=2, max_size=5).map(tuple),
    st.integers(5, 40),
    st.sampled_from(["forward", "backward"]),
)
def test_everything_sent_arrives_in_either_direction(slots: tuple[tuple[int, ...], ...], samples: int, direction: Direction) -> None:
    """All samples of all columns travel but those that are at home: sum over ranks of (N - n) x own width."""
    bounds = sample_bounds(samples, len(slots))
    sent = [operator(direction, rank, samples=samples, slots=slots).work().message_bytes for rank in range(len(slots))]
    away = [samples - (bounds[rank + 1] - bounds[rank]) for rank in range(len(slots))]
    assert sum(sent) == 4 * sum(count * sum(widths) for count, widths in zip(away, slots, strict=True))


@pytest.mark.parametrize("samples", [16, 17])
def test_gradients_of_sparsely_reduced_replicas_are_counted_as_they_are_sent(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank needs the pooled gradients of all samples of such a table: 16 columns more to every other rank."""
    model = Model(
        schema=1, name="replicas", source="t", description="t", minibatch=samples, bottom_mlp=(3, 16), top_mlp=(1,),
        tables=tuple(Table(rows=rows, dim=16, pooling=1) for rows in (100, 200, 3)),
    )  # fmt: skip
    replicas = Placement(kind="replicated")
    partition = Partition(ranks=3, tables=(Placement(kind="table_wise", ranks=(1,)), replicas, replicas))
    for rank in range(3):
        steps = schedule(model, partition, rank)
        exchange = steps.operators[all_to_all.BACKWARD]
        assert isinstance(exchange, AllToAll)
        own = steps.samples[1] - steps.samples[0]
        others = sum(16 * (2 if r == 1 else 1) for r in range(3) if r != rank)
        assert exchange.work().message_bytes == 4 * own * others
        assert transferred(exchange, monkeypatch) == (2, 4 * own * others)
        buffers = {buffer.name: buffer.size_bytes for each in steps.passes for buffer in each.touches}
        moved = Exchange(exchange.direction, exchange.bounds, exchange.slots, rank, exchange.knobs)
        assert buffers["exchange.backward.owned"] == 4 * moved.owned.numel()
        assert buffers["exchange.backward.blocks"] == 4 * sum(block.numel() for block in moved.blocks)
