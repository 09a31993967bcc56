"""Findings about a tuned config: typed values, each with its evidence and one remedy, derived from the config alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from autotune.config.measured import TableUse, differs
from autotune.config.tuned import Interval, TunedConfig
from autotune.explaining import wording
from autotune.explaining.operators import operator_findings
from autotune.explaining.remedies import Remedy
from autotune.explaining.tables import tables_in_step
from autotune.explaining.terms import (
    ITERATION,
    OTHER,
    WORTH_NAMING,
    above_ceiling_s,
    below,
    is_transfer,
    iteration_s,
    ranks_on_host,
    reads_tables,
)
from autotune.explaining.wording import FindingKind
from autotune.perf.ceilings import fork_join_s
from autotune.perf.roofline import BOUND_FRACTION

_BOUND: dict[str, FindingKind] = {"memory": "memory_bound", "compute": "compute_bound", "network": "network_bound"}
# A 95 % interval wider than a fifth of its median cannot tell a useful gain from none.
_WIDE = 0.20
# Forks and joins: from this share of an iteration on, a larger minibatch shows.
_FORK_SHARE = 0.03
# The busiest thread's look-ups over the mean: below, the race of strategies decides better than a count does.
_UNEVEN_THREADS = 1.15
# A rank that computes this much longer than the mean; as `perf.rows` says it.
_UNEVEN_RANKS = 1.05
_HOT_SHARE = 0.25
# Threads without a core: below, timer ticks and the kernel's own work.
_WAITING_SHARE = 0.02
# What names a cause makes the plain verdict of the same pass superfluous.
_GENERAL: tuple[FindingKind, ...] = ("memory_bound", "compute_bound", "below_every_ceiling")


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing, with its evidence and what to do about it."""

    kind: str
    """A `FindingKind`, or one of an operator's own."""
    operator: str
    """Operator pass, or ``iteration``."""
    saving_s: float
    """Seconds per iteration that would go at most; 0 where it is not a matter of time."""
    evidence: str
    """One sentence."""
    remedy: Remedy


@dataclass(frozen=True)
class Note:
    """A remark of the tuning run, shown below the findings."""

    text: str
    remedy: Remedy | None
    """None where nothing needs to be done."""


def notes(config: TunedConfig) -> tuple[Note, ...]:
    """The remarks of the tuning run, in its order."""
    return tuple(Note(text, wording.note_remedy(config, text)) for text in config.provenance.notes)


def find(config: TunedConfig) -> tuple[Finding, ...]:
    """All findings, the largest saving first."""
    findings = [*_of_iteration(config), *_of_operators(config), *_of_tables(config), *_of_transfers(config), *_of_ranks(config)]
    observed = list(operator_findings(config))
    findings += [
        Finding(observation.kind, key, observation.saving_s, observation.evidence, Remedy(observation.remedy))
        for key, observation in observed
    ]
    known = {finding.operator for finding in findings if finding.kind in ("table_far_from_ceiling", "skewed_lookups")}
    known |= {key for key, _ in observed}
    findings = [finding for finding in findings if finding.kind not in _GENERAL or finding.operator not in known]
    return tuple(sorted(findings, key=lambda finding: -finding.saving_s))


def grouped(findings: Sequence[Finding]) -> list[tuple[Finding, ...]]:
    """Findings with the same kind and remedy together; the group with the largest saving first."""
    groups: dict[tuple[str, Remedy], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.kind, finding.remedy), []).append(finding)
    return [tuple(group) for group in groups.values()]


def _of_operators(config: TunedConfig) -> Iterator[Finding]:
    total_s = iteration_s(config)
    raced = {gain.operator: gain.candidates for gain in config.gains}
    for verdict in config.verdicts:
        time_s, candidates = verdict.time_s, raced.get(verdict.operator, 0)
        if time_s.median < WORTH_NAMING * total_s:
            continue
        if verdict.operator == OTHER:
            yield _finding(config, "outside_operators", OTHER, time_s.median, wording.outside_evidence(time_s.median, total_s))
        elif not is_transfer(verdict):
            kind, above_s = _BOUND.get(verdict.binder, "below_every_ceiling"), above_ceiling_s(verdict)
            if above_s >= WORTH_NAMING * total_s:
                evidence = wording.ceiling_evidence(verdict.fractions, verdict.detail, candidates)
                can_race = verdict.operator in config.config.operators
                remedy = wording.remedy(config, kind, verdict.operator, raced=candidates > 1 or not can_race, below=below(verdict) or "")
                yield Finding(kind, verdict.operator, above_s, evidence, remedy)
        predicted = verdict.predicted if verdict.operator != OTHER else None
        # A prediction below the bound is wrong by itself: it says nothing about the pass.
        bound_s = time_s.median * max(verdict.fractions.values(), default=0.0)
        if (
            predicted is not None
            and not predicted.extrapolated
            and time_s.low > predicted.high_s
            and predicted.time_s >= bound_s
            and not is_transfer(verdict)
        ):
            evidence = wording.slower_evidence(time_s.median, predicted.low_s, predicted.high_s)
            yield _finding(config, "slower_than_predicted", verdict.operator, time_s.median - predicted.time_s, evidence)
        if _is_wide(time_s):
            evidence = wording.wide_interval_evidence(time_s.low, time_s.high, time_s.samples)
            yield _finding(config, "wide_interval", verdict.operator, 0.0, evidence)


def _of_iteration(config: TunedConfig) -> Iterator[Finding]:
    tuned, pages = config.tuned_iteration_s, config.fingerprint.topology.huge_pages
    if not config.significant:
        yield _finding(config, "no_gain", ITERATION, 0.0, wording.no_gain_evidence(config.speedup.low, config.speedup.high))
    if _is_wide(tuned):
        yield _finding(config, "wide_interval", ITERATION, 0.0, wording.wide_interval_evidence(tuned.low, tuned.high, tuned.samples))
    if pages == "never":
        yield _finding(config, "small_pages", "embedding_bag", 0.0, wording.small_pages_evidence(pages))
    yield from _small_minibatch(config)
    yield from _oversubscribed(config)
    yield from _waiting(config)
    yield from _of_state(config)


def _small_minibatch(config: TunedConfig) -> Iterator[Finding]:
    """A noticeable share of launches: as measured, else by the probe's cost of a fork and a join."""
    total_s = iteration_s(config)
    if not total_s:
        return
    regions = sum(verdict.parallel_regions for verdict in config.verdicts)
    timed = [(verdict.time_s.median, verdict.parts.launch) for verdict in config.verdicts if verdict.parts is not None]
    launch_s = sum(time_s * share for time_s, share in timed)
    if not timed and config.profile is not None:
        launch_s = regions * fork_join_s(config.profile.ceilings, config.config.threads)
    share = min(1.0, launch_s / total_s)
    if share >= _FORK_SHARE:
        evidence = wording.small_minibatch_evidence(share, regions, config.config.threads, config.minibatch)
        remedy = wording.small_minibatch_remedy(config.minibatch, share, config.config.threads)
        yield Finding("small_minibatch", ITERATION, min(launch_s, total_s), evidence, remedy)


def _oversubscribed(config: TunedConfig) -> Iterator[Finding]:
    """More threads than the cores of the machine that tuned, or than its cgroup grants time for."""
    topology, ranks, threads = config.fingerprint.topology, ranks_on_host(config), config.config.threads
    granted = topology.cpu_quota
    cores, what = (granted, "CPUs' worth of time") if granted is not None else (float(topology.physical_cores), "cores")
    if ranks * threads > cores + 0.5:
        evidence = wording.oversubscribed_evidence(threads, ranks, cores, what)
        yield Finding("oversubscribed_cores", ITERATION, 0.0, evidence, wording.oversubscribed_remedy(max(1, int(cores / ranks))))


def _waiting(config: TunedConfig) -> Iterator[Finding]:
    """Threads that were at work but held no core: something else ran there."""
    waiting_s = {row.operator: row.parts.off_core * row.time_s.median for row in config.verdicts if row.parts is not None}
    total_s = sum(waiting_s.values())
    if total_s >= _WAITING_SHARE * iteration_s(config) > 0:
        most = max(waiting_s, key=lambda key: waiting_s[key])
        evidence = wording.waiting_evidence(total_s, iteration_s(config), most, config.launch.cpus)
        yield _finding(config, "waiting_for_cores", ITERATION, total_s, evidence)


def _of_state(config: TunedConfig) -> Iterator[Finding]:
    """The machine gave less than its profile says."""
    if config.state is None:
        return
    state, bound_s = config.state, {"memory": 0.0, "rows": 0.0, "compute": 0.0}
    for verdict in config.verdicts:
        resource = "rows" if verdict.binder == "memory" and verdict.access in ("gather", "scatter") else verdict.binder
        if resource in bound_s:
            bound_s[resource] += verdict.time_s.median
    lost = {name: bound_s[name] * (1 - ratio) for name, ratio in state if ratio < 1 and differs(ratio) and bound_s[name]}
    bandwidth_s = sum(lost.get(name, 0.0) for name in ("memory", "rows"))
    if bandwidth_s:
        evidence = wording.bandwidth_evidence(state.memory, state.rows, bound_s["memory"] + bound_s["rows"])
        yield _finding(config, "less_bandwidth", ITERATION, bandwidth_s, evidence)
    if "compute" in lost:
        yield _finding(config, "slower_cores", ITERATION, lost["compute"], wording.arithmetic_evidence(state.compute, bound_s["compute"]))


def _of_tables(config: TunedConfig) -> Iterator[Finding]:
    """The table that loses most in each embedding pass, and a strategy that spreads the look-ups better than the one in force."""
    total_s = iteration_s(config)
    above_s = {verdict.operator: above_ceiling_s(verdict) for verdict in config.verdicts}
    tables = tables_in_step(config)
    for which in ("forward", "update"):
        far = [use for use in tables if _ceiling_s(use, which) and _ceiling_s(use, which) < BOUND_FRACTION * _time_s(use, which)]
        lost_s = sum(_time_s(use, which) - _ceiling_s(use, which) for use in far)
        if not far or min(lost_s, above_s.get(f"embedding_bag.{which}", 0.0)) < WORTH_NAMING * total_s:
            continue
        worst = max(far, key=lambda use: _time_s(use, which) - _ceiling_s(use, which))
        hot = wording.hot_rows(worst.hot_share, worst.hot_rows) if worst.hot_share >= _HOT_SHARE else ""
        rank = worst.rank if config.sockets > 1 else None
        evidence = wording.table_evidence(which, worst.table, rank, _time_s(worst, which), _ceiling_s(worst, which), len(far) - 1, hot)
        saving_s = min(lost_s, above_s[f"embedding_bag.{which}"])
        yield Finding("table_far_from_ceiling", f"embedding_bag.{which}", saving_s, evidence, _far_remedy(config, which, worst, bool(hot)))
    yield from _skewed(config)


def _far_remedy(config: TunedConfig, which: str, worst: TableUse, hot: bool) -> Remedy:
    key = f"embedding_bag.{which}"
    knobs = config.config.operators.get(key)
    raced = any(gain.operator == key and gain.candidates > 1 for gain in config.gains)
    strategy = getattr(knobs, "strategy", None)
    if strategy is not None:
        better = _better_strategy(worst, strategy)
        if better is not None and config.config.threads > 1:
            return wording.strategy_remedy(strategy, _load(worst, strategy), better, _load(worst, better))
        if hot:
            return wording.hot_table_remedy(config, strategy)
    distance = getattr(knobs, "prefetch_distance", 0)
    return wording.far_table_remedy(config, which, raced, distance)


def _skewed(config: TunedConfig) -> Iterator[Finding]:
    """Under the strategy in force one thread gets more look-ups of a table than the others, and another strategy parts them evenly."""
    knobs, threads = config.config.operators.get("embedding_bag.update"), config.config.threads
    strategy = getattr(knobs, "strategy", None)
    if strategy is None or threads < 2:
        return
    uneven = [use for use in tables_in_step(config) if _better_strategy(use, strategy) is not None]
    waiting_s = {use: use.update_s * (1.0 - 1.0 / _load(use, strategy)) for use in uneven}
    # Threads scan the tables one after another without a join between them, so unevenness of several tables may cancel out.
    worst = max(uneven, key=lambda use: waiting_s[use], default=None)
    if worst is None or waiting_s[worst] < WORTH_NAMING * iteration_s(config):
        return
    better, load = _better_strategy(worst, strategy), _load(worst, strategy)
    assert better is not None
    evidence = wording.skew_evidence(worst.table, wording.hot_rows(worst.hot_share, worst.hot_rows), strategy, threads, load)
    remedy = wording.strategy_remedy(strategy, load, better, _load(worst, better))
    yield Finding("skewed_lookups", "embedding_bag.update", waiting_s[worst], evidence, remedy)


def _load(use: TableUse, strategy: str) -> float:
    """Busiest thread over the mean; strategies without owners are even."""
    loads = {"race_free_range": use.range_load, "race_free_modulo": use.modulo_load, "bucketed": use.bucketed_load}
    return loads.get(strategy, 1.0)


def _better_strategy(use: TableUse, strategy: str) -> str | None:
    """The race-free strategy that parts a table's look-ups best, where the one in force does so badly."""
    if _load(use, strategy) < _UNEVEN_THREADS:
        return None
    best = min(("race_free_range", "race_free_modulo", "bucketed"), key=lambda name: _load(use, name))
    return best if _load(use, best) < 0.9 * _load(use, strategy) else None


def _time_s(use: TableUse, which: Literal["forward", "update"] | str) -> float:
    return use.forward_s if which == "forward" else use.update_s


def _ceiling_s(use: TableUse, which: Literal["forward", "update"] | str) -> float:
    return use.forward_ceiling_s if which == "forward" else use.update_ceiling_s


def _of_transfers(config: TunedConfig) -> Iterator[Finding]:
    knobs = config.config.communication
    if knobs is None:
        return
    for verdict in config.verdicts:
        exposed_s = verdict.time_s.median
        if is_transfer(verdict) and exposed_s >= WORTH_NAMING * iteration_s(config):
            evidence = wording.exposed_evidence(exposed_s, verdict.hidden_s or 0.0, verdict.bytes_sent)
            if not verdict.bytes_sent:
                evidence = wording.ceiling_evidence(verdict.fractions, verdict.detail, 0)
            remedy = wording.exposed_remedy(
                config, verdict.operator, knobs.overlap, knobs.wire_dtype, knobs.bucket_bytes, knobs.communication_cores
            )
            yield Finding("exposed_transfer", verdict.operator, exposed_s, evidence, remedy)


def _of_ranks(config: TunedConfig) -> Iterator[Finding]:
    """The rank that the others wait for, and the pass that makes it slow."""
    ranks = config.ranks
    if len(ranks) < 2:
        return
    mean_s = statistics.fmean(row.compute_s for row in ranks)
    slowest = max(ranks, key=lambda row: row.compute_s)
    if slowest.compute_s < _UNEVEN_RANKS * mean_s or slowest.compute_s - mean_s < WORTH_NAMING * iteration_s(config):
        return
    transfers = {verdict.operator for verdict in config.verdicts if is_transfer(verdict)}
    means = {key: statistics.fmean(row.passes_s.get(key, 0.0) for row in ranks) for key in slowest.passes_s if key not in transfers}
    if not means:
        return
    most = max(means, key=lambda key: slowest.passes_s[key] - means[key])
    looked = statistics.fmean(row.lookups for row in ranks)
    of_tables = reads_tables(most)
    cause = wording.lookups_cause(slowest.lookups / looked, slowest.tables) if of_tables and looked else ""
    evidence = wording.uneven_ranks_evidence(
        slowest.rank, slowest.compute_s / mean_s - 1.0, most, slowest.passes_s[most] - means[most], cause
    )
    remedy = wording.uneven_ranks_remedy(config, slowest.rank, of_tables)
    yield Finding("uneven_ranks", most, slowest.compute_s - mean_s, evidence, remedy)


def _is_wide(interval: Interval) -> bool:
    return interval.high - interval.low > _WIDE * interval.median


def _finding(config: TunedConfig, kind: FindingKind, operator: str, saving_s: float, evidence: str) -> Finding:
    return Finding(kind, operator, saving_s, evidence, wording.remedy(config, kind, operator))
