"""What an operator lets a user or a tuner choose, and the run configuration that holds one choice for every pass.

The knob classes themselves belong to their operators in `ops/`: each registers its class under its `kind`, so a file may hold the knobs of
every operator there is. A run configuration is keyed by operator pass: ``embedding_bag.forward``, ``top_mlp.0.backward_data`` ...
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializeAsAny, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from autotune.config.base import Frozen, rule_error
from autotune.config.partition import CommunicationKnobs, Partition

MAX_SIZE = 2**30
"""Far above any useful block or task, and within what the kernels count in."""
MAX_THREADS = 4096
"""What the kernels take."""


class Knobs(Frozen):
    """The choices of one operator pass. A subclass sets the default of `kind` and registers itself under it."""

    kind: str
    registry: ClassVar[dict[str, type[Knobs]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        Knobs.registry[cls.model_fields["kind"].default] = cls

    def valid_for(self, threads: int) -> bool:
        """Whether a team of `threads` can run with these knobs."""
        return True

    def with_threads(self, threads: int) -> Knobs:
        """These knobs, changed as little as a team of `threads` asks for."""
        return self

    def changes(self, chosen: Knobs) -> str:
        """The fields in which `chosen` differs, in words: ``bk 32 -> 16, bn 64 -> 32``; empty when none does."""
        pairs = ((name, getattr(self, name, None), getattr(chosen, name)) for name in type(chosen).model_fields)
        return ", ".join(f"{name} {word(before)} -> {word(after)}" for name, before, after in pairs if before != after)

    def distance(self, other: Knobs) -> int:
        """Fields in which two candidates differ."""
        return sum(getattr(self, name) != getattr(other, name, None) for name in type(self).model_fields)


class FixedKnobs(Knobs):
    """A pass with nothing to choose."""

    kind: str = "fixed"


def word(value: object) -> str:
    """A knob's value as it is printed: switches as on and off."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _by_kind(value: Any, handler: Any) -> Knobs:
    if not isinstance(value, dict):
        knobs: Knobs = handler(value)
        return knobs
    importlib.import_module("autotune.ops")  # where operators register their knobs
    kind, known = value.get("kind"), Knobs.registry
    if kind not in known:
        raise rule_error(("kind",), f"kind must be one of {', '.join(sorted(known))}", repr(kind), "correct it")
    try:
        return known[kind].model_validate(value)
    except ValidationError as error:
        raise PydanticCustomError("autotune_nested", str(error).replace("{", "("), {"nested": error, "kind": kind}) from None


AnyKnobs = Annotated[SerializeAsAny[Knobs], WrapValidator(_by_kind)]
"""Knobs of any registered operator, told apart by `kind`."""


class RunConfig(Frozen):
    """One choice for everything that can be chosen about a training step."""

    threads: int = Field(ge=1, le=MAX_THREADS)
    """Threads of the one OpenMP team that runs every operator."""
    huge_pages: bool = True
    """Ask the kernel for 2 MiB pages under the embedding tables."""
    operators: dict[str, AnyKnobs] = Field(default_factory=dict)
    """Knobs by operator pass; a pass that is not named takes its default."""
    partition: Partition | None = None
    """Where the tables lie, a rank a socket; None on one socket."""
    communication: CommunicationKnobs | None = None
    """How the ranks talk; None on one socket."""
