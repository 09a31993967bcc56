"""What the time of a pass is made of: terms in seconds, each what one resource of the profile would take. A law weighs and adds them.

A term is a plain count (flops of padded panels, rows from memory, vectors copied, calls) over a rate of the profile, so that the same
weights serve other shapes, thread counts and machines. Weights are learned by `perf.regression`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from autotune.config.knobs import EmbeddingUpdateKnobs, Knobs, LayerKnobs
from autotune.config.profile import Profile
from autotune.ops.layer_shapes import busiest, shape_of, vector_groups
from autotune.ops.mlp import default_knobs
from autotune.perf.roofline import fork_join_s, gemm_ceiling, row_ceiling, stream_ceiling
from autotune.perf.steps import PassShape, Residence, TableShare

CACHE_SHARE = 0.75
"""Of a cache that a step's data can count on: conflicts, code, stacks and other programs take the rest."""
_HIDDEN_CACHE_BYTES = 32 << 20
_SMALL_PAGES_REACH_BYTES = 8 << 20
"""What the second-level TLB of a current core reaches with 4 KiB pages: 1536 to 3072 entries."""
_WALK_CYCLES = 100.0

Terms = dict[str, float]


@dataclass(frozen=True)
class Machine:
    """A profile at one number of threads: rates, and times in cycles of one core."""

    profile: Profile
    threads: int
    dtype: Literal["fp32", "bf16"] = "fp32"
    share: float = CACHE_SHARE
    """Of the last-level cache that is this program's: in a virtual machine others use it too, and no datasheet tells how much."""

    def __post_init__(self) -> None:
        topology, ceilings, threads = self.profile.fingerprint.topology, self.profile.ceilings, self.threads
        lanes = 16 if "avx512f" in topology.isa and self.profile.fingerprint.target != "avx2" else 8
        kinds = {point.kind for point in ceilings.stream}
        per_core = gemm_ceiling(ceilings, threads) / threads
        put = object.__setattr__
        put(self, "lanes", lanes)
        put(self, "flops_per_s", gemm_ceiling(ceilings, threads) * bf16_gain(self.profile, self.dtype))
        # Two multiply-adds a cycle: of cores with one such unit these are half cycles, and the weights of a law follow.
        put(self, "cycle_s", 4.0 * lanes / per_core)
        put(self, "stream_bytes_per_s", max(stream_ceiling(ceilings, kind, threads) for kind in kinds or {"read"}))
        put(self, "own_bytes", CACHE_SHARE * topology.l2_bytes * threads)
        instances = max(1, topology.l3_instances) * min(1.0, threads / max(1, topology.physical_cores))
        shared = topology.l3_bytes * max(1.0, instances) or _HIDDEN_CACHE_BYTES
        put(self, "shared_bytes", max(self.share * shared, CACHE_SHARE * topology.l2_bytes * threads))
        widest = max((point.row_bytes for point in ceilings.gather), default=1024)
        put(self, "shared_bytes_per_s", self.rows_per_s("gather", widest, shared / 2))
        put(self, "fork_s", fork_join_s(ceilings, threads))

    lanes: int = 0
    flops_per_s: float = 0.0
    cycle_s: float = 0.0
    stream_bytes_per_s: float = 0.0
    own_bytes: float = 0.0
    shared_bytes: float = 0.0
    shared_bytes_per_s: float = 0.0
    fork_s: float = 0.0

    def rows_per_s(self, access: Literal["gather", "scatter"], row_bytes: int, working_set_bytes: float) -> float:
        """Row bytes per second; narrower rows than any measured take the time of the narrowest."""
        points = self.profile.ceilings.gather if access == "gather" else self.profile.ceilings.scatter
        known = max(row_bytes, min((point.row_bytes for point in points), default=row_bytes))
        rate = row_ceiling(self.profile.ceilings, access, known, max(working_set_bytes, 1.0), self.threads)
        return rate.bandwidth_bytes_per_s * row_bytes / known


def bf16_gain(profile: Profile, dtype: str) -> float:
    """Of arithmetic over fp32's; 1 where the profile knows of none."""
    return profile.bf16_gain if dtype == "bf16" else 1.0


def terms_of(one: PassShape, where: Residence, knobs: Knobs | None, machine: Machine, huge_pages: bool) -> Terms:
    """The terms of a pass, seconds each."""
    if one.kind in ("forward", "backward_data", "backward_weights"):
        found = _layer(one, knobs, machine)
    elif one.kind in ("embedding_forward", "embedding_update"):
        found = _embedding(one, where, knobs, machine, huge_pages)
    else:
        found = _OTHERS[one.kind](one, machine)
    found["call"] = 1e-6
    found["fork"] = one.work.parallel_regions * machine.fork_s
    found["memory"] = where.memory_bytes / machine.stream_bytes_per_s
    found["shared"] = where.shared_bytes / machine.shared_bytes_per_s
    return found


_MOST_ROWS = 12
_LOADS_PER_CYCLE = _FMAS_PER_CYCLE = 2
_FMA_LATENCY = 4


def _layer(one: PassShape, knobs: Knobs | None, machine: Machine) -> Terms:
    """Features of the blocked GEMM as `kernels/gemm_tile-inl.h` runs it.

    A microtile is `height` rows by `width` vectors. A step of its reduction takes height x width multiply-adds and height + width loads,
    and no less than the latency of a multiply-add, since each accumulator waits for itself: what loads and latency take beyond the
    multiply-adds are features of their own, so that narrow panels and low blocks are priced by what is known of wide ones.
    """
    samples, inputs, outputs = (int(one.size[name]) for name in ("samples", "inputs", "outputs"))
    which = one.kind
    assert which in ("forward", "backward_data", "backward_weights")
    rows, columns, reduction = shape_of(which, samples, inputs, outputs)
    if not isinstance(knobs, LayerKnobs) or knobs.implementation != "blocked":
        knobs = default_knobs(which, samples, inputs, outputs, machine.threads)
    threads, bk, bn, bc = machine.threads, knobs.bk, min(knobs.bn, rows), min(knobs.bc, reduction)
    # The busiest cell of the thread grid, in rows and columns.
    most_rows = busiest(rows, bn, max(1, threads // knobs.thread_columns))
    most_columns = busiest(columns, bk, knobs.thread_columns)
    groups = vector_groups(most_columns, bk, machine.lanes)
    vectors, chunks, cycle_s = sum(groups.values()), -(-reduction // bc), machine.cycle_s
    microtiles = load = latency = 0.0
    for width, of_width in groups.items():
        for height, count in _heights(most_rows, bn, width, machine.lanes).items():
            fmas, loads, calls = height * width, height + width, count * of_width / width
            microtiles += calls * chunks
            load += calls * reduction * max(0, loads - fmas) / _LOADS_PER_CYCLE
            latency += calls * reduction * max(0.0, _FMA_LATENCY - max(loads, fmas) / _FMAS_PER_CYCLE)
    found = {
        "arithmetic": 2.0 * most_rows * vectors * machine.lanes * reduction / (machine.flops_per_s / threads),
        "load": load * cycle_s,
        "latency": latency * cycle_s,
        "microtiles": microtiles * cycle_s,
        "store": most_rows * vectors * chunks * cycle_s,
        # The columns of a vector that is not whole are finished one by one.
        "ragged": most_rows * (most_columns % machine.lanes) * chunks * cycle_s * (2 if one.size["masked"] else 1),
        "refetched": _refetched_s(which, knobs, (most_rows, most_columns, reduction), machine),
    }
    if which == "backward_weights":
        own = CACHE_SHARE * machine.profile.fingerprint.topology.l2_bytes
        found["bias"] = reduction * most_rows / machine.lanes * cycle_s
        # Columns of the input that fill no panel are copied.
        found["pack"] = reduction * (most_columns % bk) / machine.lanes * cycle_s
        found["repack"] = inputs * outputs / threads * cycle_s
        # Each chunk of samples reads and writes the gradient again.
        gradient = 4.0 * most_rows * most_columns
        found["reload"] = 2 * (chunks - 1) * gradient / (machine.shared_bytes_per_s / threads) if gradient > own else 0.0
        found["masked"] = 3 * 4 * one.size["mask"] / machine.stream_bytes_per_s + (2e-6 if one.size["mask"] else 0.0)
    return found


def _heights(rows: int, bn: int, width: int, lanes: int) -> dict[int, int]:
    """How many microtiles of `width` vectors have which height: a row block is parted into as few as registers allow, nearly equal."""
    registers = 32 if lanes == 16 else 16
    most = min(_MOST_ROWS, (registers - width - 1) // width)
    found: dict[int, int] = {}
    for block, times in ((min(bn, rows), rows // bn), (rows % bn, 1)):
        if block and times:
            tiles = -(-block // most)
            low, higher = divmod(block, tiles)
            found[low] = found.get(low, 0) + times * (tiles - higher)
            found[low + 1] = found.get(low + 1, 0) + times * higher
    return {height: count for height, count in found.items() if count}


def _refetched_s(which: str, knobs: LayerKnobs, cell: tuple[int, int, int], machine: Machine) -> float:
    """Operands that a core's own cache cannot hold from one task to the next: the one walked inside is fetched at each step outside."""
    rows, columns, reduction = cell
    depth = min(knobs.bc, reduction) if which == "backward_weights" else reduction  # its chunks are the outermost loop
    own = CACHE_SHARE * machine.profile.fingerprint.topology.l2_bytes
    block, panel = 4.0 * min(knobs.bn, rows) * depth, 4.0 * min(knobs.bk, columns) * depth
    whole_rows, whole_columns = 4.0 * rows * depth, 4.0 * columns * depth
    if knobs.loop_order == "rows_outer":
        held, inner, again = block, whole_columns, -(-rows // knobs.bn) - 1
    else:
        held, inner, again = panel, whole_rows, -(-columns // knobs.bk) - 1
    if held + inner <= own:
        return 0.0
    rate = machine.shared_bytes_per_s if inner <= machine.shared_bytes else machine.stream_bytes_per_s
    return again * inner * (reduction / depth) / (rate / machine.threads)


def _embedding(one: PassShape, where: Residence, knobs: Knobs | None, machine: Machine, huge_pages: bool) -> Terms:
    gather = one.kind == "embedding_forward"
    access: Literal["gather", "scatter"] = "gather" if gather else "scatter"
    # Split bf16: an update joins the lower halves of its rows to the upper ones, which lie elsewhere.
    halves = 2 if machine.dtype == "bf16" and not gather else 1
    ways, threads = (1 if gather else 2) * halves, machine.threads
    topology = machine.profile.fingerprint.topology
    l2, l3 = topology.l2_bytes / 2, (topology.l3_bytes or _HIDDEN_CACHE_BYTES) / 2
    found = dict.fromkeys(("rows_memory", "rows_shared", "rows_own", "walk"), 0.0)
    cached = 0.0
    for table in one.tables:
        memory, shared, own = row_sources(table, where.rows_kept, machine, gather)
        width, size = table.row_bytes, table.table_bytes
        # An owner of a hot row has more to do than its share.
        uneven = 1.0 if gather else (table.popularity.hottest + (1 - table.popularity.hottest) / threads) * threads
        found["rows_memory"] += ways * memory * width / machine.rows_per_s(access, width, max(size, 4 * l3)) * uneven
        found["rows_shared"] += ways * shared * width / machine.rows_per_s(access, width, l3) * uneven
        found["rows_own"] += ways * own * width / machine.rows_per_s(access, width, l2 if gather else l2 * threads) * uneven
        cached += ways * (shared + own) * width / machine.rows_per_s(access, width, l3)
        if not huge_pages and size > _SMALL_PAGES_REACH_BYTES:
            found["walk"] += (memory + shared) * _WALK_CYCLES * machine.cycle_s / threads
    lookups, bags = one.size["lookups"], one.size["bags"]
    vectors = sum(table.lookups * -(-table.row_bytes // (4 * machine.lanes)) for table in one.tables)
    found["lookups"] = lookups / threads * machine.cycle_s
    found["vectors"] = vectors / threads * machine.cycle_s
    found["bags"] = bags / threads * machine.cycle_s
    found["tables"] = len(one.tables) * 1e-7
    if not gather:
        strategy = knobs.strategy if isinstance(knobs, EmbeddingUpdateKnobs) else "race_free_modulo" if threads <= 2 else "bucketed"
        # Rows side by side that different cores own: each core's prefetches take them from the other.
        found["alternate"] = cached if strategy == "race_free_modulo" and threads > 1 else 0.0
        found["scan"] = lookups * machine.cycle_s if strategy.startswith("race_free") else 0.0
        found["file"] = lookups / threads * machine.cycle_s if strategy == "bucketed" else 0.0
        found["atomic"] = vectors * machine.lanes / threads * machine.cycle_s if strategy == "atomic" else 0.0
        found["unfused"] = 3 * lookups * one.size["row_bytes"] / machine.stream_bytes_per_s if strategy == "unfused" else 0.0
        found["state"] = one.size["state"] / machine.stream_bytes_per_s
    return found


def row_sources(table: TableShare, kept: float, machine: Machine, gather: bool) -> tuple[float, float, float]:
    """Rows that come from memory, from the last-level cache and from a core's own, by the hit rates of caches that begin empty.

    Args:
        kept: Share of the rows of the last pass over them that the last level still holds.
    """
    threads = machine.threads
    if gather:  # each thread draws its share of the look-ups from the whole table
        share = TableShare(table.rows, table.row_bytes, table.lookups / threads, table.bags, table.popularity, table.part)
        from_own = threads * share.misses(machine.own_bytes / threads)
    else:  # each thread has its own rows
        from_own = table.misses(machine.own_bytes)
    from_shared = min(from_own, table.misses(machine.shared_bytes))
    # Rows met in the last step: those of this one are found among them as often as they are of the table, for the update always.
    again = min(1.0, table.unique / max(1.0, table.rows)) if gather else 1.0
    memory = max(0.0, from_shared - table.unique * kept * again)
    return memory, max(0.0, from_own - memory), max(0.0, table.lookups - from_own)


def _interaction_forward(one: PassShape, machine: Machine) -> Terms:
    samples, features, dim = one.size["samples"], int(one.size["features"]), one.size["dim"]
    high = 4 if machine.lanes == 16 else 2
    wide = machine.lanes // high
    tiles = sum(-(-(min(features, i + high) - 1) // wide) for i in range(1, features, high))
    each = samples / machine.threads * machine.cycle_s
    return {
        "dots": each * tiles * machine.lanes * -(-dim // machine.lanes),
        "sums": each * tiles * machine.lanes,
        "copy": each * dim / machine.lanes,
        "samples": each,
    }


def _interaction_backward(one: PassShape, machine: Machine) -> Terms:
    samples, features, dim = one.size["samples"], one.size["features"], one.size["dim"]
    each = samples / machine.threads * machine.cycle_s
    vectors = math.ceil(dim / machine.lanes)
    return {"dots": each * features**2 * vectors, "square": each * features**2, "store": each * features * vectors, "samples": each}


def _loss(one: PassShape, machine: Machine) -> Terms:
    return {"samples": one.size["samples"] * machine.cycle_s}


def _other(one: PassShape, machine: Machine) -> Terms:
    return {"passes": one.size["passes"] * 1e-6}


def _moved(one: PassShape, machine: Machine) -> Terms:
    return {"moved": one.work.bytes / machine.stream_bytes_per_s}


_OTHERS: Mapping[str, Callable[[PassShape, Machine], Terms]] = {
    "interaction_forward": _interaction_forward,
    "interaction_backward": _interaction_backward,
    "loss": _loss,
    "other": _other,
    "select": _moved,
    "optimizer": _moved,
}
