"""Where every table of a model goes on a number of sockets: the slowest rank as fast as can be, within every rank's memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

from autotune.catalog import load_profile_by_name
from autotune.config.knobs import RunConfig
from autotune.config.model import DataSpec, Model
from autotune.config.partition import Kind, Partition, Placement
from autotune.config.profile import Profile
from autotune.config.tuned import Prediction
from autotune.data.popularity import popularity
from autotune.dlrm.schedule import check_samples
from autotune.dlrm.sharding import part_memory_bytes, parts_of_ranks, replicated, whole_tables
from autotune.errors import InputError, MachineError
from autotune.perf.estimate import STOCHASTIC_NOTE, estimate
from autotune.perf.predictor import Predictor
from autotune.planning.balance import Balancer
from autotune.planning.constraints import AllowedSharding, Constraints, resolve
from autotune.planning.cost import Shard, ShardCosts
from autotune.planning.options import SPLITS, WHOLE, ShardingOption, Shards
from autotune.units import format_bytes

ASSUMED_PROFILE = "xeon-8280"
"""The socket of arXiv 2005.04680, where no profile is given: ratios of bandwidths matter, and they differ little between servers."""

# A table heavier than what a rank does on average is split, or it would rule the iteration; but row-wise parts send whole pooled rows, and
# column-wise parts repeat the look-ups. Parts that cost more together than this against the whole would slow the other ranks for little.
_SPLIT_COST = 1.5
# Copies of replicated tables may take this share of a rank's memory.
_COPIES_SHARE = 0.1
# Shards that share a cache do not quite add up: up to so many ranks, whole tables are compared with split ones by the estimate of the step.
_COMPARED_RANKS = 64
# Options named in one message.
_NAMED_OPTIONS = 3


@dataclass(frozen=True)
class RankLoad:
    """What one rank holds, and what it is predicted to take for an iteration."""

    rank: int
    tables: tuple[int, ...]
    """Whole tables and parts, replicated ones left out."""
    memory_bytes: int
    """Tables, copies, and their optimizer state."""
    time_s: float
    """Seconds of computing, as `perf.estimate` predicts them for the whole step."""
    tables_s: float
    """Seconds of it in passes over tables."""
    exchange_s: float
    """Seconds of the network for the pooled rows of its tables and for their gradients."""

    @property
    def balanced_s(self) -> float:
        """Seconds for its tables, computing and exchange: what the planner evens out."""
        return self.tables_s + self.exchange_s


@dataclass(frozen=True)
class Plan:
    """A partition with what it is predicted to give."""

    model: str
    minibatch: int
    """Global."""
    partition: Partition
    iteration: Prediction
    """One iteration, with its transfers."""
    ranks: tuple[RankLoad, ...]
    memory_per_rank_bytes: float | None
    """The limit that was kept."""
    notes: tuple[str, ...]
    constraints: Constraints = field(default_factory=Constraints)
    """What was demanded, and is kept."""

    @property
    def slowest_s(self) -> float:
        """Seconds that the slowest rank takes for its tables and their exchange."""
        return max(rank.balanced_s for rank in self.ranks)

    @property
    def imbalance(self) -> float:
        """Slowest rank over the mean of all, for tables and their exchange; 1 at best."""
        mean = sum(rank.balanced_s for rank in self.ranks) / len(self.ranks)
        return self.slowest_s / mean if mean else 1.0


Placed = list[tuple[ShardingOption, Shard, int]]
"""Every shard, with the option that made it and its rank."""


@dataclass
class Planner:
    """Places every table of a model, and predicts what each rank then takes.

    Tables are replicated where that costs all ranks together less than one owner; split by rows or by columns, whichever leaves the slowest
    rank faster, where a table exceeds a rank's memory or its fair share of the time; whole otherwise.

    Args:
        model: with the global minibatch.
        ranks: one a socket.
        profile: of one machine, with its network; None assumes a usual server's.
        ranks_on_host: that share the machine; None takes its sockets.
        threads: of a rank; None takes a socket's cores.
        memory_per_rank_bytes: for tables; None sets no limit.
        constraints: what the plan must keep; the default demands nothing.

    Raises:
        InputError: ranks below 1 or above the samples of a minibatch.
    """

    model: Model
    ranks: int
    profile: Profile | None = None
    _: KW_ONLY
    ranks_on_host: int | None = None
    threads: int | None = None
    memory_per_rank_bytes: float | None = None
    constraints: Constraints = field(default_factory=Constraints)

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise InputError(f"sockets must be 1 or more, got {self.ranks}; write --sockets 1")
        check_samples(self.model, self.ranks)
        self._unread = ""
        try:
            popularity(self.model, 0).distinct(1.0)
        except InputError:  # running the model will say so
            self._unread = self.model.data.distribution
            self.model = self.model.model_copy(update={"data": DataSpec()})
        machine = self.profile or _assumed_profile()
        topology = machine.fingerprint.topology
        on_host = min(self.ranks, topology.sockets) if self.ranks_on_host is None or self.profile is None else self.ranks_on_host
        threads = self.threads or topology.default_threads(topology.sockets)
        self._costs = ShardCosts(self.model, self.ranks, Predictor(machine, on_host), threads)
        self._shards = Shards(self._costs)
        self._plans: dict[Partition, Plan] = {}

    def plan(self) -> Plan:
        """The partition with what it is predicted to give.

        Raises:
            InputError: constraints that contradict each other, that the memory cannot keep, or that the optimizer rules out.
            MachineError: the tables do not fit; says by how much.
        """
        return self._predicted(self.partition())

    def partition(self) -> Partition:
        """The partition of `plan`, without a prediction of it. Raises as `plan`."""
        ways = self._ways()
        return ways[0] if len(ways) == 1 or self.ranks > _COMPARED_RANKS else min(ways, key=lambda way: self._predicted(way).slowest_s)

    def _predicted(self, partition: Partition) -> Plan:
        """A partition with what it is predicted to give, worked out once."""
        if partition not in self._plans:
            self._plans[partition] = self._predict(partition)
        return self._plans[partition]

    def _predict(self, partition: Partition) -> Plan:
        model, predictor, on_host = self.model, self._costs.predictor, self._costs.predictor.ranks_on_host
        config = RunConfig(threads=self._costs.threads, partition=partition if self.ranks > 1 else None)
        step = estimate(model, predictor.profile, config, sockets=self.ranks, ranks_on_host=on_host, predictor=predictor)
        whole, copies = whole_tables(model), replicated(partition)
        loads = []
        for parts, rank in zip(parts_of_ranks(model, partition), step.ranks, strict=True):
            memory = sum(part_memory_bytes(model, part) for part in (*parts, *(whole[t] for t in copies)))
            tables, exchange_s = tuple(sorted(part.table for part in parts)), self._costs.exchange_s(sum(part.width for part in parts))
            loads.append(RankLoad(rank.rank, tables, memory, rank.compute_s, rank.tables_s, exchange_s))
        notes = (*self._notes(partition), *(step.notes if self.profile else ()))
        return Plan(
            model.name, model.minibatch, partition, step.iteration, tuple(loads), self.memory_per_rank_bytes, notes, self.constraints
        )

    def _ways(self) -> list[Partition]:
        """Every table placed: evened out by the prices of shards, and with as many tables whole as may be."""
        model, ranks, shards, constraints = self.model, self.ranks, self._shards, self.constraints
        if model.optimizer == "adagrad":  # row-wise: a number for every row, from the whole of it
            kinds = tuple(kind for kind in constraints.kinds if kind != "column_wise")
            if not kinds:
                raise InputError("row-wise Adagrad needs whole rows, got column_wise as the only kind (--kinds); allow another")
            constraints = replace(constraints, kinds=kinds)
        tables = resolve(constraints, model, ranks)
        limit = math.inf if self.memory_per_rank_bytes is None else self.memory_per_rank_bytes
        needed = sum(shards.whole(allowed).memory_bytes for allowed in tables)
        if needed > ranks * limit:
            raise self._no_room(limit, needed, constraints)
        forced = {allowed.tables[0] for allowed in tables if allowed.kinds == ("replicated",)}
        self._check_constrained(tables, forced, limit, constraints)
        for copies in (self._copies(tables, forced, limit), forced):
            room = limit - sum(shards.whole(allowed).memory_bytes for allowed in tables if allowed.tables[0] in copies)
            placed = self._place([allowed for allowed in tables if allowed.tables[0] not in copies], room)
            if placed:
                return [_partition(model, ranks, placement) for placement in placed]
        copied = sum(model.stored_bytes(model.tables[t]) for t in forced)
        raise self._no_room(limit, needed + (ranks - 1) * copied, constraints)

    def _notes(self, partition: Partition) -> tuple[str, ...]:
        """What the prediction assumes."""
        data = self.model.data.distribution
        row_wise = any(placement.kind == "row_wise" for placement in partition.tables)
        notes = {
            f"no profile given: that of {ASSUMED_PROFILE} is assumed, so times compare with each other only": self.profile is None,
            STOCHASTIC_NOTE: self.profile is None and self.model.table_storage == "stochastic",
            "the network's bandwidth is assumed": self._costs.predictor.profile.network is None,
            f"look-ups of {self._unread} data are taken as uniform: their file was not read": bool(self._unread),
            f"how often rows of {data} data are met again was counted in their first minibatch": data in ("histogram", "criteo"),
            "which row-wise part holds a table's hottest rows is not known; each is predicted its share": data == "zipf" and row_wise,
        }
        return tuple(note for note, holds in notes.items() if holds)

    def _no_room(self, limit: float, needed: int, constraints: Constraints) -> MachineError:
        ranks = self.ranks
        shortfall = max(needed - ranks * limit, 0)
        missing = f"{format_bytes(shortfall)} short" if shortfall else "no order of the parts fits"
        under = f" with {', '.join(constraints.words)}" if constraints.words and not shortfall else ""
        least = math.ceil(needed / limit) if limit else 0
        got = f"{format_bytes(needed)} for {ranks} x {format_bytes(limit)}: {missing}{under}"
        step = f"take {max(least, ranks + 1)} sockets or more, or raise --memory-per-socket{', or demand less' if under else ''}"
        return MachineError(f"the tables of model {self.model.name} must fit the sockets' memory, got {got}; {step}")

    def _check_constrained(self, tables: Sequence[AllowedSharding], forced: set[int], limit: float, constraints: Constraints) -> None:
        """Raises: InputError: copies, pinned tables or a table that may not be split ask for more than a rank has."""
        whole = self._shards.whole
        copied = sum(whole(allowed).memory_bytes for allowed in tables if allowed.tables[0] in forced)
        room = limit - copied
        if room < 0:
            rule = "tables that may only be replicated must fit every socket's memory"
            got = f"{format_bytes(copied)} for {format_bytes(limit)} (--kinds {','.join(constraints.kinds)})"
            raise InputError(f"{rule}, got {got}; add table_wise to --kinds, or raise --memory-per-socket")
        bound: dict[int, list[AllowedSharding]] = {}
        for allowed in tables:
            if allowed.tables[0] in forced:
                continue
            size = whole(allowed).memory_bytes
            if allowed.whole_by and size > room:
                got = f"{format_bytes(size)} for {format_bytes(room)} ({allowed.name}: {allowed.whole_by})"
                rule = "tables that must stay whole must fit a socket's memory"
                raise InputError(f"{rule}, got {got}; let them be split, or raise --memory-per-socket")
            if allowed.ranks is not None and len(allowed.ranks) == 1:
                bound.setdefault(min(allowed.ranks), []).append(allowed)
        for rank, held in bound.items():
            size = sum(whole(allowed).memory_bytes for allowed in held)
            if size > room:
                options = [allowed.place for allowed in held]
                place = ", ".join([*options[:_NAMED_OPTIONS], *(["..."] if len(options) > _NAMED_OPTIONS else [])])
                got = f"{format_bytes(size)} on rank {rank} for {format_bytes(room)} ({place})"
                raise InputError(f"tables bound to one rank must fit its memory, got {got}; bind fewer to it, or raise --memory-per-socket")

    def _copies(self, tables: Sequence[AllowedSharding], forced: set[int], limit: float) -> set[int]:
        """Tables that are cheaper in copies, the smallest first, while they take little memory; with those that can be nothing else."""
        costs, copies = self._costs, set(forced)
        whole = [(allowed, self._shards.whole(allowed)) for allowed in tables]
        used = sum(shard.memory_bytes for _, shard in whole if shard.table in forced)
        able = [shard for allowed, shard in whole if "replicated" in allowed.kinds and shard.table not in forced]
        for shard in sorted(able, key=lambda shard: shard.memory_bytes):
            if used + shard.memory_bytes > _COPIES_SHARE * limit:
                break
            if costs.ranks > 1 and costs.replicated_s(shard.table) * costs.ranks < shard.time_s:
                copies.add(shard.table)
                used += shard.memory_bytes
        total = sum(shard.memory_bytes for _, shard in whole if shard.table not in copies)
        return copies if total <= costs.ranks * (limit - used) else forced

    def _place(self, tables: Sequence[AllowedSharding], room: float) -> list[Placed]:
        """All shards placed: evened out, and with as many tables whole as may be; none where they do not fit."""
        shards = self._shards
        total_s = sum(shards.whole(allowed).time_s for allowed in tables)
        allowed_of = {allowed.tables[0]: allowed for allowed in tables}
        options = {t: self._option(allowed, total_s, room) for t, allowed in allowed_of.items()}
        balancer = Balancer(shards, allowed_of, room)
        while balancer.assigned(options) is None:
            # Smaller parts find room: the largest part that can be is halved.
            for t in sorted(options, key=lambda t: -_largest(shards.of(allowed_of[t], options[t]))):
                finer = self._finer(allowed_of[t], options[t])
                if finer is not None:
                    options[t] = finer
                    break
            else:
                return []
        # Few light tables may be best left whole: both ends are tried.
        whole = {
            t: WHOLE if "table_wise" in allowed.kinds and shards.whole(allowed).memory_bytes <= room else options[t]
            for t, allowed in allowed_of.items()
        }
        even = balancer.even_out([options] if whole == options else [whole, options])
        ways = [(way, balancer.assigned(way)) for way in ([even] if even == whole else [even, whole])]
        return [[(way[shard.table], shard, rank) for shard, rank in placed] for way, placed in ways if placed is not None]

    def _option(self, allowed: AllowedSharding, total_s: float, room: float) -> ShardingOption:
        """What leaves the slowest rank fastest: ruled by the largest part, or by the mean with all that a split adds.

        A split is into as many parts as the fair share of the time asks for, or half of them and so on, or as memory asks for.
        """
        whole, ranks = self._shards.whole(allowed), self.ranks
        may_be_whole = "table_wise" in allowed.kinds
        options = [WHOLE] if may_be_whole else []
        for kind in SPLITS:
            if kind not in allowed.kinds:
                continue
            count = min(allowed.most[kind], math.ceil(whole.time_s * ranks / total_s)) if total_s else 1
            while count > 1:
                option = ShardingOption(kind, count)
                if _sum_s(self._shards.of(allowed, option)) <= _SPLIT_COST * whole.time_s:
                    options.append(option)
                count //= 2
            if whole.memory_bytes > room:
                options.append(ShardingOption(kind, self._count_for(allowed, kind, room)))
            elif not may_be_whole:
                options.append(ShardingOption(kind, 2))

        def slowest(option: ShardingOption) -> tuple[bool, float, float]:
            shards = self._shards.of(allowed, option)
            sum_s = _sum_s(shards)
            slowest_s = max(max(shard.time_s for shard in shards), (total_s - whole.time_s + sum_s) / ranks)
            return _largest(shards) > room, slowest_s, sum_s

        return min(options, key=slowest)

    def _count_for(self, allowed: AllowedSharding, kind: Kind, room: float) -> int:
        """The fewest parts, two at least, that fit a rank each; the most there can be where none do."""
        most = allowed.most[kind]
        if room <= 0:
            return most
        counts = range(min(most, max(2, math.floor(self._shards.whole(allowed).memory_bytes / room))), most)
        return next((count for count in counts if _largest(self._shards.of(allowed, ShardingOption(kind, count))) <= room), most)

    def _finer(self, allowed: AllowedSharding, option: ShardingOption) -> ShardingOption | None:
        """Half the parts' size by the cheaper kind, or as near to it as can be; None where parts cannot be smaller."""
        of = self._shards.of
        now = _largest(of(allowed, option))
        options = [ShardingOption(kind, min(allowed.most[kind], 2 * option.shards)) for kind in SPLITS if kind in allowed.kinds]
        smaller = [finer for finer in options if finer.shards > 1 and _largest(of(allowed, finer)) < now]
        return min(smaller, key=lambda finer: _sum_s(of(allowed, finer)), default=None)


@functools.cache
def _assumed_profile() -> Profile:
    return load_profile_by_name(ASSUMED_PROFILE)


def _largest(shards: Iterable[Shard]) -> int:
    return max(shard.memory_bytes for shard in shards)


def _sum_s(shards: Iterable[Shard]) -> float:
    return sum(shard.time_s for shard in shards)


def _partition(model: Model, ranks: int, placed: Placed) -> Partition:
    """Tables without a shard are replicated."""
    placements = [Placement(kind="replicated")] * model.num_tables
    by_table: dict[int, Placed] = {}
    for each in placed:
        by_table.setdefault(each[1].table, []).append(each)
    for t, held in by_table.items():
        held.sort(key=lambda each: (each[1].rows, each[1].columns or (0, 0)))
        kind, owners = held[0][0].kind, tuple(rank for _, _, rank in held)
        if kind == "table_wise":
            for whole in (t, *held[0][1].beside):
                placements[whole] = Placement(kind=kind, ranks=owners)
            continue
        ends = [shard.rows[1] if shard.columns is None else shard.columns[1] for _, shard, _ in held]
        placements[t] = Placement(kind=kind, ranks=owners, bounds=(0, *ends))
    return Partition(ranks=ranks, tables=tuple(placements))
