"""Results as tables for a terminal. Every function takes a finished result and a width; nothing is computed here but its layout."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from autotune.config.knobs import RunConfig
from autotune.config.profile import Ceilings, ComputePoint, Profile, RowPoint, StreamPoint
from autotune.config.tuned import Gain, Interval, TunedConfig
from autotune.report.layout import Column, notes, operator_names, page, table
from autotune.report.network import network_tables, rank_table
from autotune.report.numbers import (
    bound,
    giga,
    ms,
    ms_range,
    number,
    one_knob_a_line,
    percent,
    speedup,
    speedup_range,
    time_interval,
)
from autotune.units import format_bytes, format_rate, format_time, plural

if TYPE_CHECKING:
    from autotune.perf.table import OperatorTable, Perturbation
    from autotune.report.record import RunResult
    from autotune.tuning.verify import Verification


def operator_table(result: OperatorTable, width: int = 80) -> RenderableType:
    """`profile`: one row an operator pass, and what is left of the iteration."""
    rows = result.rows
    columns = [
        Column("operator", operator_names([row.operator for row in rows], width), justify="left"),
        Column("ms", [ms(row.time_s.median) for row in rows]),
        Column("95 %", [ms_range(row.time_s) for row in rows], need=6),
        Column("predicted", ["" if row.predicted is None else ms(row.predicted.time_s) for row in rows], need=8),
        Column("share", [percent(row.share) for row in rows], need=8),
        Column("GF/s", [giga(row.flops_per_s) for row in rows], need=7),
        Column("GB/s", [giga(row.bandwidth_bytes_per_s) for row in rows], need=7),
        Column("F/B", [number(row.intensity) for row in rows], need=5),
        Column("GF", [giga(row.flops) for row in rows], need=1),
        Column("GB", [giga(row.bytes) for row in rows], need=1),
        Column("MB sent", [f"{row.bytes_sent / 1e6:.1f}" if row.hidden_s is not None else "" for row in rows], need=6),
        Column("hidden ms", ["" if row.hidden_s is None else ms(row.hidden_s) for row in rows], need=6),
        Column("slowest/mean", ["" if row.imbalance is None else f"{row.imbalance:.2f}x" for row in rows], need=4),
        *_fractions([row.fractions for row in rows]),
        Column("bound by", [bound(row.binder, row.fractions) for row in rows], justify="left"),
    ]
    speed = f"{time_interval(result.iteration_s)} per iteration"
    head = f"{result.model}: {speed}, minibatch {result.minibatch}, {plural(result.threads, 'thread')}"
    if result.predicted is not None:
        predicted = result.predicted
        head += f"\npredicted: {format_time(predicted.time_s)} ({format_time(predicted.low_s)} .. {format_time(predicted.high_s)})"
        head += f", {predicted.time_s / result.iteration_s.median - 1:+.0%}"
        head += f"; outside calibration: {predicted.extrapolated}" if predicted.extrapolated else ""
    proof = [_perturbations(result.perturbations, width), _agreement(result)] if result.perturbations else []
    ranks = [rank_table(result.ranks, width)] if result.ranks else []
    return page(head, table(columns, width), _legend(), *ranks, *proof, *notes(result.notes))


def _perturbations(perturbations: Sequence[Perturbation], width: int) -> RenderableType:
    columns = [
        Column("operator", operator_names([p.operator for p in perturbations], width), justify="left"),
        Column("verdict", [p.binder for p in perturbations], justify="left"),
        Column("resident", [_resident(p) for p in perturbations]),
        Column("half threads", ["-" if p.fewer_threads_loss is None else speedup(p.fewer_threads_loss) for p in perturbations], need=8),
        Column("half bytes", ["-" if p.fewer_bytes_gain is None else speedup(p.fewer_bytes_gain) for p in perturbations], need=8),
        Column("agrees", [_ANSWERS[p.agrees] for p in perturbations], justify="left"),
    ]
    if any(p.counters for p in perturbations):
        columns.append(Column("counters agree", [_ANSWERS[p.counters_agree] for p in perturbations], justify="left", need=8))
    return table(columns, width, title="perturbed: gain with resident data, loss with half the threads, gain with half the bytes sent")


_ANSWERS = {True: "yes", False: "NO", None: "-"}


def _agreement(result: OperatorTable) -> RenderableType:
    agree, contradict, untold = result.agreement
    summary = f"verdicts: {agree} agree with what perturbing showed, {contradict} contradict it, {untold} cannot be told by it"
    counted = [row.counters_agree for row in result.perturbations if row.counters]
    if counted:
        summary += f"; hardware counters agree with {counted.count(True)} and contradict {counted.count(False)}"
    return Text(summary)


def _resident(perturbation: Perturbation) -> str:
    if perturbation.warm_gain is None:
        return "-"
    return speedup(perturbation.warm_gain) if perturbation.resident else "too large"


def run_result(result: RunResult, width: int = 80) -> RenderableType:
    """`run`: speed, loss, and what was used."""
    evaluated = result.evaluation
    first_to_last = f"{result.losses[0]:.6f} first, {result.losses[-1]:.6f} last"
    facts = [
        ("iteration", time_interval(result.iteration_s)),
        ("samples/s", f"{result.samples_per_s:,.0f}"),
        ("loss", first_to_last if evaluated is None else f"{evaluated.loss:.6f}"),
        ("AUC", "" if result.auc is None else f"{result.auc:.4f}"),
        ("accuracy", "" if evaluated is None or evaluated.accuracy is None else f"{evaluated.accuracy:.2%}"),
        ("data", result.data),
        ("used", run_config(result.config)),
    ]
    head = f"{result.model}: {result.steps} steps of {result.minibatch} samples"
    if evaluated is not None:
        head = f"{result.model}: evaluated on {evaluated.samples} samples, {result.minibatch} at a time"
    return page(head, _facts(facts, width), *notes(result.notes))


def run_config(config: RunConfig) -> str:
    """One line: ``2 threads, huge pages, knobs for 14 operator passes``."""
    pages = "huge pages" if config.huge_pages else "small pages"
    knobs = f"knobs for {len(config.operators)} operator passes" if config.operators else "default knobs"
    return f"{plural(config.threads, 'thread')}, {pages}, {knobs}"


def profile(result: Profile, width: int = 80) -> RenderableType:
    """`probe`: the machine and its ceilings."""
    machine = result.fingerprint.topology
    caches = [("L1D", machine.l1d_bytes), ("L2", machine.l2_bytes), ("L3", machine.l3_bytes)]
    limit_bytes = machine.memory_limit_bytes
    facts = [
        ("cpu", machine.cpu_model),
        ("cores", f"{machine.physical_cores} ({machine.logical_cpus} logical CPUs) on {machine.sockets} sockets"),
        ("quota", "" if machine.cpu_quota is None else f"{machine.cpu_quota:g} CPUs (cgroup)"),
        ("caches", ", ".join(f"{name} {format_bytes(size)}" for name, size in caches if size)),
        ("memory", format_bytes(machine.memory_bytes) + (f", cgroup limit {format_bytes(limit_bytes)}" if limit_bytes else "")),
        ("pages", f"transparent huge pages: {machine.huge_pages}"),
        ("kernels", f"{result.fingerprint.target} ({' '.join(machine.isa)})"),
        ("source", f"{result.source}, {result.created}"),
    ]
    network = network_tables(result.network, width) if result.network else []
    remarks = result.notes + (result.network.notes if result.network else ())
    return page(result.name, _facts(facts, width), *_ceilings(result.ceilings, width), *network, *notes(remarks))


def tuned_config(result: TunedConfig, width: int = 80, file: str | None = None) -> RenderableType:
    """`tune`: per operator what binds it, what each choice gained, and the whole."""
    spent = result.provenance
    verdict = "significant" if result.significant else "no significant gain: the default stands"
    facts = [
        *_confirmation(result.default_iteration_s, result.tuned_iteration_s, result.speedup, f", {verdict}"),
        ("used", run_config(result.config)),
        ("spent", f"{format_time(spent.spent_s)} of {format_time(spent.budget_s)}, {spent.trials} trials of the whole iteration"),
        ("config", file or ""),
    ]
    gains = [gain_table(result.gains, width)] if result.gains else []
    return page(
        f"{result.model}, {plural(result.sockets, 'socket')}",
        verdict_table(result, width),
        *gains,
        _facts(facts, width),
        *notes(spent.notes),
    )


def verdict_table(result: TunedConfig, width: int = 80) -> RenderableType:
    """Time and binder of every operator pass of a tuned config."""
    rows = result.verdicts
    columns = [
        Column("operator", operator_names([row.operator for row in rows], width), justify="left"),
        Column("ms", [ms(row.time_s.median) for row in rows]),
        Column("95 %", [ms_range(row.time_s) for row in rows], need=6),
        *_fractions([row.fractions for row in rows]),
        Column("bound by", [bound(row.binder, row.fractions) for row in rows], justify="left"),
    ]
    return table(columns, width, "operators, tuned")


def gain_table(gains: Sequence[Gain], width: int = 80) -> RenderableType:
    """Gain of each raced choice over the default."""
    columns = [
        Column("operator", operator_names([gain.operator for gain in gains], width), justify="left"),
        Column("default ms", [ms(gain.default_s.median) for gain in gains], need=6),
        Column("tuned ms", [ms(gain.tuned_s.median) for gain in gains], need=6),
        Column("gain", [speedup(gain.speedup) for gain in gains]),
        Column("95 %", [speedup_range(gain.speedup) for gain in gains], need=8),
        Column("raced", [str(gain.candidates) for gain in gains], need=3),
        Column("kept", ["yes" if gain.kept else "no" for gain in gains], justify="left"),
        Column("knobs", [one_knob_a_line(gain.knob) if gain.kept else "" for gain in gains], need=4, justify="left"),
    ]
    return table(columns, width, "choices, against the default side by side")


def verification(result: Verification, width: int = 80) -> RenderableType:
    """`verify`: default against tuned, measured again."""
    facts = [
        *_confirmation(result.default_s, result.tuned_s, result.speedup),
        ("verdict", result.reason),
    ]
    return page("holds" if result.holds else "does not hold", _facts(facts, width), *notes(result.notes))


def _confirmation(default: Interval, tuned: Interval, gain: Interval, verdict: str = "") -> list[tuple[str, str]]:
    return [
        ("default", time_interval(default)),
        ("tuned", time_interval(tuned)),
        ("speedup", f"{speedup(gain)} (95 %: {speedup_range(gain)}, {gain.samples} rounds){verdict}"),
    ]


def _ceilings(ceilings: Ceilings, width: int) -> Iterable[RenderableType]:
    threads = sorted({point.threads for name in type(ceilings).model_fields for point in getattr(ceilings, name)})
    rows: list[tuple[str, list[str]]] = []
    for title, points in (("FMA", ceilings.fma), ("GEMM", ceilings.gemm)):
        rows += _byplural(threads, {(title, point.threads): _flops(point) for point in points})
    rows += _byplural(threads, {(f"stream {point.kind}", point.threads): _bandwidth(point) for point in ceilings.stream})
    for title, row_points in (("gather", ceilings.gather), ("scatter", ceilings.scatter)):
        rows += _byplural(threads, {(_row_title(title, point), point.threads): _bandwidth(point) for point in row_points})
    rows += _byplural(threads, {("fork-join", point.threads): format_time(point.time_s) for point in ceilings.fork_join})
    columns = [Column("ceiling", [title for title, _ in rows], justify="left")]
    columns += [Column(plural(count, "thread"), [cells[i] for _, cells in rows]) for i, count in enumerate(threads)]
    # With many thread counts the middle ones go first: the ends tell the most.
    last = len(columns) - 1
    columns[1:] = [Column(c.title, c.cells, need=9 if i in (1, last) else 1, justify=c.justify) for i, c in enumerate(columns[1:], 1)]
    yield table(columns, width)


def _byplural(threads: Sequence[int], cells: dict[tuple[str, int], str]) -> list[tuple[str, list[str]]]:
    return [(title, [cells.get((title, count), "") for count in threads]) for title in dict.fromkeys(title for title, _ in cells)]


def _flops(point: ComputePoint) -> str:
    return format_rate(point.flops_per_s, "flops")


def _bandwidth(point: StreamPoint | RowPoint) -> str:
    return format_rate(point.bandwidth_bytes_per_s, "bytes")


def _row_title(title: str, point: RowPoint) -> str:
    return f"{title} {format_bytes(point.row_bytes)} rows of {format_bytes(point.working_set_bytes)}"


def _fractions(fractions: Sequence[dict[str, float]]) -> list[Column]:
    """A column for each ceiling that any row is held against; the first to go, since `bound by` repeats the highest."""
    names = dict.fromkeys(name for row in fractions for name in row)
    return [Column(f"% {name}", [percent(row.get(name)) for row in fractions], need=2) for name in names]


def _legend() -> Text:
    return Text(
        "F/B: flops per byte of compulsory traffic. Bound by: the nearest ceiling and the fraction of it reached; none: below 60 % of all.",
        style="dim",
    )


def _facts(pairs: Iterable[tuple[str, str]], width: int) -> RenderableType:
    shown = [(label, text) for label, text in pairs if text]
    indent = max((len(label) for label, _ in shown), default=0) + 2
    wrapper = textwrap.TextWrapper(max(20 + indent, width), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    return Text("\n".join(wrapper.fill(f"{label:<{indent}}{' '.join(text.split())}") for label, text in shown))
