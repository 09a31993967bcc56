"""What a tuned config tells: what was chosen and what each choice gained, what binds each operator, and what is left to gain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autotune.config.tuned import Gain, Interval, TunedConfig, Verdict
from autotune.explain import wording
from autotune.explain.wording import FindingKind

OTHER = "other"
"""The verdict that stands for the time outside every operator."""
ITERATION = "iteration"
"""The operator of a gain that concerns the whole step."""

_BOUND: dict[str, FindingKind] = {"memory": "memory_bound", "compute": "compute_bound", "network": "network_bound"}
# Shares below this are lost in the noise of an iteration (10 % between quartiles), whatever binds them.
_WORTH_NAMING = 0.01
# A 95 % interval wider than a fifth of its median cannot tell a useful gain from none.
_WIDE = 0.20


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing, with its evidence and what to do about it."""

    kind: FindingKind
    operator: str
    """Operator pass, or ``iteration``."""
    saving_s: float
    """Seconds per iteration that would go at most; 0 where it is not a matter of time."""
    evidence: str
    remedy: str


@dataclass(frozen=True)
class Choice:
    """What was decided about one operator pass."""

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
    """The account of one tuned config."""

    model: str
    sockets: int
    threads: int
    default_iteration_s: Interval
    tuned_iteration_s: Interval
    speedup: Interval
    significant: bool
    choices: tuple[Choice, ...]
    """Largest saving first, then those where the default stands."""
    verdicts: tuple[Verdict, ...]
    """What binds each operator, longest first."""
    remaining: tuple[Remaining, ...]
    """Largest first; passes that no ceiling describes are left out."""
    findings: tuple[Finding, ...]
    """Largest saving first."""


def explain(config: TunedConfig) -> Explanation:
    """Read a tuned config; nothing is measured, so any machine can explain any config."""
    findings = [*_iteration_findings(config), *_operator_findings(config)]
    return Explanation(
        model=config.model,
        sockets=config.sockets,
        threads=config.config.threads,
        default_iteration_s=config.default_iteration_s,
        tuned_iteration_s=config.tuned_iteration_s,
        speedup=config.speedup,
        significant=config.significant,
        choices=_choices(config),
        verdicts=tuple(sorted(config.verdicts, key=lambda verdict: -verdict.time_s.median)),
        remaining=_remaining(config),
        findings=tuple(sorted(findings, key=lambda finding: -finding.saving_s)),
    )


def _choices(config: TunedConfig) -> tuple[Choice, ...]:
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


def _above_ceiling_s(verdict: Verdict) -> float:
    """``time x (1 - highest fraction)``: what remains when the nearest ceiling is reached."""
    return verdict.time_s.median * max(0.0, 1.0 - max(verdict.fractions.values(), default=1.0))


def _remaining(config: TunedConfig) -> tuple[Remaining, ...]:
    rows = [
        Remaining(verdict.operator, verdict.time_s.median, _above_ceiling_s(verdict), verdict.binder)
        for verdict in config.verdicts
        if verdict.fractions and verdict.operator != OTHER
    ]
    return tuple(sorted(rows, key=lambda row: -row.above_ceiling_s))


def _operator_findings(config: TunedConfig) -> Iterator[Finding]:
    iteration_s = sum(verdict.time_s.median for verdict in config.verdicts)
    for verdict in config.verdicts:
        time_s = verdict.time_s
        if time_s.median < _WORTH_NAMING * iteration_s:
            continue
        if verdict.operator == OTHER:
            yield _finding("outside_operators", OTHER, time_s.median, wording.outside_evidence(time_s.median, iteration_s))
        else:
            kind = _BOUND.get(verdict.binder, "below_every_ceiling")
            evidence = wording.ceiling_evidence(verdict.fractions, verdict.detail)
            yield _finding(kind, verdict.operator, _above_ceiling_s(verdict), evidence)
        if _is_wide(time_s):
            yield _finding("wide_interval", verdict.operator, 0.0, wording.wide_interval_evidence(time_s.low, time_s.high, time_s.samples))


def _iteration_findings(config: TunedConfig) -> Iterator[Finding]:
    tuned, pages = config.tuned_iteration_s, config.fingerprint.topology.huge_pages
    if not config.significant:
        yield _finding("no_gain", ITERATION, 0.0, wording.no_gain_evidence(config.speedup.low, config.speedup.high))
    if _is_wide(tuned):
        yield _finding("wide_interval", ITERATION, 0.0, wording.wide_interval_evidence(tuned.low, tuned.high, tuned.samples))
    if pages == "never":
        yield _finding("small_pages", "embedding_bag", 0.0, wording.small_pages_evidence(pages))
    for note in config.provenance.notes:
        yield _finding("note", ITERATION, 0.0, note)


def _is_wide(interval: Interval) -> bool:
    return interval.high - interval.low > _WIDE * interval.median


def _finding(kind: FindingKind, operator: str, saving_s: float, evidence: str) -> Finding:
    return Finding(kind, operator, saving_s, evidence, wording.remedy(kind, operator))
