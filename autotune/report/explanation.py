"""The account of a tuned config on one screen of a terminal: the verdict, the passes that matter, what was chosen, what to do."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from autotune.explaining.findings import Finding, grouped
from autotune.explaining.remedies import Remedy
from autotune.report.layout import Column, notes, operator_names, page, table
from autotune.report.numbers import bound, ms, one_knob_a_line, percent, prediction_range, speedup, speedup_range, time_interval
from autotune.units import format_time

if TYPE_CHECKING:
    from autotune.explaining.diagnosis import Choice, Explanation

_PASSES, _CHOICES, _FINDINGS, _NAMED = 8, 5, 4, 1


def explanation(result: Explanation, width: int = 80) -> RenderableType:
    """`explain`: the verdict, operators by their time, choices with their gain, findings by what they save."""
    kept = [choice for choice in result.choices if choice.chosen]
    parts: list[RenderableType] = [
        Text(" ".join(result.sentences[:2])),
        _passes(result, width) if result.operators else Text("\n".join(f"{name}: {line}" for name, line in result.bound_by.items())),
        *([_choice_table(kept[:_CHOICES], width)] if kept else []),
        *([Text(_standing(result.choices, len(kept)))] if result.choices else []),
        *_findings(result.findings, width),
        *notes((note.text + (f"; {_remedy(note.remedy)}" if note.remedy else "") for note in result.notes), style="dim"),
    ]
    ratio = f"speedup {speedup(result.speedup)} (95 %: {speedup_range(result.speedup)}, {result.speedup.samples} rounds)"
    return page(f"{result.model}: {time_interval(result.tuned_iteration_s)}, {ratio}", *parts)


def _passes(result: Explanation, width: int) -> RenderableType:
    rows = sorted(result.operators, key=lambda row: -row.time_s.median)[:_PASSES]
    columns = [
        Column("operator", operator_names([row.operator for row in rows], width), justify="left"),
        Column("ms", [ms(row.time_s.median) for row in rows]),
        Column("share", [percent(row.share) for row in rows], need=6),
        Column("bound by", [bound(row.binder, row.fractions) for row in rows], justify="left"),
        Column("above it", ["" if row.above_ceiling_s is None else ms(row.above_ceiling_s) for row in rows], need=8),
        Column("predicted", ["" if row.predicted is None else prediction_range(row.predicted) for row in rows], need=5),
    ]
    rest = len(result.operators) - len(rows)
    shown = table(columns, width)
    return Group(shown, Text(f"and {rest} more passes (--json and --html FILE show all)", style="dim")) if rest > 0 else shown


def _choice_table(choices: Sequence[Choice], width: int) -> RenderableType:
    columns = [
        Column("operator", operator_names([choice.operator for choice in choices], width), justify="left"),
        Column("saves ms", [ms(choice.saved_s) for choice in choices], need=5),
        Column("gain", ["" if choice.speedup is None else speedup(choice.speedup) for choice in choices]),
        Column("95 %", ["" if choice.speedup is None else speedup_range(choice.speedup) for choice in choices], need=6),
        Column("raced", [str(choice.candidates) for choice in choices], need=3),
        Column("default -> chosen", [one_knob_a_line(choice.chosen) for choice in choices], justify="left"),
    ]
    return table(columns, width, "chosen instead of the default")


def _standing(choices: Sequence[Choice], kept: int) -> str:
    """How many passes have a choice of their own, and why the others have not."""
    tied = sum(1 for choice in choices if choice.raced and not choice.chosen)
    untested = sum(1 for choice in choices if not choice.raced)
    more = f"{kept - _CHOICES} more choices; " if kept > _CHOICES else ""
    reasons = [
        f"{tied} raced without a significant gain" if tied else "",
        f"{untested} never raced" if untested else "",
    ]
    standing = ", ".join(filter(None, reasons))
    return more + (f"the default stands in {tied + untested} passes: {standing}" if standing else "every pass has a choice of its own")


def _findings(findings: Sequence[Finding], width: int) -> Iterable[RenderableType]:
    """The first groups; each with its remedy and the evidence of its first members."""
    groups = grouped(findings)
    shown = groups[:_FINDINGS]
    lines: list[RenderableType] = []
    for group in shown:
        first = group[0]
        lines.append(Text(f"{first.kind.replace('_', ' ')}: {_remedy(first.remedy)}", style="bold"))
        for finding in group[:_NAMED]:
            (name,) = operator_names([finding.operator], width)
            saving = f" (at most {format_time(finding.saving_s)})" if finding.saving_s else ""
            lines.append(Padding(Text(f"{name}{saving}: {finding.evidence}"), (0, 0, 0, 2)))
        if len(group) > _NAMED:
            rest = sum(finding.saving_s for finding in group[_NAMED:])
            names = operator_names([finding.operator for finding in group[_NAMED:]], width)
            saving = f" (at most {format_time(rest)} together)" if rest else ""
            lines.append(Padding(Text(f"and {', '.join(dict.fromkeys(names))}{saving}"), (0, 0, 0, 2)))
    hidden = sum(len(group) for group in groups[_FINDINGS:])
    if hidden:
        lines.append(Text(f"and {hidden} more findings (--json and --html FILE show all)", style="dim"))
    if lines:
        yield Group(*lines)


def _remedy(remedy: Remedy) -> str:
    """``tune again with a larger budget (autotune tune small --budget 240s)``."""
    return f"{remedy.text} ({shlex.join(remedy.command)})" if remedy.command else remedy.text
