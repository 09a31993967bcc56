"""The tuned config: what was chosen, what each choice gained, and what it is valid for."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from autotune.config.base import Frozen
from autotune.config.knobs import RunConfig
from autotune.config.measured import MachineState, RankRow, TableUse, TimedSpan, TimeParts
from autotune.config.model import Model
from autotune.config.profile import Fingerprint, Profile

# 2: the model and the profile as they were (`workload`, `profile`), and of each verdict the work and the prediction, so that a config
#    explains itself on any machine; files of version 1 have none of it.
# 1: first version.
TUNED_SCHEMA = 2

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def _error(at: tuple[str | int, ...], rule: str, got: object, step: str) -> PydanticCustomError:
    """A violated rule, `at` the path below what is validated; see `config.files`."""
    return PydanticCustomError("autotune", "{rule}, got {got}; {step}", {"rule": rule, "got": got, "step": step, "at": at})


class Interval(Frozen):
    """A median with its bootstrap 95 % interval, in the unit that the field's name says."""

    median: float
    low: float
    high: float
    samples: int


class Prediction(Frozen):
    """A time from a model of work and ceilings, before or without measuring it."""

    low_s: float = Field(ge=0)
    """The measured median is expected between `low_s` and `high_s` in four cases out of five."""
    time_s: float = Field(ge=0)
    high_s: float = Field(ge=0)
    extrapolated: str = ""
    """What lies outside the calibration, in words; empty when nothing does."""


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
    rank_cpus: tuple[tuple[int, ...], ...] = ()
    """On several sockets: the cores of every rank of the host that tuned; `cpus` and binding are rank 0's. Empty on one."""

    @field_validator("environment")
    @classmethod
    def _environment(cls, variables: dict[str, str]) -> dict[str, str]:
        # Names go into shell scripts as they are.
        for name, value in variables.items():
            if not _VARIABLE.fullmatch(name):
                raise _error((name,), "an environment variable's name must be letters, digits and _", repr(name), "correct or drop it")
            if "\0" in value:
                raise _error((name,), "an environment variable must not hold a NUL", repr(value), "take it out")
        return variables


class Verdict(Frozen):
    """What bound an operator pass when it was tuned."""

    operator: str
    time_s: Interval
    binder: str
    """memory, compute, network, or none."""
    fractions: dict[str, float]
    """Share of each ceiling reached, 0..1."""
    detail: str
    flops: int = 0
    """Floating-point operations per iteration; this and what follows is empty in files of version 1."""
    bytes: int = 0
    """Compulsory bytes read and written per iteration."""
    parallel_regions: int = 0
    """Forks and joins of the team that the pass cannot do without."""
    access: Literal["stream", "gather", "scatter", ""] = ""
    """The pattern of the traffic; empty where nothing is counted."""
    row_traffic_bytes: int = 0
    """For gather and scatter: row bytes that pass, re-used rows counted each time."""
    bytes_sent: int = 0
    """Over the network, by one rank per iteration."""
    hidden_s: float | None = None
    """Of a transfer: how much of it ran behind other passes; `time_s` is what was exposed. None where nothing is sent."""
    predicted: Prediction | None = None
    """From the profile alone; None where no model describes the pass."""
    parts: TimeParts | None = None
    """None where no team of ours ran, and in files before it was measured."""


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
    workload: Model | None = None
    """The model as it was tuned; None in files of version 1."""
    profile: Profile | None = None
    """The ceilings and the network in force; None in files of version 1."""
    predicted_iteration: Prediction | None = None
    """Of the chosen configuration, from the profile alone."""
    tables: tuple[TableUse, ...] = ()
    """Every table, or part of one, timed alone under the chosen configuration; empty in files of version 1."""
    ranks: tuple[RankRow, ...] = ()
    """Every rank's part of an iteration; empty on one socket, and in files of version 1."""
    timeline: tuple[TimedSpan, ...] = ()
    """One iteration near the median, as it ran on each of the first ranks; empty in files of version 1."""
    state: MachineState | None = None
    """What the machine gave while the verdicts were measured; None on several sockets, and in files before it was measured."""
    model_config = Frozen.model_config | {"populate_by_name": True, "serialize_by_alias": True}

    @model_validator(mode="after")
    def _launch_fits(self) -> TunedConfig:
        threads, cpus = self.config.threads, self.launch.cpus
        if self.launch.threads != threads:
            rule = f"launch and config must have the same threads ({threads})"
            raise _error(("launch", "threads"), rule, self.launch.threads, "tune again")
        ranks = self.config.partition.ranks if self.config.partition else 1
        if ranks != self.sockets:
            rule = f"a config for {self.sockets} sockets must place the tables on as many ranks"
            raise _error(("config", "partition"), rule, ranks, "tune again")
        if len(cpus) != threads or len(set(cpus)) != threads:
            rule = f"launch must bind each of the {threads} threads to a CPU of its own"
            raise _error(("launch", "cpus"), rule, list(cpus), "tune again")
        return self
