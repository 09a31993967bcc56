"""The account of a tuned config: what was chosen and what each choice gained, what binds each operator, and what is left to gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.config.measured import TableUse
from autotune.config.profile import Fingerprint
from autotune.config.tuned import Gain, Interval, MeasuredPass, Prediction, Provenance, TunedConfig
from autotune.explaining import wording
from autotune.explaining.findings import Finding, Note, find, notes
from autotune.explaining.loads import Load, loads
from autotune.explaining.roofline import Roofline, roofline
from autotune.explaining.tables import tables_in_step
from autotune.explaining.terms import OTHER, above_ceiling_s, iteration_s
from autotune.explaining.timeline import Timeline, measured

if TYPE_CHECKING:
    from autotune.explaining.whatif import WhatIf


@dataclass(frozen=True)
class Choice:
    """Outcome of the race of one operator pass."""

    operator: str
    chosen: str
    """The knobs that differ from the default; empty where the default stands."""
    raced: bool
    """Whether candidates were raced at all; without, the default stands untested."""
    tried: str
    """The knobs that came nearest, where the default stands in spite of them."""
    candidates: int
    speedup: Interval | None
    """Default over tuned, of this pass alone; None where nothing was raced."""
    saved_s: float
    """Seconds per call that the choice saves; 0 where the default stands."""


@dataclass(frozen=True)
class Remaining:
    """Time of one pass above its nearest ceiling: the most that a better implementation could gain here."""

    operator: str
    time_s: float
    above_ceiling_s: float
    binder: str


@dataclass(frozen=True)
class Explanation:
    """The account of one tuned config: what terminal, JSON and page show."""

    model: str
    sockets: int
    threads: int
    minibatch: int
    """Global."""
    sentences: tuple[str, str, str]
    """The verdict: what it takes, what binds it, what to do next."""
    default_iteration_s: Interval
    tuned_iteration_s: Interval
    speedup: Interval
    significant: bool
    predicted_iteration: Prediction | None
    choices: tuple[Choice, ...]
    """Largest saving first, then those where the default stands; empty without a record."""
    operators: tuple[MeasuredPass, ...]
    """Every pass in the order they run, `share` being its part of their sum."""
    remaining: tuple[Remaining, ...]
    """Largest first; passes that no ceiling describes are left out."""
    findings: tuple[Finding, ...]
    """Largest saving first."""
    notes: tuple[Note, ...]
    """Remarks of the tuning run; no findings."""
    roofline: Roofline | None
    """None without a record, and where it holds no work."""
    timelines: tuple[Timeline, ...]
    """Measured, then predicted, as far as they are known."""
    loads: tuple[Load, ...]
    """Memory and time of every rank."""
    tables: tuple[TableUse, ...]
    """Tables by number; their times add up to the passes."""
    what_ifs: tuple[WhatIf, ...]
    """In the order they were asked for."""
    unpredicted: str
    """Why nothing could be predicted anew, where that was tried; empty otherwise."""
    fingerprint: Fingerprint
    provenance: Provenance
    bound_by: dict[str, str]
    """One line a pass, from the config itself: all that is known of the passes without a record."""
    missing: str
    """What is missing without the record; empty where it is at hand."""


def explain(config: TunedConfig, what_ifs: Sequence[WhatIf] = (), predicted: Timeline | None = None, unpredicted: str = "") -> Explanation:
    """Read a tuned config; nothing is measured, so any machine can explain any config.

    Args:
        what_ifs: to be shown with it.
        predicted: a timeline to be shown beside the measured one.
        unpredicted: why there is none, where one was wanted.
    """
    findings, total_s = find(config), iteration_s(config)
    timelines = (measured(config), predicted)
    return Explanation(
        model=config.model,
        sockets=config.sockets,
        threads=config.config.threads,
        minibatch=config.minibatch,
        sentences=_sentences(config, findings),
        default_iteration_s=config.default_iteration_s,
        tuned_iteration_s=config.tuned_iteration_s,
        speedup=config.speedup,
        significant=config.significant,
        predicted_iteration=config.predicted_iteration,
        choices=_choices(config),
        operators=tuple(v.model_copy(update={"share": v.time_s.median / total_s if total_s else 0.0}) for v in config.verdicts),
        remaining=_remaining(config),
        findings=findings,
        notes=notes(config),
        roofline=roofline(config),
        timelines=tuple(timeline for timeline in timelines if timeline is not None),
        loads=loads(config),
        tables=tables_in_step(config),
        what_ifs=tuple(what_ifs),
        unpredicted=unpredicted,
        fingerprint=config.fingerprint,
        provenance=config.provenance,
        bound_by=config.bound_by,
        missing="" if config.record else wording.record_missing(config.model),
    )


def _sentences(config: TunedConfig, findings: Sequence[Finding]) -> tuple[str, str, str]:
    total_s = iteration_s(config)
    gain = (config.speedup.median, config.speedup.low, config.speedup.high)
    shares = {
        binder: sum(v.time_s.median for v in config.verdicts if v.binder == binder) / total_s if total_s else 0.0
        for binder in ("compute", "memory", "network", "none")
    }
    shares = dict(sorted(shares.items(), key=lambda entry: -entry[1]))
    # Medians of passes need not add up to that of the iteration, of which the sentence before speaks.
    measured_s = config.tuned_iteration_s.median
    above_s = sum(above_ceiling_s(verdict) for verdict in config.verdicts) * measured_s / (total_s or 1.0)
    first = findings[0] if findings and findings[0].saving_s else None
    return (
        wording.verdict_sentence(
            config.model, config.sockets, config.config.threads, config.tuned_iteration_s.median, config.default_iteration_s.median, gain,
            config.significant,
        ),
        wording.binder_sentence(shares, above_s, measured_s) if total_s else wording.unmeasured_sentence(),
        wording.next_sentence(first.operator, first.saving_s, first.evidence, first.remedy)
        if first
        else wording.nothing_sentence() * bool(total_s),
    )  # fmt: skip


def _choices(config: TunedConfig) -> tuple[Choice, ...]:
    if config.record is None:
        return ()
    raced = [_raced(gain) for gain in config.gains]
    named = {gain.operator for gain in config.gains}
    untested = [
        Choice(operator, chosen="", raced=False, tried="", candidates=0, speedup=None, saved_s=0.0)
        for operator, knobs in config.config.operators.items()
        if operator not in named and knobs.kind != "fixed"
    ]
    return tuple(sorted([*raced, *untested], key=lambda choice: -choice.saved_s))


def _raced(gain: Gain) -> Choice:
    return Choice(
        operator=gain.operator,
        chosen=gain.knob if gain.kept else "",
        raced=True,
        tried="" if gain.kept else gain.knob,
        candidates=gain.candidates,
        speedup=gain.speedup,
        saved_s=max(0.0, gain.default_s.median - gain.tuned_s.median) if gain.kept else 0.0,
    )


def _remaining(config: TunedConfig) -> tuple[Remaining, ...]:
    rows = [
        Remaining(verdict.operator, verdict.time_s.median, above_ceiling_s(verdict), verdict.binder)
        for verdict in config.verdicts
        if verdict.fractions and verdict.operator != OTHER
    ]
    return tuple(sorted(rows, key=lambda row: -row.above_ceiling_s))
