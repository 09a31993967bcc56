"""Every sentence of the explainer. The rest of the package deals in kinds and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from autotune.config.tuned import TunedConfig
from autotune.explaining.remedies import Remedy, longer_budget, plan_tables, probe_again, prove, tune_again
from autotune.explaining.terms import reads_tables
from autotune.ops import all_reduce, all_to_all
from autotune.units import format_bytes, format_time, plural

FindingKind = Literal[
    "memory_bound",
    "compute_bound",
    "network_bound",
    "below_every_ceiling",
    "outside_operators",
    "table_far_from_ceiling",
    "skewed_lookups",
    "uneven_ranks",
    "exposed_transfer",
    "oversubscribed_cores",
    "waiting_for_cores",
    "less_bandwidth",
    "slower_cores",
    "small_minibatch",
    "slower_than_predicted",
    "no_gain",
    "wide_interval",
    "small_pages",
]

_REMEDIES: dict[FindingKind, tuple[str, Callable[[TunedConfig], tuple[str, ...]] | None]] = {
    "memory_bound": (
        "only fewer bytes help: a larger minibatch for layers, a larger cache share, or a machine with more memory bandwidth", None,
    ),
    "compute_bound": (
        "only fewer operations help: lower precision, smaller layers, or a machine with more cores or wider vectors", None,
    ),
    "network_bound": ("only less traffic helps: another partition of the tables, a smaller wire dtype, or overlap with compute", None),
    "below_every_ceiling": (
        "overhead, imbalance or latency: a larger minibatch or fewer threads gives every fork and join more work", None,
    ),
    "waiting_for_cores": ("stop what else runs on these cores, bind to others (taskset), or tune with fewer threads", None),
    "less_bandwidth": ("stop what else uses memory, on other cores too; if it is always so, probe and tune again", probe_again),
    "slower_cores": (
        "look for another clock (governor, heat, wide vectors) or a busy host; if it is always so, probe again", probe_again,
    ),
    "outside_operators": ("time of the step outside every operator: a larger minibatch makes its share smaller", None),
    "no_gain": ("keep the default, or tune again with a larger budget", longer_budget),
    "wide_interval": ("stop other programs, or tune again with a larger budget", longer_budget),
    "small_pages": (
        "tables on 4 KiB pages miss the TLB at nearly every row: set transparent_hugepage to madvise or always, and tune again", None,
    ),
    "slower_than_predicted": ("perturb the pass to see what it waits for, or probe again if the profile is stale", prove),
}  # fmt: skip
_BELOW: dict[str, str] = {
    "overhead": "a larger minibatch or fewer threads gives every fork and join more work",
    "imbalance": "finer tasks deal the work out evenly: smaller blocks, fewer bags or samples a task, another update strategy",
    "cores": "give its threads cores of their own: stop what else runs there, or tune with fewer threads",
    "latency": "its threads wait for data inside their work: huge pages, a longer prefetch distance, wider rows or larger blocks",
}
_EMBEDDING_MEMORY = "only fewer row bytes help: more re-use of hot rows, narrower rows, or a machine with more memory bandwidth"


def note_remedy(config: TunedConfig, note: str) -> Remedy | None:
    """Remedy for a remark of the tuning run; None where nothing needs to be done."""
    if "budget" in note:
        return Remedy("tune again with a larger budget", longer_budget(config))
    if "disturb" in note or "differed" in note:
        return Remedy("tune again on a quiet machine if the figure matters", tune_again(config))
    return None


def remedy(config: TunedConfig, kind: FindingKind, operator: str, *, raced: bool = True, below: str = "") -> Remedy:
    """Remedy that follows from the kind of a finding alone; an operator pass that was never raced is raced first.

    Args:
        below: cause that dominates a pass below every ceiling, as `perf.roofline.reason` names it.
    """
    if below == "cores":
        return Remedy(_BELOW[below])
    if not raced and kind in ("compute_bound", "memory_bound", "below_every_ceiling"):
        return Remedy("tune again with a larger budget, so that its candidates are raced", longer_budget(config))
    if kind == "below_every_ceiling" and below:
        return Remedy(_BELOW[below])
    if kind == "memory_bound" and reads_tables(operator):
        return Remedy(_EMBEDDING_MEMORY)
    text, command = _REMEDIES[kind]
    return Remedy(text, command(config) if command is not None else None)


def ceiling_evidence(fractions: dict[str, float], detail: str, candidates: int) -> str:
    """The verdict's own account, or where it has none ``91% of the memory ceiling, 12% of the compute ceiling``, the highest first."""
    ranked = sorted(fractions.items(), key=lambda entry: -entry[1])
    reached = ", ".join(f"{value:.0%} of the {name} ceiling" for name, value in ranked)
    account = detail.rstrip(".") or reached or "no ceiling to hold it against"
    return f"{account}; {candidates} candidates raced." if candidates > 1 else f"{account}."


def outside_evidence(time_s: float, iteration_s: float) -> str:
    return f"{format_time(time_s)} of {format_time(iteration_s)} per iteration."


def no_gain_evidence(low: float, high: float) -> str:
    return f"default over tuned lies in {low:.3f} to {high:.3f}, so the default may be as good."


def wide_interval_evidence(low_s: float, high_s: float, samples: int) -> str:
    return f"its 95 % interval is {format_time(low_s)} to {format_time(high_s)} from {samples} samples."


def small_pages_evidence(setting: str) -> str:
    return f"the kernel's transparent huge pages are set to {setting}."


def slower_evidence(time_s: float, low_s: float, high_s: float) -> str:
    return f"{format_time(time_s)} measured, {format_time(low_s)} to {format_time(high_s)} predicted: something else slows it."


def small_minibatch_evidence(share: float, regions: int, threads: int, minibatch: int) -> str:
    what = f"calls, and {regions} forks and joins of {threads} threads," if threads > 1 else "calls"
    return f"{what} take {share:.1%} of an iteration at a minibatch of {minibatch}."


def small_minibatch_remedy(minibatch: int, share: float, threads: int) -> Remedy:
    fewer = "; or fewer threads" if threads > 1 else ""
    return Remedy(f"a minibatch of {2 * minibatch} does twice the work for as many calls: about {share / 2:.1%}{fewer}")


def table_evidence(which: str, table: int, rank: int | None, time_s: float, ceiling_s: float, others: int, hot: str) -> str:
    """``update of table 19 takes 410 us, 4.1x its ceiling of 100 us; 38% of its look-ups hit 12 rows; 3 other tables are as far``."""
    where = f" on rank {rank}" if rank is not None else ""
    ratio = f"{time_s / ceiling_s:.1f}x its ceiling of {format_time(ceiling_s)}"
    account = f"{which} of table {table}{where} takes {format_time(time_s)}, {ratio}"
    more = f"; {others} other table{'s are' if others > 1 else ' is'} past 1.67x" if others else ""
    return account + (f"; {hot}" if hot else "") + f"{more}."


def hot_rows(share: float, rows: int) -> str:
    return f"{share:.0%} of its look-ups hit {rows} rows"


def strategy_remedy(now: str, load: float, better: str, better_load: float) -> Remedy:
    return Remedy(f"set the update's strategy to {better}: its busiest thread gets {better_load:.2f}x the mean, under {now} {load:.2f}x")


def hot_table_remedy(config: TunedConfig, strategy: str) -> Remedy:
    """For a table whose hot rows are what is slow."""
    if strategy in ("atomic", "unfused"):
        return Remedy("set the update's strategy to bucketed: a row then has one writer, and hot rows stay in its cache")
    text = "replicate the table, or split it by column over several sockets: no strategy parts the work of a single row"
    return Remedy(text, plan_tables(config) if config.sockets > 1 else None)


def far_table_remedy(config: TunedConfig, which: str, raced: bool, prefetch_distance: int) -> Remedy:
    if not raced:
        text = f"tune again with a larger budget: strategies and prefetch distances of the {which} were not raced"
        return Remedy(text, longer_budget(config))
    late = f"its rows come late though distances were raced (now {prefetch_distance})"
    return Remedy(f"{late}: fewer rows or a narrower dim would keep it in a cache")


def skew_evidence(table: int, hot: str, strategy: str, threads: int, load: float) -> str:
    return f"table {table}: {hot}, and under {strategy} the busiest of {threads} threads gets {load:.2f}x the mean."


def uneven_ranks_evidence(rank: int, over_mean: float, operator: str, excess_s: float, cause: str) -> str:
    why = f", {cause}" if cause else ""
    return f"rank {rank} computes {over_mean:.0%} longer than the mean, {format_time(excess_s)} of it in {operator}{why}."


def lookups_cause(over_mean: float, tables: int) -> str:
    return f"with {over_mean:.2f}x the mean look-ups in {tables} tables"


def uneven_ranks_remedy(config: TunedConfig, rank: int, of_tables: bool) -> Remedy:
    if of_tables:
        return Remedy(f"move look-ups off rank {rank}: a plan with every kind of sharding splits what is heavy", plan_tables(config))
    return Remedy(f"its layers are as large as every rank's: look for what else runs on the cores of rank {rank} (launch.rank_cpus)")


def exposed_evidence(exposed_s: float, hidden_s: float, sent_bytes: int) -> str:
    times = f"{format_time(exposed_s)} of it is waited for, {format_time(hidden_s)} runs behind compute"
    return f"{times}; {format_bytes(sent_bytes)} sent a rank."


def exposed_remedy(config: TunedConfig, operator: str, overlap: bool, wire_dtype: str, bucket_bytes: int, cores: int) -> Remedy:
    """The first knob that is still open."""
    if not overlap:
        return Remedy("set communication.overlap: true, so that it runs beside the MLPs")
    if operator in (all_to_all.FORWARD, all_to_all.BACKWARD) and wire_dtype == "fp32":
        return Remedy("tune again with any wire dtype: bf16 halves its bytes", tune_again(config, "--wire", "any"))
    if operator == all_reduce.KEY and bucket_bytes > 1 << 20:
        return Remedy(f"smaller buckets start earlier: communication.bucket_bytes below {format_bytes(bucket_bytes)}")
    if not cores:
        return Remedy("leave the network a core (communication.communication_cores: 1)")
    return Remedy("only less traffic helps: another partition of the tables, a larger minibatch per socket, or a faster network")


def waiting_evidence(waiting_s: float, iteration_s: float, most: str, cpus: tuple[int, ...]) -> str:
    where = f"core{'' if len(cpus) == 1 else 's'} {', '.join(map(str, cpus[:8]))}{', ...' if len(cpus) > 8 else ''}"
    share = f"{format_time(waiting_s)} of {format_time(iteration_s)} ({waiting_s / iteration_s:.0%})"
    return f"threads on {where} were at work without a core for {share}, most of it in {most}: other programs, or more threads than cores."


def bandwidth_evidence(streams: float, rows: float, time_s: float) -> str:
    given = f"memory gave {streams:.0%} of the streams and {rows:.0%} of the random rows that the probe found"
    return f"{given}; what memory binds takes {format_time(time_s)}."


def arithmetic_evidence(ratio: float, time_s: float) -> str:
    return f"arithmetic gave {ratio:.0%} of what the probe found; what it binds takes {format_time(time_s)}."


def oversubscribed_evidence(threads: int, ranks: int, cores: float, what: str) -> str:
    return f"{ranks} rank{'s' if ranks > 1 else ''} of {threads} threads on {cores:g} {what}: threads wait for each other at every join."


def oversubscribed_remedy(threads: int) -> Remedy:
    return Remedy(f"tune with {threads} threads a rank, or give the process more cores")


def verdict_sentence(
    model: str, sockets: int, threads: int, tuned_s: float, default_s: float, speedup: tuple[float, float, float], significant: bool
) -> str:
    """Time of an iteration, and the gain over the default."""
    place = f"{plural(sockets, 'socket')} with {plural(threads, 'thread')}{' each' if sockets > 1 else ''}"
    median, low, high = speedup
    gained = (
        f"{median:.2f} times as fast as the default's {format_time(default_s)} (95 %: {low:.2f} to {high:.2f})"
        if significant
        else "and tuning found nothing significantly faster than the default, which stands"
    )
    return f"{model} on {place} takes {format_time(tuned_s)} an iteration, {gained}."


def binder_sentence(shares: dict[str, float], above_s: float, iteration_s: float) -> str:
    """Which resources bind it, and what is left above them."""
    words = {"compute": "compute", "memory": "memory bandwidth", "network": "the network"}
    named = [f"{words[name]} binds {share:.0%}" for name, share in shares.items() if name in words and share >= 0.005]
    bound = ", ".join(named) or "no ceiling binds it"
    below = f"; {shares['none']:.0%} reaches no ceiling" if shares.get("none", 0.0) >= 0.005 else ""
    floor = f"with every pass at its nearest ceiling it would take {format_time(max(0.0, iteration_s - above_s))}"
    return f"{bound[0].upper()}{bound[1:]} of its time{below}; {floor}, {above_s / iteration_s:.0%} less."


def next_sentence(operator: str, saving_s: float, evidence: str, remedy: Remedy) -> str:
    """The next step: evidence and remedy of the first finding, whole."""
    worth = f" (at most {format_time(saving_s)})" if saving_s else ""
    return f"Most is to be had from {operator}{worth}: {evidence} To do: {remedy.text}."


def nothing_sentence() -> str:
    return "No finding would save a noticeable part of an iteration."


def unmeasured_sentence() -> str:
    """The second sentence for a config without its record."""
    return "What bound each pass is known by one line alone; the record, put beside the config, tells what to do next."


def record_missing(model: str) -> str:
    """What is missing where no record lies beside the config."""
    return (
        f"no record of {model} lies beside its config: passes, choices, tables, timeline and profile are missing; "
        "put the .record.json that tune wrote beside it"
    )
