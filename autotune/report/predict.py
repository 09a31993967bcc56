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
    from autotune.explain.whatif import WhatIf
    from autotune.perf.validate import Validation
    from autotune.plan.scaling import Scaling


def validation(result: Validation, width: int = 80) -> RenderableType:
    """`validate`: errors by kind of pass, then iterations."""
    kinds = [*result.kinds, *([result.random] if result.random else [])]
    by_kind = [
        Column("pass", [one.kind for one in kinds], justify="left"),
        Column("n", [str(one.count) for one in kinds]),
        Column("median error", [percent(one.median) for one in kinds]),
        Column("90 %", [percent(one.p90) for one in kinds]),
        Column("visits apart, 90 %", [percent(one.apart_p90) for one in kinds], need=7),
        Column("bias", [f"{one.bias:+.0%}" for one in kinds], need=5),
        Column("in interval", [percent(one.inside) for one in kinds], need=6),
    ]
    rows = result.iterations
    iterations = [
        Column("model", [one.model for one in rows], justify="left"),
        Column("threads", [str(one.threads) for one in rows], need=4),
        Column("measured ms", [ms(one.measured_s) for one in rows]),
        Column("predicted ms", [ms(one.predicted_s) for one in rows]),
        Column("error", [f"{one.error:+.1%}" for one in rows]),
        Column("drift", [f"{one.drift:.2f}" for one in rows], need=6),
        Column("error less drift", [f"{one.error_without_drift:+.1%}" for one in rows], need=6),
        Column("disturbed", ["yes" if one.disturbed else "" for one in rows], need=3),
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
        Column("sockets", [str(one.sockets) for one in rows]),
        Column("minibatch", [str(one.minibatch) for one in rows]),
        Column("ms", [ms(one.iteration.time_s) for one in rows]),
        Column("interval", [_range(one.iteration) for one in rows], need=5),
        Column("samples/s", [f"{one.samples_per_s:.3g}" for one in rows], need=6),
        Column(f"speed-up over {base}", [f"{one.speedup:.2f}" for one in rows]),
        Column("efficiency", [percent(one.efficiency) for one in rows]),
        Column("lemma", [f"{one.lemma_speedup:.2f}" for one in rows], need=4),
        Column("exposed", [percent(one.exposed_share) for one in rows], need=7),
        Column("a2a fwd/bwd, all-reduce exposed ms", [" ".join(ms(value) for value in one.exposed_s.values()) for one in rows], need=3),
        Column("imbalance", [f"{one.imbalance:.2f}" for one in rows], need=5),
        Column("memory", [format_bytes(one.memory_bytes) for one in rows], need=7),
        Column("tables placed", [one.partition for one in rows], need=2, justify="left"),
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
        Column("operator", [one.key for one in rows], justify="left"),
        Column("ms", [ms(one.before.time_s) for one in rows]),
        Column("then", [ms(one.after.time_s) for one in rows]),
        Column("gain", [f"{one.speedup:.2f}x" for one in rows]),
        Column("bound by", [one.binder_before for one in rows], need=6, justify="left"),
        Column("then by", [one.binder_after for one in rows], need=6, justify="left"),
    ]
    head = f"what if, {result.model} on {result.profile}: {format_time(result.before.time_s)} -> {format_time(result.after.time_s)}"
    head += f" ({_range(result.after)} ms), {number(result.speedup)}x"
    changes = Text("\n".join(f"with {change}" for change in result.changes))
    return Group(Text(head, style="bold"), changes, Text(""), table(columns, width), _notes(result.notes))


def _range(found: Prediction) -> str:
    return f"{ms(found.low_s)}-{ms(found.high_s)}"


def _notes(notes: list[str] | tuple[str, ...]) -> Text:
    return Text("\n".join(f"note: {note}" for note in notes))
