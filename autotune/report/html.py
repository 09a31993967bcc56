"""The report as one self-contained page: no network, no fonts, no libraries; readable without script, which adds sorting and hover."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from autotune.explaining.diagnosis import Explanation
from autotune.explaining.findings import grouped
from autotune.report import numbers
from autotune.report.figures import ASSETS, figures
from autotune.report.machine import facts
from autotune.units import format_bytes, format_time, plural

if TYPE_CHECKING:
    from autotune.explaining.whatif import WhatIf

_SHOWN_FINDINGS = 8


def page(result: Explanation) -> str:
    """The whole document."""
    templates = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for function in (numbers.ms, numbers.ms_range, numbers.giga, numbers.percent, numbers.number, numbers.speedup, plural):
        templates.globals[function.__name__] = function
    return templates.get_template("page.html.j2").render(
        result=result,
        figures={figure.name: figure for figure in figures(result)},
        groups=grouped(result.findings),
        shown_findings=_SHOWN_FINDINGS,
        facts=facts(result.fingerprint, result.provenance),
        prediction_range=numbers.prediction_range,
        speedup_range=numbers.speedup_range,
        none_mark=numbers.NONE,
        format_time=format_time,
        format_bytes=format_bytes,
        command_line=shlex.join,
        moved_passes=_moved_passes,
    )


def _moved_passes(what_if: WhatIf) -> str:
    """``memory -> compute: embedding_bag.forward``: the passes that another resource binds after the change."""
    moved: dict[str, list[str]] = {}
    for row in what_if.operators:
        if row.binder_before != row.binder_after:
            moved.setdefault(f"{row.binder_before} -> {row.binder_after}", []).append(row.key)
    return "; ".join(f"{change}: {', '.join(keys)}" for change, keys in moved.items()) or "none"
