"""What a tuning run found, and the tuned config made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from autotune.config.knobs import RunConfig
from autotune.config.model import Model
from autotune.config.profile import Fingerprint, Profile
from autotune.config.tuned import (
    RECORD_SCHEMA,
    TUNED_SCHEMA,
    Gain,
    Interval,
    Launch,
    MeasuredPass,
    Provenance,
    RaceResult,
    Record,
    TunedConfig,
    knobs_hash,
)
from autotune.dlrm.defaults import common_defaults
from autotune.perf.table import OperatorTable
from autotune.tuning.objective import Paired
from autotune.units import format_time


@dataclass(frozen=True)
class Outcome:
    """The end of a tuning run."""

    chosen: RunConfig
    """The winner where its gain is confirmed, else the default."""
    confirmation: Paired
    """Whole iterations of the default and of the winner."""
    gains: tuple[Gain, ...]
    races: tuple[RaceResult, ...]
    table: OperatorTable
    """Per operator, of the chosen configuration."""
    trials: int
    spent_s: float
    """Of the budget, interrupted runs included as far as their results were kept."""
    notes: tuple[str, ...]


def race_gains(races: Sequence[RaceResult], winner: RunConfig) -> list[Gain]:
    """An entry for every pass raced: the choice in `winner`, or the best candidate that was not taken."""
    gains = []
    for result in races:
        for key in result.keys:
            taken = [finalist for finalist in result.finalists if finalist.knobs == winner.operators[key]]
            best = (taken or list(result.finalists))[:1]
            gains.append(
                Gain(
                    operator=key,
                    knob=result.default.changes(best[0].knobs) if best else "default",
                    default_s=result.default_s,
                    tuned_s=best[0].time_s if best else result.default_s,
                    speedup=best[0].speedup if best else _no_speedup(result.default_s.samples),
                    candidates=result.candidates,
                    kept=bool(taken),
                )
            )
    return gains


def assemble(
    model: Model,
    outcome: Outcome,
    fingerprint: Fingerprint,
    *,
    name: str,
    sockets: int,
    command: str,
    seed: int,
    budget_s: float,
    launch: Launch,
    profile: Profile,
) -> TunedConfig:
    """The config with its record. Where the default stands, its figures stand for both and the speedup is 1.

    Args:
        profile: In force while it was tuned; kept in the record.
    """
    confirmation = outcome.confirmation
    kept = confirmation.significant
    created, chosen_hash, table = datetime.now(UTC).isoformat(timespec="seconds"), knobs_hash(outcome.chosen.operators), outcome.table
    defaults = common_defaults(model, outcome.chosen, profile.fingerprint.topology)
    record = Record(
        schema=RECORD_SCHEMA,
        model=name,
        model_hash=model.hash(),
        sockets=sockets,
        created=created,
        knobs_hash=chosen_hash,
        defaults={key: knobs for key, knobs in defaults.items() if key in outcome.chosen.operators},
        workload=model,
        profile=profile,
        verdicts=table.rows,
        gains=outcome.gains,
        races=outcome.races,
        tables=table.tables,
        ranks=table.ranks,
        timeline=table.timeline,
        state=table.state,
    )
    return TunedConfig(
        schema=TUNED_SCHEMA,
        model=name,
        model_hash=model.hash(),
        sockets=sockets,
        minibatch=model.minibatch,
        config=outcome.chosen,
        knobs_hash=chosen_hash,
        launch=launch,
        default_iteration_s=confirmation.base,
        tuned_iteration_s=confirmation.other if kept else confirmation.base,
        speedup=confirmation.speedup if kept else _no_speedup(confirmation.speedup.samples),
        significant=kept,
        predicted_iteration=table.predicted,
        bound_by={row.operator: _bound_by(row) for row in table.rows},
        fingerprint=fingerprint,
        provenance=Provenance(
            created=created,
            autotune_version=fingerprint.versions.get("autotune", "unknown"),
            command=command,
            seed=seed,
            budget_s=budget_s,
            spent_s=round(outcome.spent_s, 3),
            trials=outcome.trials,
            notes=outcome.notes,
        ),
        record=record,
    )


def _no_speedup(samples: int) -> Interval:
    return Interval(median=1.0, low=1.0, high=1.0, samples=samples)


def _bound_by(row: MeasuredPass) -> str:
    """One line: ``memory 71 %, 1.23 ms [1.20, 1.31]``."""
    time_s, reached = row.time_s, f" {max(row.fractions.values()):.0%}" if row.fractions else ""
    return f"{row.binder}{reached}, {format_time(time_s.median)} [{format_time(time_s.low)}, {format_time(time_s.high)}]"
