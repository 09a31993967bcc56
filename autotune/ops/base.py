"""What an operator tells about itself. Executor, profiler, predictor, tuner, explainer and report are loops over `Operator`.

An operator is a value: the shape of one pass, with no memory behind it. `prepare` and `run` are given the memory they work on; `case` times
the pass alone. Everything that depends on which operator it is (knobs, work, features and their prior weights, candidates, look, findings)
is a member of its class.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from autotune.config.knobs import FixedKnobs, Knobs, RunConfig
from autotune.config.model import Dtype
from autotune.config.profile import Topology
from autotune.errors import InputError
from autotune.machine.topology import vector_lanes

if TYPE_CHECKING:
    from autotune.ops.memory import Memory

Access = Literal["stream", "gather", "scatter"]
Features = dict[str, float]
"""Terms of the linear performance model by name: a count divided by a profile rate, in seconds."""


@dataclass(frozen=True)
class Family:
    """How operators of one kind are shown together."""

    name: str
    """``embedding``: in legends and in JSON."""
    colour: str
    """Colour in charts, hexadecimal."""


OUTSIDE = Family("other", "#9aa0a6")
"""Family of the time outside every operator, and of passes too short to tell apart."""


@dataclass(frozen=True)
class RowAccess:
    """Whole rows of one table, met in random order."""

    row_bytes: int
    touched: int
    """Rows touched, a row counted again each time."""
    unique: int
    """Distinct rows among them."""
    table_bytes: int
    """Size of the table that the accesses range over."""


@dataclass(frozen=True)
class Work:
    """What one call of one operator pass must do, whatever the implementation: pure arithmetic from the shape."""

    flops: int
    """Floating-point operations; a multiply-add counts two."""
    bytes_read: int
    """Compulsory bytes from memory: every distinct row or element once."""
    bytes_written: int
    """Compulsory bytes to memory, without read-for-ownership."""
    access: Access = "stream"
    """The pattern that rules the traffic, and so the ceiling it is held against."""
    rows: tuple[RowAccess, ...] = ()
    """For gather and scatter: the tables, in the order in which they are walked."""
    operation: str = ""
    """On the network: all_to_all, all_reduce; empty where nothing is sent."""
    form: str = ""
    """Form of the all-to-all; empty for other passes."""
    messages: int = 0
    """Messages sent by one rank."""
    message_bytes: int = 0
    """Bytes sent by one rank."""
    parallel_regions: int = 1
    """Forks and joins of the team that the pass cannot do without."""
    dtype: Dtype = "fp32"
    """Element type of the arithmetic."""

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written

    @property
    def row_traffic_bytes(self) -> int:
        """Row bytes that pass, re-used rows counted again each time; scatter reads and writes them."""
        return sum(rows.touched * rows.row_bytes for rows in self.rows) * (2 if self.access == "scatter" else 1)

    @property
    def stream_bytes(self) -> float:
        """Compulsory bytes that are not rows of tables."""
        ways = 2 if self.access == "scatter" else 1  # a scattered row is read and written
        return max(0, self.bytes - ways * sum(rows.unique * rows.row_bytes for rows in self.rows))

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, flops per byte of compulsory traffic."""
        return self.flops / self.bytes if self.bytes else float("inf")

    def __add__(self, other: Work) -> Work:
        """The work of two passes that share a name: counts add up, what describes the pattern is the first one's."""
        counts = ("flops", "bytes_read", "bytes_written", "rows", "messages", "message_bytes", "parallel_regions")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in counts})


@dataclass(frozen=True)
class Residence:
    """Where the bytes of a pass are found when it begins."""

    memory_bytes: float
    shared_bytes: float
    """In the last-level cache, outside the cores' own."""
    rows_kept: float
    """Share of the table rows that it touches first which the last-level cache still holds."""


class Rates(Protocol):
    """A machine's rates at one number of threads, as `features` uses them."""

    @property
    def threads(self) -> int: ...
    @property
    def lanes(self) -> int:
        """Floats in a vector."""

    @property
    def cycle_s(self) -> float:
        """Length of a core's cycle."""

    @property
    def flops_per_s(self) -> float:
        """Arithmetic of all threads together."""

    @property
    def stream_bytes_per_s(self) -> float: ...
    @property
    def shared_bytes_per_s(self) -> float:
        """From the last-level cache."""

    @property
    def own_bytes(self) -> float:
        """Capacity of the cores' own caches together."""

    @property
    def shared_bytes(self) -> float:
        """Capacity of the last-level cache."""

    @property
    def l2_bytes(self) -> float:
        """Capacity of one core's own cache, nominal."""

    @property
    def l3_bytes(self) -> float:
        """Capacity of one last-level cache, nominal."""

    @property
    def dtype(self) -> Dtype: ...
    @property
    def huge_pages(self) -> bool:
        """Whether tables lie on 2 MiB pages."""

    def rows_per_s(self, access: Literal["gather", "scatter"], row_bytes: int, working_set_bytes: float) -> float:
        """Row bytes per second of random rows."""


@dataclass(frozen=True)
class Check:
    """A candidate held against the plain reference."""

    worst: float
    """Largest absolute error over the output."""
    tolerance: float
    """What rounding allows at the worst element: reduction length x epsilon x norms."""
    where: str = ""

    @property
    def passed(self) -> bool:
        return self.worst <= self.tolerance


class Case(ABC):
    """One operator pass with inputs of its own, to be timed alone.

    Unless the case is warm, activations rotate through more than the last-level cache as far as 64 sets go, and look-ups through a few
    batches, so calls in a row do not find large inputs cached; weights stay, as in training.
    """

    @abstractmethod
    def run(self, knobs: Any, threads: int) -> None:
        """One call on the next set of inputs. This is what is timed."""

    def fits(self, knobs: Any) -> bool:
        """Whether memory should hold what these knobs need beside what those before needed."""
        return True

    @abstractmethod
    def check(self, knobs: Any, threads: int) -> Check:
        """Compare this candidate's result with the reference; nothing is timed before it passes."""


@dataclass(frozen=True)
class Measured:
    """One measured pass with what it was measured under, as an operator's `findings` read it."""

    key: str
    time_s: float
    fractions: Mapping[str, float]
    """Share of each ceiling reached."""
    bound_by: str
    knobs: Knobs | None
    threads: int
    lanes: int
    """Floats in a vector of the kernels that ran."""
    balance: float | None = None
    """The machine's multiply-add peak over its read bandwidth, flops per byte; None without a profile."""

    @property
    def above_ceiling_s(self) -> float:
        """Time that reaching the nearest ceiling would save."""
        return self.time_s * max(0.0, 1.0 - max(self.fractions.values(), default=1.0))


@dataclass(frozen=True)
class Observation:
    """What an operator finds remarkable about its own measured pass."""

    kind: str
    """``padded_layer``: findings of one kind are grouped."""
    saving_s: float
    """Seconds per iteration that would go at most."""
    evidence: str
    remedy: str


@dataclass(eq=False)
class Operator(ABC):
    """One pass of one operator at one shape. A subclass sets `kind` and `family` and is found in `registry` by its kind."""

    key: str
    """Name of the pass in a `RunConfig` and in every table: ``bottom_mlp.0.forward``."""

    kind: ClassVar[str] = ""
    """Passes of one kind share a regression: ``mlp.forward``."""
    family: ClassVar[Family]
    prior: ClassVar[Mapping[str, float]] = {}
    """Weights of the features on the machine this code was developed on (2-core Zen 4, AVX-512), 0.1 for none: where a machine's own fit is
    drawn to, and what a profile without calibration gets."""
    knobs_type: ClassVar[type[Knobs]] = FixedKnobs
    runs_alone: ClassVar[bool] = True
    """Whether `case` can time it outside a step."""
    waits_for_others: ClassVar[bool] = False
    """Whether it is a collective: its time is what the step waits for it."""
    selects: ClassVar[bool] = False
    """Whether it only chooses look-ups for the passes behind it."""
    interleaved: ClassVar[bool] = False
    """Whether it touches its arrays in turns, element by element, rather than one array after another."""
    short_words: ClassVar[Mapping[str, str]] = {}
    """Words of its keys as a table with little room spells them."""
    shortest_words: ClassVar[Mapping[str, str]] = {}
    """The same with the least room."""
    registry: ClassVar[dict[str, type[Operator]]] = {}

    live: Live | None = field(default=None, init=False, repr=False)
    """What `case` runs on, where a pass needs the model's own tables; see `bound`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind:
            Operator.registry[cls.kind] = cls

    @classmethod
    def is_key(cls, key: str) -> bool:
        """Whether a pass of this name is one of this operator's."""
        return key == cls.kind

    @classmethod
    def family_of(cls, key: str) -> Family:
        """The family of a pass of this operator."""
        return cls.family

    @classmethod
    def families(cls) -> tuple[Family, ...]:
        """Every family that its passes may have."""
        return (cls.family,)

    @property
    def shape(self) -> Hashable:
        """Passes of equal kind and shape are raced once; None races each alone."""
        return None

    @abstractmethod
    def work(self) -> Work:
        """Flops and bytes of one call. Source and formula stand in the implementation."""

    def size(self) -> Mapping[str, float]:
        """The shape by name: how near two passes are, and whether one lies outside what was calibrated."""
        return {}

    def features(self, knobs: Knobs | None, residence: Residence, rates: Rates) -> Features:
        """What the pass itself asks of the machine, seconds by feature; calls, forks and cache misses of its arrays are added to these."""
        return {}

    def default(self, threads: int, lanes: int) -> Knobs:
        """The choice without tuning, for a team of `threads` on a machine whose vectors hold so many floats."""
        return FixedKnobs()

    def candidates(self, machine: Topology, threads: int) -> Sequence[Knobs]:
        """Values worth racing, derived from caches, registers, divisors and cores; the default is among them."""
        return [self.default(threads, vector_lanes(machine))]

    def calibrated_over(self, machine: Topology, threads: int) -> Sequence[Knobs]:
        """Candidates from which the probe draws, so that the fit knows what knobs do; empty where it runs defaults alone."""
        return ()

    def check_knobs(self, knobs: Knobs, threads: int) -> None:
        """Refuse knobs that this pass cannot run with.

        Raises:
            InputError: another operator's knobs, or a value that the shape, dtype or number of threads rules out.
        """
        if not isinstance(knobs, self.knobs_type):
            wanted, place = self.knobs_type.model_fields["kind"].default, f"config: operators.{self.key}.kind"
            raise InputError(f"knobs of {self.key} must be of kind {wanted}, got {knobs.kind} ({place}); tune this model anew")

    def prepare(self, memory: Memory, knobs: Any, config: RunConfig) -> None:  # noqa: B027 - most operators keep nothing
        """Make what the pass keeps from step to step (weights, packed copies, tables), and fit it to the knobs. Idempotent."""

    @abstractmethod
    def run(self, memory: Memory, knobs: Any, threads: int) -> None:
        """One call on the step's buffers."""

    def bound(self, live: Live) -> Self:
        """The same pass with the model and batches that its case runs on."""
        same = copy.copy(self)
        same.live = live
        return same

    def case(self, seed: int, warm: bool = False) -> Case:
        """Inputs to time this pass alone. Allocates; drop it when done.

        Raises:
            InputError: the pass only makes sense within a step.
        """
        raise InputError(f"{self.key} runs only within a step; profile the whole step to see its time")

    def findings(self, measured: Measured) -> Iterator[Observation]:
        """What is remarkable about this pass as it was measured."""
        yield from ()


@dataclass(eq=False)
class Copying(Operator):
    """A pass that only moves bytes: it takes what a stream of them takes."""

    def features(self, knobs: Knobs | None, residence: Residence, rates: Rates) -> Features:
        return {"moved": self.work().bytes / rates.stream_bytes_per_s}


@dataclass(frozen=True, eq=False)
class Live:
    """A model in memory and a few batches, for cases that need real tables."""

    memory: Memory
    batches: tuple[Mapping[str, Any], ...]
    """Look-ups by name of the shard, one mapping a batch."""


def operator_of(key: str) -> type[Operator] | None:
    """The operator whose passes are named so; None for a name that no operator claims."""
    return next((operator for operator in Operator.registry.values() if operator.is_key(key)), None)


def family_of(key: str) -> Family:
    """The family of a pass by its name."""
    operator = operator_of(key)
    return OUTSIDE if operator is None else operator.family_of(key)


def families() -> list[Family]:
    """Every family there is, in the order in which operators are registered; what no operator claims comes last."""
    named = {family.name: family for operator in Operator.registry.values() for family in operator.families()}
    return [*(family for name, family in named.items() if name != OUTSIDE.name), OUTSIDE]


def abbreviations(shortest: bool) -> list[tuple[str, str]]:
    """What operators say of the words of their keys, the longest word first."""
    operators = Operator.registry.values()
    words = {word: short for each in operators for word, short in (each.shortest_words if shortest else each.short_words).items()}
    return sorted(words.items(), key=lambda pair: -len(pair[0]))


def heaviest(operators: Sequence[Operator]) -> Operator:
    """Of passes that share a key, and so their knobs, the one that moves most bytes: it decides on them."""
    return operators[0] if len(operators) == 1 else max(operators, key=lambda operator: operator.work().bytes)
