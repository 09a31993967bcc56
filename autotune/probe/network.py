"""The network between the ranks, measured: every operation and form by message size, by number of ranks, beside computation.

All ranks run it together, in the same order. A sample is several calls in a row, until the slowest rank has all its data: a network
that lets a burst through at once shows its lasting rate. Which numbers of calls, rounds and sizes fit the time is rank 0's decision.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.rounds import EachRound, Round, Turn, run_rounds
from autotune.config.network import InterfaceRate, Network, NetworkPoint, Operation, Together
from autotune.config.partition import ALL_TO_ALL_FORMS, CommunicationKnobs
from autotune.ops.all_to_all import AllToAll, Exchange
from autotune.probe.fit import fits
from autotune.probe.interfaces import hosts, rates
from autotune.ranks.environment import interface
from autotune.units import format_bytes, format_time

_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 22, 1 << 24)
"""Bytes that one rank sends: from a message of latency alone to one of bandwidth alone."""
_PILOT_BYTES = 1 << 18
_LONGEST_S = 0.3
"""No single transfer is to take longer: over a slow network the largest sizes would take minutes."""
_LEAST_SIZES = 3
_PARTS = 4
"""Table parts a rank, for the form that scatters each of them."""
_ROUNDS = 7
_LEAST_ROUNDS = 3
_SAMPLE_S = 0.02
_MAX_CALLS = 32
_TOGETHER_BYTES = 1 << 23
_GEMM = 384


@dataclass(frozen=True)
class _Transfer:
    """One call of one operation, made on every rank of its group."""

    operation: Operation
    form: str
    ranks: int
    message_bytes: int
    messages: int
    call: Callable[[], object] | None
    """None on a rank outside the group."""


def measure_network(backend: str = "gloo", *, budget_s: float = 12.0, progress: Progress = NO_PROGRESS) -> Network:
    """Measure the network among all ranks. torch.distributed must be initialised; every rank calls it.

    Args:
        backend: In use; for the record.
        budget_s: Seconds, about; the numbers of calls and rounds follow. Three rounds always run.

    Raises:
        MachineError: see `ranks.group.joined`: a peer was lost.
    """
    begin_s = time.monotonic()
    ranks = dist.get_world_size()
    notes: list[str] = []
    progress.phase("measuring the network", float(_ROUNDS))
    candidates = rates(backend)
    sizes = _affordable(ranks)
    if len(sizes) < len(_SIZES):
        notes.append(f"messages of more than {format_bytes(sizes[-1])} were left out: each would take over {format_time(_LONGEST_S)}")
    transfers = _transfers(ranks, sizes, notes)
    calls = [_calls(transfer) for transfer in transfers]

    def report(finished: Round) -> None:
        progress.advance(float(finished.counts), f"round {finished.number} of {_ROUNDS}")

    measured = run_rounds(
        {str(i): slowest_turn(transfer.call, calls[i]) for i, transfer in enumerate(transfers)},
        max_rounds=_ROUNDS,
        budget_s=budget_s - (time.monotonic() - begin_s),
        min_rounds=_LEAST_ROUNDS,
        warmup=0,
        observers=(NoiseMonitor(processes=_processes()), EachRound(report)),
        decide=_decided,
    )
    if measured.counted < _ROUNDS:
        notes.append(f"the time of {budget_s:g} s ended after {measured.counted} rounds")
    notes += measured.notes
    points = tuple(
        NetworkPoint(
            operation=transfer.operation,
            form=transfer.form,
            ranks=transfer.ranks,
            message_bytes=transfer.message_bytes,
            messages=transfer.messages,
            time_s=measured.samples[str(i)].median_s,
        )
        for i, transfer in enumerate(transfers)
    )
    return Network(
        backend=backend,
        interface=interface(),
        ranks=ranks,
        hosts=hosts(),
        interfaces=_marked(candidates),
        points=points,
        fits=fits(points),
        together=_together(ranks),
        notes=tuple(notes),
    )


def _marked(candidates: Sequence[InterfaceRate]) -> tuple[InterfaceRate, ...]:
    used = os.environ.get("GLOO_SOCKET_IFNAME")
    return tuple(one.model_copy(update={"used": one.name == used}) for one in candidates)


def _affordable(ranks: int) -> tuple[int, ...]:
    """The sizes that this network moves in reasonable time, the same on every rank; three at the least."""
    pilot = _exchange("native", ranks, _PILOT_BYTES, None, True)
    pilot_s = min(_time(pilot.call, 1) for _ in range(3))
    fitting = sum(size / _PILOT_BYTES * pilot_s <= _LONGEST_S for size in _SIZES)
    return _SIZES[: max(_LEAST_SIZES, fitting)]


def _transfers(ranks: int, sizes: Sequence[int], notes: list[str]) -> list[_Transfer]:
    """Every operation, form and size, among 2, 4, 8 ... and all ranks."""
    counts = sorted({1 << i for i in range(1, ranks.bit_length()) if 1 << i < ranks} | {ranks})
    found: list[_Transfer] = []
    for count in counts:
        # Every rank must take part in making a group, also those outside it.
        group = None if count == ranks else dist.new_group(list(range(count)))
        inside = dist.get_rank() < count
        for size in sizes:
            found += [_exchange(form, count, size, group, inside) for form in ALL_TO_ALL_FORMS]
            found += _reductions(count, size, group, inside, notes)
    for size in sizes:
        found.append(_Transfer("point_to_point", "", 2, size, 1, _ping_pong(size)))
    return found


def _exchange(form: Any, ranks: int, size: int, group: Any, inside: bool) -> _Transfer:
    """An all-to-all of fp32 in which every rank sends about `size` bytes."""
    knobs = CommunicationKnobs(all_to_all=form)
    width = max(1, round(size / (4 * (ranks - 1) * _PARTS)))
    bounds, slots = tuple(range(ranks + 1)), ((width,) * _PARTS,) * ranks
    rank = min(dist.get_rank(), ranks - 1)
    exchange = Exchange("forward", bounds, slots, rank, knobs, group)
    work = AllToAll("", "forward", bounds, slots, rank, knobs).work()

    def call() -> None:
        exchange.start()
        exchange.wait()

    return _Transfer("all_to_all", form, ranks, work.message_bytes, work.messages, call if inside else None)


def _reductions(ranks: int, size: int, group: Any, inside: bool, notes: list[str]) -> list[_Transfer]:
    """An all-reduce moves 2 (W-1)/W of its array through every rank, a reduce-scatter half of that."""
    count = max(ranks, round(size * ranks / (2 * (ranks - 1)) / 4) // ranks * ranks)
    sent = 4 * count * (ranks - 1) // ranks
    whole, part = torch.zeros(count), torch.zeros(count // ranks)
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # renamed in torch 2.13

    def all_reduce() -> None:
        dist.all_reduce(whole, group=group)

    def reduce_scatter() -> None:
        scatter(part, whole, group=group)

    found = [_Transfer("all_reduce", "", ranks, 2 * sent, 2 * (ranks - 1), all_reduce if inside else None)]
    try:
        if inside:
            reduce_scatter()
    except (RuntimeError, ValueError) as error:
        # What a backend lacks it lacks on every rank, and says at once.
        note = f"no reduce-scatter in this backend: {str(error).splitlines()[0]}"
        notes += [] if note in notes else [note]
        return found
    return [*found, _Transfer("reduce_scatter", "", ranks, sent, ranks - 1, reduce_scatter if inside else None)]


def _ping_pong(size: int) -> Callable[[], None] | None:
    """Rank 0 to rank 1, one way. The receiver's answer, a few bytes, ends it."""
    rank = dist.get_rank()
    if rank > 1:
        return None
    data, answer = torch.zeros(size, dtype=torch.uint8), torch.zeros(1)

    def call() -> None:
        if rank == 0:
            dist.send(data, 1)
            dist.recv(answer, 1)
        else:
            dist.recv(data, 0)
            dist.send(answer, 0)

    return call


def _time(call: Callable[[], object] | None, calls: int) -> float:
    """Seconds a call of the slowest rank, the same on every rank."""
    dist.barrier()
    begin_s = time.perf_counter()
    if call is not None:
        for _ in range(calls):
            call()
    taken = torch.tensor([(time.perf_counter() - begin_s) / calls], dtype=torch.float64)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    return float(taken)


def slowest_turn(call: Callable[[], object] | None, calls: int = 1) -> Turn:
    """A turn that every rank takes at once, of as long as the slowest rank takes for a call."""
    return lambda: (_time(call, calls),)


def _processes() -> list[int]:
    """The ranks of this host, whose load is not foreign."""
    own = (socket.gethostname(), os.getpid())
    ranks: list[tuple[str, int]] = [own] * dist.get_world_size()
    dist.all_gather_object(ranks, own)
    return [process for host, process in ranks if host == own[0]]


def _calls(transfer: _Transfer) -> int:
    """Calls that make a sample long enough; the same on every rank, since the time is."""
    _time(transfer.call, 1)
    return max(1, min(_MAX_CALLS, round(_SAMPLE_S / _time(transfer.call, 1))))


def _decided(value: bool) -> bool:
    """Rank 0's word, everywhere."""
    word = torch.tensor([int(value)])
    dist.broadcast(word, 0)
    return bool(word)


def _together(ranks: int) -> Together:
    """Matrix products alone, an all-to-all alone, and both; medians over the rounds, of the slowest rank."""
    exchange_of = _TOGETHER_BYTES // (4 * (ranks - 1))
    exchange = Exchange("forward", tuple(range(ranks + 1)), [[exchange_of]] * ranks, dist.get_rank(), CommunicationKnobs())
    a, b, out = torch.ones(_GEMM, _GEMM), torch.ones(_GEMM, _GEMM), torch.empty(_GEMM, _GEMM)

    def talk() -> None:
        exchange.start()
        exchange.wait()

    def compute() -> None:
        for _ in range(products):
            torch.mm(a, b, out=out)

    products = 1
    once_s = min(_time(compute, 1) for _ in range(3))
    # As long as the transfer: what is hidden is then seen best.
    products = max(1, min(1000, round(min(_time(talk, 1) for _ in range(3)) / once_s)))
    inner: list[float] = []

    def both() -> None:
        exchange.start()
        begin_s = time.perf_counter()
        compute()
        inner.append(time.perf_counter() - begin_s)
        exchange.wait()

    turns = {"compute": slowest_turn(compute), "talk": slowest_turn(talk), "both": slowest_turn(both)}
    samples = run_rounds(turns, max_rounds=_ROUNDS, warmup=0).samples
    within = torch.tensor([statistics.median(inner)], dtype=torch.float64)
    dist.all_reduce(within, op=dist.ReduceOp.MAX)
    return Together(
        compute_s=samples["compute"].median_s,
        transfer_s=samples["talk"].median_s,
        both_s=samples["both"].median_s,
        compute_while_talking_s=float(within),
    )
