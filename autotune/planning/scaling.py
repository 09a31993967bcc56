"""What a model would do on N sockets of a machine, from its profile alone: the partition planned, and the step simulated, at each N."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.config.profile import Profile
from autotune.config.tuned import Prediction
from autotune.dlrm.sharding import rank_memory_bytes
from autotune.errors import InputError, MachineError
from autotune.ops import all_reduce, all_to_all
from autotune.perf.estimate import Estimate, OperatorEstimate, estimate
from autotune.perf.predictor import Predictor
from autotune.planning.grouped import MOST_RANKS, columns_partition, group_size, spread
from autotune.planning.planner import Planner
from autotune.units import format_bytes, format_time

Placing = Literal["planned", "columns"]
REPLICATE_BELOW = 2048
"""Rows below which `columns` replicates a table: as in the MLPerf v1.0 runs."""
_COLLECTIVES = (all_to_all.FORWARD, all_to_all.BACKWARD, all_reduce.KEY)
_USEFUL = 1.05
"""A larger count is useful where it is this much faster than the last useful one: less is within the error of a prediction."""
_LARGEST_MINIBATCH = 1 << 26


@dataclass(frozen=True)
class ScalePoint:
    """One number of sockets."""

    sockets: int
    minibatch: int
    """Global."""
    iteration: Prediction
    speedup: float
    """Samples per second over those of the smallest count."""
    efficiency: float
    """Of the sockets added: speed-up over their ratio."""
    lemma_speedup: float
    """G (1 + R) / (1 + G R) with R = overhead over computation on one socket, over the smallest count's (arXiv 1709.06622)."""
    exposed_share: float
    """Of the iteration: what is waited for transfers and slower ranks."""
    exposed_s: dict[str, float]
    """By transfer, on the slowest rank."""
    imbalance: float
    """Slowest rank's computing over the mean of all."""
    memory_bytes: int
    """Of the fullest socket: tables, dense layers, activations."""
    partition: str
    """How many tables are placed how."""
    operators: tuple[OperatorEstimate, ...]
    """On the slowest rank."""
    pays_from: int | None
    """Least global minibatch, a power of two, at which this count is faster than the next smaller one; None: at none up to 2^26, or the
    first count."""
    pays_from_lemma: float | None
    """The same from overheads that do not depend on the minibatch: M = (O2 - O1) / (c (1/G1 - 1/G2))."""

    @property
    def samples_per_s(self) -> float:
        return self.minibatch / self.iteration.time_s


@dataclass(frozen=True)
class Scaling:
    """A scaling curve."""

    model: str
    profile: str
    mode: Literal["strong", "weak"]
    baseline: int
    """Sockets that speed-ups are over."""
    points: tuple[ScalePoint, ...]
    largest_useful: int
    pays: str
    """The minibatch at which the largest count pays, in words."""
    notes: tuple[str, ...]


def scale(
    model: Model,
    profile: Profile,
    sockets: Sequence[int],
    *,
    minibatch_per_socket: int | None = None,
    global_minibatch: int | None = None,
    placing: Placing = "planned",
    communication: CommunicationKnobs | None = None,
    overhead_s: float = 0.0,
    input_s: float = 0.0,
    memory_per_socket_bytes: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Scaling:
    """Simulate the model on each number of sockets.

    Args:
        model: Its own minibatch is the global one where neither is given.
        profile: Of one machine; its sockets are those of a node.
        sockets: Rising.
        minibatch_per_socket: Weak scaling.
        global_minibatch: Strong scaling.
        placing: By the planner, or as in the published MLPerf runs: small tables replicated, the rest split by columns.
        communication: None takes the defaults.
        overhead_s: Of every step, outside all operators: a framework's dispatch and autograd, in another system than this one.
        input_s: Of every sample of the global minibatch, where each rank reads it in a row with the step instead of beside it.
        memory_per_socket_bytes: None takes the profile's.

    Raises:
        InputError: no counts, both kinds of minibatch, or no core left to compute.
        MachineError: the model fits on none of the counts.
    """
    if not sockets or min(sockets) < 1:
        raise InputError(f"sockets must be 1 or more, got {list(sockets) or 'none'}; write for example --sockets 1,2,4,8")
    if minibatch_per_socket is not None and global_minibatch is not None:
        raise InputError("a minibatch is per socket or global, got both; leave one of them out")
    study = _Study(model, profile, placing, communication or CommunicationKnobs(), overhead_s, input_s, memory_per_socket_bytes)
    counts = sorted(set(sockets))
    progress.phase("simulating sockets", float(len(counts)))
    estimates: list[tuple[int, Model, RunConfig, Estimate]] = []
    for count in counts:
        each = minibatch_per_socket * count if minibatch_per_socket is not None else global_minibatch or model.minibatch
        sized = model.model_copy(update={"minibatch": each})
        progress.advance(1.0, f"{count} sockets")
        if each < count:
            study.note(f"{count} sockets: each needs a sample, got a minibatch of {each}; raise it")
            continue
        try:
            config = study.config(sized, count)
            estimated = study.predict(sized, config, count)
            study.check_memory(estimated)
        except MachineError as error:
            study.note(f"{count} sockets: {error}")
            continue
        estimates.append((count, sized, config, estimated))
    if not estimates:
        raise MachineError(f"the model must fit at least one of the counts of sockets; {study.notes[-1]}")
    points = tuple(_points(study, estimates))
    useful = _largest_useful(points)
    return Scaling(
        model=model.name,
        profile=profile.name,
        mode="strong" if minibatch_per_socket is None else "weak",
        baseline=estimates[0][0],
        points=points,
        largest_useful=useful,
        pays=_pays(points),
        notes=tuple(dict.fromkeys((*study.notes, *(note for _, _, _, estimated in estimates for note in estimated.notes)))),
    )


class _Study:
    """One model on one kind of machine."""

    def __init__(
        self,
        model: Model,
        profile: Profile,
        placing: Placing,
        communication: CommunicationKnobs,
        overhead_s: float,
        input_s: float,
        memory_per_socket_bytes: int | None,
    ) -> None:
        self.model, self.profile, self.placing, self.communication = model, profile, placing, communication
        self.overhead_s, self.input_s = overhead_s, input_s
        topology = profile.fingerprint.topology
        self.node = max(1, topology.sockets)
        self.cores = max(1, topology.physical_cores // self.node)
        self.threads = self.cores - communication.communication_cores
        if self.threads < 1:
            rule = f"communication cores must leave one of a socket's {self.cores} cores to compute"
            raise InputError(f"{rule}, got {communication.communication_cores} (--communication-cores); lower them")
        whole = min(topology.memory_bytes, topology.memory_limit_bytes or topology.memory_bytes)
        self.memory_bytes = memory_per_socket_bytes or profile.memory_per_socket_bytes or whole // self.node
        self.notes: list[str] = []
        self._predictor = Predictor(profile, self.node)  # a socket draws on its own memory, however many others of its node run

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def config(self, model: Model, count: int) -> RunConfig:
        """Threads and partition. Raises: MachineError: the tables do not fit."""
        dense = rank_memory_bytes(model, (), max(1, model.minibatch // count))
        room = self.memory_bytes - dense
        if room <= 0:
            got = f"{format_bytes(dense)} for {format_bytes(self.memory_bytes)}"
            raise MachineError(f"dense layers and activations must fit a socket, got {got}; take more sockets or fewer samples")
        if count == 1:
            tables = model.table_bytes + model.state_bytes
            if tables > room:
                got = f"{format_bytes(tables)} for {format_bytes(room)}"
                raise MachineError(f"the tables must fit the socket's memory, got {got}; take more sockets")
            return RunConfig(threads=self.cores)  # which nobody talks to
        return RunConfig(threads=self.threads, partition=self._partition(model, count, room), communication=self.communication)

    def _partition(self, model: Model, count: int, room: int) -> Partition:
        if self.placing == "columns":
            if model.optimizer == "adagrad":
                raise InputError(f"row-wise Adagrad needs whole rows, got --placing columns (model {model.name}); take planned")
            return columns_partition(model, count, REPLICATE_BELOW)
        size = group_size(count)
        groups = math.ceil(count / size)
        if size > 1:
            self.note(f"above {MOST_RANKS} sockets the tables are planned coarsely: for groups of sockets, whose members share them evenly")
        planner = Planner(model, groups, self.profile, ranks_on_host=self.node, threads=self.threads, memory_per_rank_bytes=room * size)
        grouped = planner.partition()
        return grouped if size == 1 else spread(model, grouped, count)

    def predict(self, model: Model, config: RunConfig, count: int) -> Estimate:
        estimated = estimate(model, self.profile, config, sockets=count, ranks_on_host=self.node, predictor=self._predictor)
        beside_s = self.beside_s(model)
        if not beside_s:
            return estimated
        self.note(f"{format_time(self.overhead_s)} a step and {self.input_s * 1e9:.3g} ns a sample are added, outside all operators")
        whole = estimated.iteration
        iteration = whole.model_copy(
            update={"low_s": whole.low_s + beside_s, "time_s": whole.time_s + beside_s, "high_s": whole.high_s + beside_s}
        )
        return replace(estimated, iteration=iteration)

    def check_memory(self, estimated: Estimate) -> None:
        """Raises: MachineError: a rank holds more than a socket has; not every way of placing looks at that itself."""
        fullest = max(rank.memory_bytes for rank in estimated.ranks)
        if fullest > self.memory_bytes:
            got = f"{format_bytes(fullest)} on the fullest for {format_bytes(self.memory_bytes)}"
            raise MachineError(f"the tables and layers must fit a socket, got {got}; take more sockets")

    def beside_s(self, model: Model) -> float:
        """Of a step outside all operators, which no number of sockets shortens."""
        return self.overhead_s + self.input_s * model.minibatch

    def pays_from(self, few: tuple[int, RunConfig], many: tuple[int, RunConfig]) -> int | None:
        """Least power of two from which `many` sockets are faster than `few`, the partitions as planned."""
        exponent = max(1, math.ceil(math.log2(many[0])))
        while 1 << exponent <= _LARGEST_MINIBATCH:
            model = self.model.model_copy(update={"minibatch": 1 << exponent})
            times = [self.predict(model, config, count).iteration.time_s for count, config in (few, many)]
            if times[1] < times[0]:
                return 1 << exponent
            exponent += 1
        return None


def _points(study: _Study, estimates: Sequence[tuple[int, Model, RunConfig, Estimate]]) -> list[ScalePoint]:
    first_count, first_model, _, first = estimates[0]
    base = first_model.minibatch / first.iteration.time_s
    # Overhead: all that computing on more sockets does not shorten; from the second count, where there is one.
    compute_s = _compute_s(first) * first_count
    overheads = [_overhead_s(estimated) for _, _, _, estimated in estimates]
    ratio = overheads[min(1, len(overheads) - 1)] / compute_s if compute_s else 0.0
    points = []
    for i, (count, model, config, estimated) in enumerate(estimates):
        scaled = ratio * first_model.minibatch / model.minibatch
        lemma = _lemma(count, scaled) / _lemma(first_count, ratio)
        speedup = model.minibatch / estimated.iteration.time_s / base
        exposed_s = {row.key: row.exposed_s for row in estimated.operators if row.lane == "network"}
        computing = [rank.compute_s for rank in estimated.ranks]
        before = estimates[i - 1] if i else None
        per_sample = _compute_s(estimated) * count / model.minibatch
        points.append(
            ScalePoint(
                sockets=count,
                minibatch=model.minibatch,
                iteration=estimated.iteration,
                speedup=speedup,
                efficiency=speedup * first_count / count,
                lemma_speedup=lemma,
                exposed_share=max(0.0, _overhead_s(estimated) - study.beside_s(model)) / estimated.iteration.time_s,
                exposed_s={key: exposed_s.get(key, 0.0) for key in _COLLECTIVES},
                imbalance=max(computing) / (sum(computing) / len(computing)),
                memory_bytes=max(rank.memory_bytes for rank in estimated.ranks),
                partition=config.partition.summary if config.partition else "all on one socket",
                operators=estimated.operators,
                pays_from=study.pays_from((before[0], before[2]), (count, config)) if before and count <= MOST_RANKS else None,
                pays_from_lemma=(overheads[i] - overheads[i - 1]) / (per_sample * (1 / before[0] - 1 / count)) if before else None,
            )
        )
    return points


def _compute_s(estimated: Estimate) -> float:
    return sum(rank.compute_s for rank in estimated.ranks) / len(estimated.ranks)


def _overhead_s(estimated: Estimate) -> float:
    return max(0.0, estimated.iteration.time_s - _compute_s(estimated))


def _lemma(workers: int, ratio: float) -> float:
    """G (1 + R) / (1 + G R). Source: arXiv 1709.06622."""
    return workers * (1 + ratio) / (1 + workers * ratio)


def _largest_useful(points: Sequence[ScalePoint]) -> int:
    useful = points[0]
    for point in points[1:]:
        if point.samples_per_s > _USEFUL * useful.samples_per_s:
            useful = point
    return useful.sockets


def _pays(points: Sequence[ScalePoint]) -> str:
    if len(points) < 2:
        return "one count of sockets: nothing to compare"
    few, many = points[-2:]
    text = f"{many.sockets} sockets are faster than {few.sockets} from a global minibatch of {many.pays_from or 'more than 67108864'} on"
    if many.pays_from is None and many.sockets > MOST_RANKS:
        text = f"from which minibatch {many.sockets} sockets pay is not searched above {MOST_RANKS} sockets"
    lemma = many.pays_from_lemma
    return f"{text}; with overheads that do not depend on it, from {max(0.0, lemma):.0f}" if lemma is not None else text
