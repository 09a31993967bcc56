"""The two files of a tuning run: the tuned config that a person reads, and the record of what it rests on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, computed_field, field_validator, model_validator

from autotune.config.base import Frozen, rule_error
from autotune.config.knobs import AnyKnobs, Knobs, RunConfig
from autotune.config.measured import MachineState, RankRow, TableUse, TimedSpan, TimeParts
from autotune.config.model import Model
from autotune.config.profile import Fingerprint, Profile

# 3: two files. The config names only the knobs that differ from the default of the version that wrote it, with a hash over the knobs of
#    every pass (`knobs_hash`): a later version whose defaults differ says so when it runs or verifies the config. The record holds that
#    default in full, and everything that was measured.
# 2: the model and the profile as they were (`workload`, `profile`), and of each verdict the work and the prediction, so that a config
#    explains itself on any machine; files of version 1 have none of it.
# 1: first version.
TUNED_SCHEMA = 3

# 1: first version; what it holds was part of the config up to schema 2 of that.
RECORD_SCHEMA = 1

LAUNCH_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
    "AUTOTUNE_TARGET",
)
"""What `ranks.launch` writes. A config may come from somebody else, so that no other variable is taken from it: some run code."""


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
        for name, value in variables.items():
            if name not in LAUNCH_VARIABLES:
                rule = f"a launch sets only {', '.join(LAUNCH_VARIABLES)}"
                raise rule_error((name,), rule, repr(name), "remove it from the config, and set it by hand if you trust it")
            if "\0" in value:
                raise rule_error((name,), "an environment variable must not hold a NUL", repr(value), "take it out")
        return variables


class MeasuredPass(Frozen):
    """One operator pass within the iteration: its time, its work and what bounds it."""

    operator: str
    """Operator pass; the last one, `other`, is what no operator accounts for."""
    time_s: Interval
    """Per iteration."""
    binder: str
    """memory, compute, network, or none."""
    fractions: dict[str, float]
    """Share of each ceiling reached: the time the ceiling allows over the time taken."""
    detail: str
    """The evidence in words."""
    share: float = 0.0
    """Part of the iteration's time, 0 to 1."""
    flops: int = 0
    """Floating-point operations per iteration; this and what follows is empty in configs of version 1."""
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
    """Time of a transfer that ran behind other passes; `time_s` is what was exposed. None where nothing is sent."""
    imbalance: float | None = None
    """Slowest rank over the mean of all; None on one socket."""
    predicted: Prediction | None = None
    """From the profile alone; None where no model describes the pass."""
    parts: TimeParts | None = None
    """Where the time went, thread by thread; None where no team of ours ran, and in files before it was measured."""

    @property
    def traffic_bytes(self) -> int:
        """Row bytes that pass for gather and scatter, compulsory bytes for everything else."""
        return self.row_traffic_bytes or self.bytes

    @computed_field  # type: ignore[prop-decorator]
    @property
    def flops_per_s(self) -> float | None:
        """Arithmetic reached; None where there is nothing to count."""
        return self.flops / self.time_s.median if self.flops and self.time_s.median else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """Bandwidth reached: `traffic_bytes` per second, or for a transfer the bytes sent over its whole time, hidden part included."""
        moved, whole_s = self.traffic_bytes or self.bytes_sent, self.time_s.median + (self.hidden_s or 0.0)
        return moved / whole_s if moved and whole_s else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def intensity(self) -> float | None:
        """Flops per byte of `traffic_bytes`; None where nothing is counted."""
        return self.flops / self.traffic_bytes if self.flops and self.traffic_bytes else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def above_ceiling_s(self) -> float | None:
        """``time x (1 - highest fraction)``: what is left to gain at the nearest ceiling; None where no ceiling describes the pass."""
        return self.time_s.median * max(0.0, 1.0 - max(self.fractions.values())) if self.fractions else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def over_predicted(self) -> float | None:
        """Measured over predicted time; None without a prediction."""
        return self.time_s.median / self.predicted.time_s if self.predicted is not None and self.predicted.time_s else None


class Finalist(Frozen):
    """A candidate that beat the default in the final of its race."""

    knobs: AnyKnobs
    time_s: Interval
    speedup: Interval
    """default / candidate per round."""


class RaceResult(Frozen):
    """How the race of one group of equal passes ended."""

    keys: tuple[str, ...]
    threads: int
    default: AnyKnobs
    default_s: Interval
    finalists: tuple[Finalist, ...]
    """Best first; empty when nothing beat the default clearly."""
    candidates: int
    """Candidates timed, the default among them."""
    offered: int
    """Candidates that the operator offers."""
    rejected: tuple[str, ...]
    """Candidates that did not match the reference."""
    notes: tuple[str, ...]
    spent_s: float


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


@dataclass(frozen=True)
class TunedIdentity:
    """What tells one tuned config from another."""

    model: str = field(compare=False)
    """Name or path: the same model goes by several."""
    model_hash: str
    sockets: int
    created: str
    knobs_hash: str

    def __str__(self) -> str:
        """``small on 2 sockets, tuned 2026-01-01T00:00:00+00:00 (knobs 0123abcd)``."""
        sockets = "1 socket" if self.sockets == 1 else f"{self.sockets} sockets"
        return f"{self.model} on {sockets}, tuned {self.created} (knobs {self.knobs_hash[:8] or 'unknown'})"


class Record(Frozen):
    """`*.record.json`: what a tuning run measured, beside the tuned config that came of it."""

    schema_version: int = Field(RECORD_SCHEMA, alias="schema")
    kind: Literal["tuning_record"] = "tuning_record"
    model: str
    """Name or path of the model; this and the next four are those of the config that the record belongs to."""
    model_hash: str
    sockets: int = Field(ge=1)
    created: str
    knobs_hash: str = ""
    """See `TunedConfig`; empty beside configs of versions 1 and 2."""
    defaults: dict[str, AnyKnobs] = Field(default_factory=dict)
    """Knobs by operator pass without tuning, at the tuned number of threads, as far as all ranks share them: a pass that the config does
    not name has these. Empty beside configs of versions 1 and 2, which name every pass."""
    workload: Model | None = None
    """The model as it was tuned; None beside configs of version 1."""
    profile: Profile | None = None
    """The ceilings and the network in force; None beside configs of version 1."""
    verdicts: tuple[MeasuredPass, ...] = ()
    """Every operator pass under the chosen configuration, in the order they run."""
    gains: tuple[Gain, ...] = ()
    races: tuple[RaceResult, ...] = ()
    """Empty beside configs of versions 1 and 2."""
    tables: tuple[TableUse, ...] = ()
    """Every table, or part of one, timed alone under the chosen configuration; empty beside configs of version 1."""
    ranks: tuple[RankRow, ...] = ()
    """Every rank's part of an iteration; empty on one socket, and beside configs of version 1."""
    timeline: tuple[TimedSpan, ...] = ()
    """One iteration near the median, as it ran on each of the first ranks; empty beside configs of version 1."""
    state: MachineState | None = None
    """What the machine gave while the verdicts were measured; None on several sockets, and before it was measured."""

    @property
    def identity(self) -> TunedIdentity:
        """The config that the record belongs to."""
        return TunedIdentity(self.model, self.model_hash, self.sockets, self.created, self.knobs_hash)

    model_config = Frozen.model_config | {"populate_by_name": True, "serialize_by_alias": True}


def knobs_hash(operators: Mapping[str, Knobs]) -> str:
    """sha256 of the knobs of every pass as canonical JSON."""
    plain = {key: knobs.model_dump(mode="json") for key, knobs in operators.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


class TunedConfig(Frozen):
    """`*.tuned.yaml`: all that it takes to run, verify and export what was chosen, and the record beside it, where that is at hand."""

    schema_version: int = Field(TUNED_SCHEMA, alias="schema")
    kind: Literal["tuned_config"] = "tuned_config"
    model: str
    """Name or path of the model."""
    model_hash: str
    """sha256 of the model's canonical JSON."""
    sockets: int = Field(ge=1)
    minibatch: int = Field(ge=1)
    config: RunConfig
    """As a file without its record: the passes whose knobs differ from the default. With the record: every pass."""
    knobs_hash: str = ""
    """`knobs_hash` of every pass as tuned, defaults included; empty in files of versions 1 and 2, which name every pass."""
    launch: Launch
    default_iteration_s: Interval
    tuned_iteration_s: Interval
    speedup: Interval
    """Default over tuned, whole iteration, from the confirmation."""
    significant: bool
    """Whether the speedup's interval lies above 1. False: the default stands."""
    predicted_iteration: Prediction | None = None
    """Iteration of the chosen configuration, from the profile alone."""
    bound_by: dict[str, str] = Field(default_factory=dict)
    """One line a pass: what bound it, how near it came, and its time; empty in files of versions 1 and 2."""
    fingerprint: Fingerprint
    provenance: Provenance
    record: Record | None = Field(None, exclude=True)
    """What the record file holds; None where it was not read or is not there. Never part of this file."""
    model_config = Frozen.model_config | {"populate_by_name": True, "serialize_by_alias": True}

    @model_validator(mode="after")
    def _launch_fits(self) -> TunedConfig:
        threads, cpus = self.config.threads, self.launch.cpus
        if self.launch.threads != threads:
            rule = f"launch and config must have the same threads ({threads})"
            raise rule_error(("launch", "threads"), rule, self.launch.threads, "tune again")
        ranks = self.config.partition.ranks if self.config.partition else 1
        if ranks != self.sockets:
            rule = f"a config for {self.sockets} sockets must place the tables on as many ranks"
            raise rule_error(("config", "partition"), rule, ranks, "tune again")
        if len(cpus) != threads or len(set(cpus)) != threads:
            rule = f"launch must bind each of the {threads} threads to a CPU of its own"
            raise rule_error(("launch", "cpus"), rule, list(cpus), "tune again")
        return self

    @property
    def identity(self) -> TunedIdentity:
        """What the record must name as its config."""
        return TunedIdentity(self.model, self.model_hash, self.sockets, self.provenance.created, self.knobs_hash)

    @property
    def verdicts(self) -> tuple[MeasuredPass, ...]:
        """Measured passes in the order they run; empty without the record."""
        return self.record.verdicts if self.record else ()

    @property
    def gains(self) -> tuple[Gain, ...]:
        """Gain of every choice; empty without the record."""
        return self.record.gains if self.record else ()

    @property
    def tables(self) -> tuple[TableUse, ...]:
        """Embedding tables timed alone; empty without the record."""
        return self.record.tables if self.record else ()

    @property
    def ranks(self) -> tuple[RankRow, ...]:
        """Iterations by rank; empty on one socket, and without the record."""
        return self.record.ranks if self.record else ()

    @property
    def timeline(self) -> tuple[TimedSpan, ...]:
        """One measured iteration; empty without the record."""
        return self.record.timeline if self.record else ()

    @property
    def workload(self) -> Model | None:
        """The model as it was tuned; None without the record."""
        return self.record.workload if self.record else None

    @property
    def profile(self) -> Profile | None:
        """The profile in force; None without the record."""
        return self.record.profile if self.record else None

    @property
    def state(self) -> MachineState | None:
        """What the machine gave meanwhile; None without the record."""
        return self.record.state if self.record else None

    def with_record(self, record: Record) -> TunedConfig:
        """The config with its own record, and with the knobs of every pass."""
        operators = {**record.defaults, **self.config.operators}
        return self.model_copy(update={"record": record, "config": self.config.model_copy(update={"operators": operators})})

    def file_form(self) -> dict[str, Any]:
        """What the YAML file holds: of the knobs those that differ from the default, as far as the record tells it."""
        defaults = self.record.defaults if self.record else {}
        differing = {key: knobs for key, knobs in self.config.operators.items() if knobs != defaults.get(key)}
        return self.model_copy(update={"config": self.config.model_copy(update={"operators": differing})}).model_dump(by_alias=True)
