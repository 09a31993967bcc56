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
from functools import partial
from typing import Any

import torch

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.rounds import EachRound, Turn, run_rounds
from autotune.config.network import Network, NetworkPoint, Together
from autotune.config.partition import ALL_TO_ALL_FORMS, CommunicationKnobs
from autotune.ops.all_to_all import AllToAll, Exchange
from autotune.ops.native import dist
from autotune.probing.fit import fits
from autotune.probing.interface_rates import hosts, rates
from autotune.ranks import group
from autotune.ranks.interfaces import VARIABLE, interface
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


Call = Callable[[], object] | None
"""One transfer, made on every rank of its group; None on a rank outside the group."""
_Transfer = tuple[partial[NetworkPoint], Call]
"""A transfer, and its point without the time."""


def measure_network(backend: str = "gloo", *, budget_s: float = 12.0, progress: Progress = NO_PROGRESS) -> Network:
    """Measure the network among all ranks. torch.distributed must be initialised; every rank calls it.

    Args:
        backend: In use; for the record.
        budget_s: Seconds, about; the numbers of calls and rounds follow. Three rounds always run.

    Raises:
        MachineError: see `ranks.group.joined`: a peer was lost.
    """
    begin_s = time.monotonic()
    ranks = group.size()
    notes: list[str] = []
    progress.phase("measuring the network", float(_ROUNDS))
    candidates = rates(backend)
    sizes = _affordable(ranks)
    if len(sizes) < len(_SIZES):
        notes.append(f"messages of more than {format_bytes(sizes[-1])} were left out: each would take over {format_time(_LONGEST_S)}")
    transfers = _transfers(ranks, sizes, notes)
    report = EachRound(lambda finished: progress.advance(float(finished.counts), f"round {finished.number} of {_ROUNDS}"))
    measured = run_rounds(
        {str(i): slowest_turn(call, _calls(call)) for i, (_, call) in enumerate(transfers)},
        max_rounds=_ROUNDS,
        budget_s=budget_s - (time.monotonic() - begin_s),
        min_rounds=_LEAST_ROUNDS,
        warmup=0,
        observers=(NoiseMonitor(processes=_processes()), report),
        decide=group.broadcast,
    )
    if measured.counted < _ROUNDS:
        notes.append(f"the time of {budget_s:g} s ended after {measured.counted} rounds")
    notes += measured.notes
    times_s = [samples.median_s for samples in measured.samples.values()]
    points = tuple(point(time_s=time_s) for (point, _), time_s in zip(transfers, times_s, strict=True))
    used = os.environ.get(VARIABLE)
    return Network(
        backend=backend,
        interface=interface(),
        ranks=ranks,
        hosts=hosts(),
        interfaces=tuple(candidate.model_copy(update={"used": candidate.name == used}) for candidate in candidates),
        points=points,
        fits=fits(points),
        together=_together(ranks),
        notes=tuple(notes),
    )


def _affordable(ranks: int) -> tuple[int, ...]:
    """The sizes that this network moves in reasonable time, the same on every rank; three at the least."""
    _, pilot = _exchange("native", ranks, _PILOT_BYTES, None, True)
    pilot_s = min(_time(pilot, 1) for _ in range(3))
    fitting = sum(size / _PILOT_BYTES * pilot_s <= _LONGEST_S for size in _SIZES)
    return _SIZES[: max(_LEAST_SIZES, fitting)]


def _transfers(ranks: int, sizes: Sequence[int], notes: list[str]) -> list[_Transfer]:
    """Every operation, form and size, among 2, 4, 8 ... and all ranks."""
    counts = sorted({1 << i for i in range(1, ranks.bit_length()) if 1 << i < ranks} | {ranks})
    transfers: list[_Transfer] = []
    for count in counts:
        # Every rank must take part in making a group, also those outside it.
        members = None if count == ranks else dist.new_group(list(range(count)))
        inside = group.rank() < count
        for size in sizes:
            transfers += [_exchange(form, count, size, members, inside) for form in ALL_TO_ALL_FORMS]
            transfers += _reductions(count, size, members, inside, notes)
    pair = partial(NetworkPoint, operation="point_to_point", ranks=2, messages=1)
    transfers += [(partial(pair, message_bytes=size), _ping_pong(size)) for size in sizes]
    return transfers


def _exchange(form: Any, ranks: int, size: int, members: Any, inside: bool) -> _Transfer:
    """An all-to-all of fp32 in which every rank sends about `size` bytes."""
    knobs = CommunicationKnobs(all_to_all=form)
    width = max(1, round(size / (4 * (ranks - 1) * _PARTS)))
    bounds, slots = tuple(range(ranks + 1)), ((width,) * _PARTS,) * ranks
    rank = min(group.rank(), ranks - 1)
    exchange = Exchange("forward", bounds, slots, rank, knobs, members)
    work = AllToAll("", "forward", bounds, slots, rank, knobs).work()

    def call() -> None:
        exchange.start()
        exchange.wait()

    point = partial(NetworkPoint, operation="all_to_all", form=form, ranks=ranks, message_bytes=work.message_bytes, messages=work.messages)
    return point, call if inside else None


def reduce_scatter_call() -> Callable[..., Any]:
    """The reduce-scatter of one tensor under the name that this torch does not warn of: renamed in 2.13."""
    return getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def _reductions(ranks: int, size: int, members: Any, inside: bool, notes: list[str]) -> list[_Transfer]:
    """An all-reduce moves 2 (W-1)/W of its array through every rank, a reduce-scatter half of that."""
    count = max(ranks, round(size * ranks / (2 * (ranks - 1)) / 4) // ranks * ranks)
    sent = 4 * count * (ranks - 1) // ranks
    whole, part = torch.zeros(count), torch.zeros(count // ranks)
    scatter = reduce_scatter_call()

    def all_reduce() -> None:
        dist.all_reduce(whole, group=members)

    def reduce_scatter() -> None:
        scatter(part, whole, group=members)

    point = partial(NetworkPoint, operation="all_reduce", ranks=ranks, message_bytes=2 * sent, messages=2 * (ranks - 1))
    reduced = (point, all_reduce if inside else None)
    try:
        if inside:
            reduce_scatter()
    except (RuntimeError, ValueError) as error:
        # What a backend lacks it lacks on every rank, and says at once.
        note = f"no reduce-scatter in this backend: {str(error).splitlines()[0]}"
        notes += [] if note in notes else [note]
        return [reduced]
    point = partial(NetworkPoint, operation="reduce_scatter", ranks=ranks, message_bytes=sent, messages=ranks - 1)
    return [reduced, (point, reduce_scatter if inside else None)]


def _ping_pong(size: int) -> Call:
    """Rank 0 to rank 1, one way. The receiver's answer, a few bytes, ends it."""
    rank = group.rank()
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


def _time(call: Call, calls: int) -> float:
    """Seconds a call of the slowest rank, the same on every rank."""
    dist.barrier()
    begin_s = time.perf_counter()
    if call is not None:
        for _ in range(calls):
            call()
    taken = torch.tensor([(time.perf_counter() - begin_s) / calls], dtype=torch.float64)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    return float(taken)


def slowest_turn(call: Call, calls: int = 1) -> Turn:
    """A turn that every rank takes at once, of as long as the slowest rank takes for a call."""
    return lambda: (_time(call, calls),)


def _processes() -> list[int]:
    """The ranks of this host, whose load is not foreign."""
    own = socket.gethostname()
    return [process for host, process in group.gather((own, os.getpid())) if host == own]


def _calls(call: Call) -> int:
    """Calls that make a sample long enough; the same on every rank, since the time is."""
    _time(call, 1)
    return max(1, min(_MAX_CALLS, round(_SAMPLE_S / _time(call, 1))))


def _together(ranks: int) -> Together:
    """Matrix products alone, an all-to-all alone, and both; medians over the rounds, of the slowest rank."""
    exchange_of = _TOGETHER_BYTES // (4 * (ranks - 1))
    exchange = Exchange("forward", tuple(range(ranks + 1)), [[exchange_of]] * ranks, group.rank(), CommunicationKnobs())
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
    return Together(
        compute_s=samples["compute"].median_s,
        transfer_s=samples["talk"].median_s,
        both_s=samples["both"].median_s,
        compute_while_talking_s=max(group.gather(statistics.median(inner))),
    )
