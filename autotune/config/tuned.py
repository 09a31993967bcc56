"""The tuned config: what was chosen, what each choice gained, and what it is valid for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from autotune.config.base import Frozen
from autotune.config.knobs import RunConfig
from autotune.config.profile import Fingerprint

# 1: first version.
TUNED_SCHEMA = 1


class Interval(Frozen):
    """A median with its bootstrap 95 % interval, in the unit that the field's name says."""

    median: float
    low: float
    high: float
    samples: int


class Gain(Frozen):
    """What one choice gained over the default, measured side by side."""

    operator: str
    """Operator pass, or ``iteration`` for choices of the whole."""
    knob: str
    """The knobs that differ: ``bk 32 -> 16, bn 64 -> 32``."""
    default_s: Interval
    tuned_s: Interval
    speedup: Interval
    """default / tuned per round; above 1 is a gain."""
    candidates: int
    """Candidates raced."""
    kept: bool
    """Whether the gain was significant, so the choice stands in the config."""


class Launch(Frozen):
    """How the process is started: what a config cannot change once it runs."""

    threads: int
    cpus: tuple[int, ...]
    """Logical CPUs the team is bound to, one a physical core."""
    environment: dict[str, str]
    """Environment variables that reproduce the run."""


class Verdict(Frozen):
    """What bound an operator pass when it was tuned."""

    operator: str
    time_s: Interval
    binder: str
    """memory, compute, network, or none."""
    fractions: dict[str, float]
    """Share of each ceiling reached, 0..1."""
    detail: str


class Provenance(Frozen):
    created: str
    autotune_version: str
    command: str
    seed: int
    budget_s: float
    spent_s: float
    trials: int
    """Whole-iteration trials in the study."""
    notes: tuple[str, ...] = ()


class TunedConfig(Frozen):
    """`*.tuned.yaml`."""

    schema_version: int = Field(TUNED_SCHEMA, alias="schema")
    kind: Literal["tuned_config"] = "tuned_config"
    model: str
    """Name or path of the model."""
    model_hash: str
    """sha256 of the model's canonical JSON."""
    sockets: int = Field(ge=1)
    minibatch: int = Field(ge=1)
    config: RunConfig
    launch: Launch
    default_iteration_s: Interval
    tuned_iteration_s: Interval
    speedup: Interval
    """Default over tuned, whole iteration, from the confirmation."""
    significant: bool
    """Whether the speedup's interval lies above 1. False: the default stands."""
    gains: tuple[Gain, ...]
    verdicts: tuple[Verdict, ...]
    fingerprint: Fingerprint
    provenance: Provenance
    model_config = Frozen.model_config | {"populate_by_name": True, "serialize_by_alias": True}
