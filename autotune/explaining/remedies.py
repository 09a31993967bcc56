"""Remedies as values: advice in words, and the command line that follows it."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.config.tuned import TunedConfig


@dataclass(frozen=True)
class Remedy:
    """Advice about a finding."""

    text: str
    """Advice in words, without the command."""
    command: tuple[str, ...] | None = None
    """Words of the command line that follows the advice; None where no command does."""


def tune_again(config: TunedConfig, *options: str) -> tuple[str, ...]:
    """The command that tunes the same model again."""
    return ("autotune", "tune", config.model, "--sockets", str(config.sockets), *options)


def longer_budget(config: TunedConfig) -> tuple[str, ...]:
    """The command that tunes again with twice the budget."""
    return tune_again(config, "--budget", f"{2 * config.provenance.budget_s:.0f}s")


def prove(config: TunedConfig) -> tuple[str, ...]:
    """The command that tests every verdict by perturbing its pass."""
    return ("autotune", "profile", config.model, "--sockets", str(config.sockets), "--prove")


def probe_again(config: TunedConfig) -> tuple[str, ...]:
    """The command that measures the machine's ceilings anew."""
    return ("autotune", "probe", "--refresh")


def plan_tables(config: TunedConfig) -> tuple[str, ...]:
    """The command that places the embedding tables by every kind of sharding."""
    return ("autotune", "plan", config.model, "--sockets", str(config.sockets))
