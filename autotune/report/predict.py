"""Predictions as tables for a terminal: validation, scaling, what-if."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.config.tuned import Prediction
from autotune.report.layout import Column, table
from autotune.report.numbers import ms, number, percent
from autotune.units import format_bytes, format_time

if TYPE_CHECKING:
    from autotune.explaining.whatif import WhatIf
    from autotune.perf.validate import Validation
    from autotune.planning.scaling import Scaling


def validation(result: Validation, width: int = 80) -> RenderableType:
    """`validate`: errors by kind of pass, then iterations."""
    kinds = [*result.kinds, *([result.random] if result.random else [])]
    by_kind = [
        Column("pass", [kind.kind for kind in kinds], justify="left"),
        Column("n", [str(kind.count) for kind in kinds]),
        Column("median error", [percent(kind.median) for kind in kinds]),
        Column("90 %", [percent(kind.p90) for kind in kinds]),
        Column("visits apart, 90 %", [percent(kind.apart_p90) for kind in kinds], need=7),
        Column("bias", [f"{kind.bias:+.0%}" for kind in kinds], need=5),
        Column("in interval", [percent(kind.inside) for kind in kinds], need=6),
    ]
    rows = result.iterations
    iterations = [
        Column("model", [row.model for row in rows], justify="left"),
        Column("threads", [str(row.threads) for row in rows], need=4),
        Column("measured ms", [ms(row.measured_s) for row in rows]),
        Column("predicted ms", [ms(row.predicted_s) for row in rows]),
        Column("error", [f"{row.error:+.1%}" for row in rows]),
        Column("drift", [f"{row.drift:.2f}" for row in rows], need=6),
        Column("error less drift", [f"{row.error_without_drift:+.1%}" for row in rows], need=6),
        Column("disturbed", ["yes" if row.disturbed else "" for row in rows], need=3),
    ]
    lines = [
        f"{result.profile}, probed {result.created}, seed {result.seed}",
        f"reference models take {result.drift:.2f}x what they took when the machine was probed",
    ]
    notes = [
        f"{result.left_out} passes below 1 % of their iteration are left out",
        "drift: reference models measured beside each model, over what they took when probed; it is the machine's, not the prediction's",
        *result.notes,
    ]
    return Group(
        Text("\n".join(lines), style="bold"), Text(""), table(by_kind, width, "errors by kind of pass"), Text(""),
        table(iterations, width, "iterations"), Text(""), _notes(notes),
    )  # fmt: skip


def scaling(result: Scaling, width: int = 80) -> RenderableType:
    """`scale`: a row for each number of sockets."""
    rows = result.points
    base = result.baseline
    columns = [
        Column("sockets", [str(row.sockets) for row in rows]),
        Column("minibatch", [str(row.minibatch) for row in rows]),
        Column("ms", [ms(row.iteration.time_s) for row in rows]),
        Column("interval", [_range(row.iteration) for row in rows], need=5),
        Column("samples/s", [f"{row.samples_per_s:.3g}" for row in rows], need=6),
        Column(f"speed-up over {base}", [f"{row.speedup:.2f}" for row in rows]),
        Column("efficiency", [percent(row.efficiency) for row in rows]),
        Column("lemma", [f"{row.lemma_speedup:.2f}" for row in rows], need=4),
        Column("exposed", [percent(row.exposed_share) for row in rows], need=7),
        Column("a2a fwd/bwd, all-reduce exposed ms", [" ".join(ms(value) for value in row.exposed_s.values()) for row in rows], need=3),
        Column("imbalance", [f"{row.imbalance:.2f}" for row in rows], need=5),
        Column("memory", [format_bytes(row.memory_bytes) for row in rows], need=7),
        Column("tables placed", [row.partition for row in rows], need=2, justify="left"),
    ]
    head = f"{result.model} on {result.profile}, {result.mode} scaling, simulated"
    facts = [
        f"largest useful socket count of these: {result.largest_useful}",
        result.pays,
    ]
    return Group(Text(head, style="bold"), Text(""), table(columns, width), Text(""), *(Text(fact) for fact in facts), _notes(result.notes))


def what_if(result: WhatIf, width: int = 80) -> RenderableType:
    """`explain --what-if`: every operator before and after."""
    rows = result.operators
    columns = [
        Column("operator", [row.key for row in rows], justify="left"),
        Column("ms", [ms(row.before.time_s) for row in rows]),
        Column("then", [ms(row.after.time_s) for row in rows]),
        Column("gain", [f"{row.speedup:.2f}x" for row in rows]),
        Column("bound by", [row.binder_before for row in rows], need=6, justify="left"),
        Column("then by", [row.binder_after for row in rows], need=6, justify="left"),
    ]
    head = f"what if, {result.model} on {result.profile}: {format_time(result.before.time_s)} -> {format_time(result.after.time_s)}"
    head += f" ({_range(result.after)} ms), {number(result.speedup)}x"
    changes = Text("\n".join(f"with {change}" for change in result.changes))
    return Group(Text(head, style="bold"), changes, Text(""), table(columns, width), _notes(result.notes))


def _range(prediction: Prediction) -> str:
    return f"{ms(prediction.low_s)}-{ms(prediction.high_s)}"


def _notes(notes: list[str] | tuple[str, ...]) -> Text:
    return Text("\n".join(f"note: {note}" for note in notes))
