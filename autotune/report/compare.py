"""A comparison with peers as a terminal table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.report.layout import Column, table
from autotune.report.numbers import ms
from autotune.units import format_time

if TYPE_CHECKING:
    from autotune.comparing.compare import Comparison
    from autotune.config.tuned import Interval


def comparison(result: Comparison, width: int = 80) -> RenderableType:
    """`compare`: everybody's iteration, its distance from the bound, and how much faster ours is."""
    lines = result.lines
    columns = [
        Column("contestant", [line.name for line in lines], justify="left"),
        Column("ms", [ms(line.iteration_s.median) for line in lines]),
        Column("95 %", [f"{ms(line.iteration_s.low)}-{ms(line.iteration_s.high)}" for line in lines], need=5),
        Column("x bound", [f"{line.over_bound:.2f}" for line in lines], need=8),
        Column("over default", [_gain(line.default_gain) for line in lines], need=8),
        Column("over tuned", ["" if line.tuned_gain is None else _gain(line.tuned_gain) for line in lines], need=7),
        Column("loss differs", [f"{line.loss_error:.0e}" if line.loss_error else "" for line in lines], need=3),
        Column("group", [str(line.group + 1) for line in lines] if any(line.group for line in lines) else [""] * len(lines), need=4),
    ]
    head = f"{result.model}: {result.dtype}, minibatch {result.minibatch}, {result.threads} threads, {result.machine}"
    rounds = min(line.iteration_s.samples for line in lines)
    summary = (
        f"bound {format_time(result.bound_s)}: the least time of every pass by the ceilings probed {result.probed}, added up. "
        f"over default, over tuned: how much longer than ours it takes, median [95 %], {rounds} interleaved rounds."
    )
    absent = [Text(f"not compared: {name}: {why}") for name, why in result.absent.items()]
    notes = [Text(f"note: {note}") for note in result.notes]
    return Group(Text(head), Text(""), table(columns, width), Text(""), Text(summary), *absent, *notes)


def _gain(interval: Interval) -> str:
    return f"{interval.median:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
