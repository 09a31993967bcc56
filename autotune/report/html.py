"""The report as one self-contained page: no network, no fonts, no libraries; readable without script, which adds sorting and hover."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from autotune.config.tuned import MeasuredPass
from autotune.explain.diagnosis import Choice, Explanation
from autotune.explain.findings import Finding, grouped
from autotune.explain.loads import FAMILIES
from autotune.explain.terms import OTHER
from autotune.explain.timeline import Timeline
from autotune.report import charts
from autotune.report.html_table import Cell, Head, table
from autotune.report.machine import facts
from autotune.report.numbers import NONE, giga, ms, ms_range, number, percent, plural, prediction_range, speedup, speedup_range
from autotune.units import format_bytes, format_time

_ASSETS = Path(__file__).parent / "assets"
_SHOWN_FINDINGS = 8


def page(result: Explanation) -> str:
    """The whole document."""
    sections = [section for section in _sections(result) if section is not None]
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title, _ in sections)
    body = "".join(_section(*section) for section in sections)
    title = escape(f"{result.model}: where an iteration goes")
    style, script = ((_ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    made = f"autotune {result.provenance.autotune_version}, tuned {result.provenance.created}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="autotune">\n<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n'
        f"<header>{_head(result)}<nav aria-label=\"Sections\"><ul>{links}</ul></nav></header>\n<main>{body}</main>\n"
        f"<footer>{escape(made)}. Times are medians; brackets and bars are 95 % intervals, of predictions the range expected in four cases "
        f"out of five.</footer>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _section(name: str, title: str, inside: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{inside}</section>'


def _sections(result: Explanation) -> Iterator[tuple[str, str, str] | None]:
    """Id, title and markup of each, in the order of the page."""
    yield "findings", "Findings", _findings(result.findings)
    yield "roofline", "Roofline", _roofline(result)
    yield "timeline", "One iteration in time", _timelines(result.timelines)
    yield "operators", "Operators", _operators(result.operators)
    yield "predicted", "Predicted against measured", _predicted(result)
    yield "tuned", "What was tuned", _tuned(result.choices)
    yield "partition", "Partition" if result.sockets > 1 else "Memory and time", _partition(result)
    yield ("tables", "Embedding tables", _tables(result)) if result.tables else None
    yield ("whatif", "What if", _what_ifs(result)) if result.what_ifs or result.unpredicted else None
    yield "machine", "Machine and provenance", _machine(result)


def _head(result: Explanation) -> str:
    threads = f"{plural(result.threads, 'thread')}{' each' if result.sockets > 1 else ''}"
    under = f"{plural(result.sockets, 'socket')}, {threads}, minibatch {result.minibatch}, {result.fingerprint.topology.cpu_model}"
    tuned, default = result.tuned_iteration_s, result.default_iteration_s
    shown = [
        ("iteration, tuned", f"{ms(tuned.median)} ms", f"{ms_range(tuned)} ms"),
        ("iteration, default", f"{ms(default.median)} ms", f"{ms_range(default)} ms"),
        ("speedup", speedup(result.speedup), f"{speedup_range(result.speedup)}, {result.speedup.samples} rounds"),
    ]
    if result.predicted_iteration is not None:
        one = result.predicted_iteration
        shown.append(("predicted", f"{ms(one.time_s)} ms", f"{ms(one.low_s)}-{ms(one.high_s)} ms"))
    figures = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in shown)
    title = f'<h1>{escape(result.model)}</h1><p class="under">{escape(under)}</p>'
    missing = f"<p>{escape(result.missing)}.</p>" if result.missing else ""
    return f'{title}<p class="verdict">{escape(" ".join(result.sentences))}</p>{missing}<dl class="figures">{figures}</dl>'


def _findings(findings: Sequence[Finding]) -> str:
    groups = grouped(findings)
    if not groups:
        return "<p>None.</p>"
    items = [_finding(group) for group in groups]
    shown = f'<ol class="findings">{"".join(items[:_SHOWN_FINDINGS])}</ol>'
    if len(items) > _SHOWN_FINDINGS:
        rest = "".join(items[_SHOWN_FINDINGS:])
        more = f'<ol class="findings" start="{_SHOWN_FINDINGS + 1}">{rest}</ol>'
        shown += f"<details><summary>{len(items) - _SHOWN_FINDINGS} more</summary>{more}</details>"
    return f'<p class="note">Ranked by what each would save at most; savings of different findings may overlap.</p>{shown}'


def _finding(group: Sequence[Finding]) -> str:
    saving_s = max(finding.saving_s for finding in group)
    worth = f' <span class="worth">at most {escape(format_time(saving_s))}</span>' if saving_s else ""
    kind = escape(group[0].kind.replace("_", " "))
    lines = "".join(f"<li>{escape(_evidence(finding, len(group) > 1))}</li>" for finding in group)
    return f'<li><span class="kind">{kind}</span>{worth}<ul>{lines}</ul><div class="remedy">{escape(group[0].remedy)}</div></li>'


def _evidence(finding: Finding, several: bool) -> str:
    saving = f" (at most {format_time(finding.saving_s)})" if several and finding.saving_s else ""
    return f"{finding.operator}{saving}: {finding.evidence}"


def _figure(svg: str, caption: str, legend: str = "") -> str:
    return f'<figure><div class="box">{svg}</div>{legend}<figcaption>{escape(caption)}</figcaption></figure>'


def _roofline(result: Explanation) -> str:
    found = result.roofline
    if found is None:
        return _missing("the work of its passes")
    binders = list(dict.fromkeys(point.binder for point in found.points))
    caption = (
        "Every pass with arithmetic; the lines are ceilings measured on this machine"
        f"{' and shared among its ranks' if result.sockets > 1 else ''} with {plural(found.threads, 'thread')}. "
        "Embedding passes count each row that passes; rows met again may come from a cache, so they can lie above their line."
    )
    if found.without:
        caption += f" Without arithmetic, so not here: {', '.join(found.without)}."
    return _figure(charts.roofline(found), caption, charts.binder_legend(binders) + charts.line_legend(found.ceilings))


def _timelines(timelines: Sequence[Timeline]) -> str:
    if not timelines:
        return _missing("a timeline")
    parts = []
    for one in timelines:
        names = list(FAMILIES) if one.ranks > 1 else [name for name in FAMILIES if name != "waiting"]
        network = ["network"] if any(bar.lane == "network" for bar in one.bars) else []
        more = f" Only the first {charts.SHOWN_RANKS} of {one.ranks} ranks are drawn." if one.ranks > charts.SHOWN_RANKS else ""
        told = f"{one.note[0].upper()}{one.note[1:]}.{more}"
        parts.append(f"<h3>{one.source.capitalize()}</h3>{_figure(charts.timeline(one), told, charts.legend(names + network))}")
    return "".join(parts)


def _operators(rows: Sequence[MeasuredPass]) -> str:
    network = any(row.hidden_s is not None for row in rows)
    heads = [
        Head("operator pass"),
        Head("ms", hint="median per iteration; of a transfer what was waited for"),
        Head("95 %"),
        Head("share", hint="of the iteration"),
        Head("bound by", "left"),
        Head("reached", hint="share of the nearest ceiling"),
        Head("above, ms", hint="time above the nearest ceiling: the most there is to gain"),
        Head("GF/s"),
        Head("GB/s"),
        Head("flops/byte"),
        *([Head("hidden, ms", hint="of a transfer: behind other passes")] if network else []),
    ]
    cells = []
    for row in rows:
        reached = max(row.fractions.values(), default=None)
        cells.append(
            [
                Cell(row.operator),
                Cell(ms(row.time_s.median), row.time_s.median),
                Cell(ms_range(row.time_s), row.time_s.high - row.time_s.low),
                Cell(percent(row.share), row.share),
                Cell(row.binder, kind=f"b-{row.binder}"),
                Cell(percent(reached), reached),
                Cell(NONE if row.above_ceiling_s is None else ms(row.above_ceiling_s), row.above_ceiling_s),
                Cell(giga(row.flops_per_s), row.flops_per_s),
                Cell(giga(row.bandwidth_bytes_per_s), row.bandwidth_bytes_per_s),
                Cell(number(row.intensity), row.intensity),
                *([Cell("" if row.hidden_s is None else ms(row.hidden_s), row.hidden_s)] if network else []),
            ]
        )
    evidence = "".join(f"<dt>{escape(row.operator)}</dt><dd>{escape(row.detail)}</dd>" for row in rows if row.detail)
    told = f'<details><summary>The evidence of each verdict</summary><dl class="facts">{evidence}</dl></details>' if evidence else ""
    return table(heads, cells, "In the order they run; the columns sort.") + told


def _predicted(result: Explanation) -> str:
    rows = [row for row in result.operators if row.predicted is not None and row.over_predicted]
    if not rows:
        return _missing("predictions")
    drawn = [
        charts.RatioRow(
            row.operator,
            row.predicted.low_s / row.time_s.median,
            row.predicted.time_s / row.time_s.median,
            row.predicted.high_s / row.time_s.median,
            f"{row.operator}\npredicted {prediction_range(row.predicted)} ms\nmeasured {ms(row.time_s.median)} ({ms_range(row.time_s)}) ms",
            strong=not row.predicted.extrapolated,
        )
        for row in rows
        if row.predicted is not None and row.time_s.median and row.operator != OTHER
    ]
    caption = "Predicted over measured, from the profile alone; right of 1 the prediction is too slow. Grey: outside what was calibrated."
    cells = [
        [
            Cell(row.operator),
            Cell(ms(row.time_s.median), row.time_s.median),
            Cell(prediction_range(row.predicted), row.predicted.time_s),
            Cell(number(row.over_predicted), row.over_predicted),
            Cell(row.predicted.extrapolated, kind="words"),
        ]
        for row in rows
        if row.predicted is not None
    ]
    heads = [Head("operator pass"), Head("measured, ms"), Head("predicted, ms"), Head("measured / predicted")]
    heads.append(Head("outside the calibration", "words"))
    return _figure(charts.ratios("Predicted over measured time", drawn, "predicted / measured"), caption) + table(heads, cells)


def _tuned(choices: Sequence[Choice]) -> str:
    raced = [choice for choice in choices if choice.candidates > 1 and choice.speedup is not None]
    untested = [choice.operator for choice in choices if choice.candidates < 2]
    drawn = [
        charts.RatioRow(
            choice.operator,
            choice.speedup.low,
            choice.speedup.median,
            choice.speedup.high,
            f"{choice.operator}\n{speedup(choice.speedup)} ({speedup_range(choice.speedup)}), {choice.candidates} raced\n"
            f"{choice.chosen or 'the default stands'}",
            strong=bool(choice.chosen),
        )
        for choice in raced
        if choice.speedup is not None
    ]
    out = ""
    if drawn:
        caption = (
            "Default over chosen, each pass alone, side by side. Grey: the default stands, and its best rival is shown; it stands where "
            "the whole iteration did not gain significantly."
        )
        out = _figure(charts.ratios("Gain of every choice", drawn, "times as fast as the default"), caption)
        heads = [
            Head("operator pass"), Head("gain"), Head("95 %"), Head("saves, ms"), Head("raced", hint="candidates"), Head("stands", "left"),
            Head("default -> chosen", "words"),
        ]  # fmt: skip
        cells = [
            [
                Cell(choice.operator),
                Cell(speedup(choice.speedup), choice.speedup.median),
                Cell(speedup_range(choice.speedup), choice.speedup.high - choice.speedup.low),
                Cell(ms(choice.saved_s), choice.saved_s),
                Cell(str(choice.candidates), choice.candidates),
                Cell("choice" if choice.chosen else "default", kind="left"),
                Cell(choice.chosen or (f"not taken: {choice.tried}" if choice.tried != "default" else ""), kind="words"),
            ]
            for choice in raced
            if choice.speedup is not None
        ]
        out += table(heads, cells)
    else:
        out = "<p>No candidate was raced.</p>"
    return out + (f'<p class="note">Never raced, the default stands: {escape(", ".join(untested))}.</p>' if untested else "")


def _partition(result: Explanation) -> str:
    loads = result.loads
    if not loads:
        return _missing("what each rank holds")
    many = f" Only the first {charts.SHOWN_RANKS} of {len(loads)} ranks are drawn." if len(loads) > charts.SHOWN_RANKS else ""
    parts = []
    if any(load.memory for load in loads):
        kinds = list(dict.fromkeys(part.family for load in loads for part in load.memory))
        svg = charts.stacked("Memory of each rank", loads, lambda load: load.memory, 2.0**20, "MiB", format_bytes)
        parts.append(_figure(svg, f"Memory of tables and dense layers by rank.{many}", charts.legend(kinds)))
    families = [name for name in FAMILIES if any(part.family == name for load in loads for part in load.time)]
    svg = charts.stacked("Time of each rank", loads, lambda load: load.time, 1e-3, "ms per iteration", format_time)
    parts.append(_figure(svg, f"Time of an iteration by rank.{many}", charts.legend(families)))
    if len(loads) > 1:
        heads = [Head("rank"), Head("tables"), Head("memory"), Head("look-ups"), Head("computes, ms"), Head("waits, ms")]
        cells = []
        for load in loads:
            waits = sum(part.value for part in load.time if part.family == "waiting")
            cells.append(
                [
                    Cell(str(load.rank), load.rank),
                    Cell(str(load.tables), load.tables),
                    Cell(format_bytes(load.memory_bytes), load.memory_bytes),
                    Cell(NONE if load.lookups is None else f"{load.lookups:,}", load.lookups),
                    Cell(ms(load.time_s - waits), load.time_s - waits),
                    Cell(ms(waits), waits),
                ]
            )
        parts.append(table(heads, cells))
    return "".join(parts)


def _tables(result: Explanation) -> str:
    heads = [
        Head("table"), *([Head("rank")] if result.sockets > 1 else []), Head("rows"), Head("dim"), Head("look-ups"), Head("distinct rows"),
        Head("in hottest rows", hint="share of the look-ups that hit the 16 hottest rows"), Head("forward, us"), Head("of its ceiling"),
        Head("update, us"), Head("of its ceiling"),
        Head("busiest thread", hint="look-ups of the busiest thread over the mean, rows owned by range"),
    ]  # fmt: skip
    cells = [
        [
            Cell(str(use.table), use.table),
            *([Cell(str(use.rank), use.rank)] if result.sockets > 1 else []),
            Cell(f"{use.rows:,}", use.rows),
            Cell(str(use.dim), use.dim),
            Cell(f"{use.lookups:,}", use.lookups),
            Cell(f"{use.unique:,}", use.unique),
            Cell(percent(use.hot_share), use.hot_share),
            Cell(number(1e6 * use.forward_s), use.forward_s),
            Cell(*_reached(use.forward_ceiling_s, use.forward_s)),
            Cell(number(1e6 * use.update_s), use.update_s),
            Cell(*_reached(use.update_ceiling_s, use.update_s)),
            Cell(f"{use.range_load:.2f}x", use.range_load),
        ]
        for use in result.tables
    ]
    told = "One minibatch. Each table's part of the pass, in proportion to what it takes alone."
    return table(heads, cells, told)


def _reached(ceiling_s: float, time_s: float) -> tuple[str, float | None]:
    share = ceiling_s / time_s if time_s else None
    return percent(share), share


def _what_ifs(result: Explanation) -> str:
    results = result.what_ifs
    if not results:
        return f"<p>Nothing could be predicted: {escape(result.unpredicted)}.</p>"
    heads = [Head("change", "words"), Head("now, ms"), Head("then, ms"), Head("speedup"), Head("passes with another binder", "words")]
    cells, details = [], []
    for one in results:
        moved: dict[str, list[str]] = {}
        for row in one.operators:
            if row.binder_before != row.binder_after:
                moved.setdefault(f"{row.binder_before} -> {row.binder_after}", []).append(row.key)
        words = "; ".join(f"{change}: {', '.join(keys)}" for change, keys in moved.items())
        cells.append(
            [
                Cell("; ".join(one.changes), kind="words"),
                Cell(prediction_range(one.before), one.before.time_s),
                Cell(prediction_range(one.after), one.after.time_s),
                Cell(f"{one.speedup:.2f}x", one.speedup),
                Cell(words or "none", kind="words"),
            ]
        )
        rows = [
            [
                Cell(row.key),
                Cell(ms(row.before.time_s), row.before.time_s),
                Cell(ms(row.after.time_s), row.after.time_s),
                Cell(f"{row.speedup:.2f}x", row.speedup),
                Cell(row.binder_before, kind=f"b-{row.binder_before}"),
                Cell(row.binder_after, kind=f"b-{row.binder_after}"),
            ]
            for row in one.operators
        ]
        times = [Head("operator pass"), Head("now, ms"), Head("then, ms"), Head("speedup")]
        inner = table([*times, Head("bound by", "left"), Head("then by", "left")], rows)
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in one.notes)
        details.append(f"<details><summary>{escape('; '.join(one.changes))}: pass by pass</summary>{inner}{notes}</details>")
    return table(heads, cells, f"Predicted from the profile {results[0].profile}.") + "".join(details)


def _machine(result: Explanation) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(told)}</dd>" for name, told in facts(result.fingerprint, result.provenance))
    command = f"<p>Tuned with <code>{escape(result.provenance.command)}</code></p>"
    return f'<dl class="facts">{rows}</dl>{command}'


def _missing(what: str) -> str:
    return f"<p>This config does not hold {escape(what)}: it was written by an older version. Tune again to see more.</p>"
