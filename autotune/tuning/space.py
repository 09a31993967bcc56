"""The search space of the whole iteration, and its mapping to run configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from autotune.config.knobs import Knobs, RunConfig, word
from autotune.config.partition import CommunicationKnobs, Partition
from autotune.config.profile import Topology

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

# The race's default against its best: with these many the default included, an operator adds one dimension of three values.
MAX_FINALISTS = 3

Params = dict[str, Any]


def thread_choices(topology: Topology, default: int) -> tuple[int, ...]:
    """All physical cores, one less, and the powers of two below; what the cgroup's quota allows; the default. Largest first.

    One less leaves a core to the system and to the thread that feeds data; fewer pay where memory bandwidth is reached early.
    """
    cores = topology.physical_cores
    choices = {cores, max(1, cores - 1), default} | {1 << i for i in range(cores.bit_length()) if 1 << i <= cores}
    if topology.cpu_quota is not None and topology.cpu_quota < cores:
        choices.add(max(1, int(topology.cpu_quota)))
    return tuple(sorted(choices, reverse=True))


def huge_page_choices(topology: Topology, default: bool) -> tuple[bool, ...]:
    """Both where the kernel hands out huge pages on request; else the default alone."""
    return (default, not default) if topology.huge_pages == "madvise" else (default,)


def changes(default: RunConfig, chosen: RunConfig) -> str:
    """What differs beside the knobs of the passes, in words: ``threads 2 -> 1, huge_pages on -> off``; empty when nothing does."""
    pairs = [(name, getattr(default, name), getattr(chosen, name)) for name in ("threads", "huge_pages", "partition")]
    if default.communication is not None and chosen.communication is not None:
        names = CommunicationKnobs.model_fields
        pairs += [(name, getattr(default.communication, name), getattr(chosen.communication, name)) for name in names]
    return ", ".join(f"{name} {_word(before)} -> {_word(after)}" for name, before, after in pairs if before != after)


def _word(value: object) -> str:
    if isinstance(value, Partition):
        return f"{value.summary} ({sha256(value.model_dump_json().encode()).hexdigest()[:6]})"
    return word(value)


@dataclass(frozen=True)
class Group:
    """Passes of one shape, which share one choice."""

    keys: tuple[str, ...]
    finalists: tuple[Knobs, ...]
    """Best first; the default is among them."""

    @property
    def name(self) -> str:
        return self.keys[0]


@dataclass(frozen=True)
class Space:
    """Threads, huge pages, and the finalists of every group."""

    default: RunConfig
    threads: tuple[int, ...]
    huge_pages: tuple[bool, ...]
    groups: tuple[Group, ...]
    default_for: Callable[[int], RunConfig]
    """The default configuration for a number of threads: what an operator falls back to when no finalist is valid."""
    communication: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """On several ranks: values of the communication knobs, by name, the default's first."""
    partitions: tuple[Partition, ...] = ()
    """On several ranks: where the tables may lie, the default's first."""
    _defaults: dict[int, RunConfig] = field(default_factory=dict, repr=False, compare=False)

    def suggest(self, trial: BaseTrial) -> RunConfig:
        """Draw a configuration. Invalid combinations cannot be drawn: the choices of a group depend on the threads."""
        threads = trial.suggest_categorical("threads", list(self.threads)) if len(self.threads) > 1 else self.default.threads
        pages = trial.suggest_categorical("huge_pages", list(self.huge_pages)) if len(self.huge_pages) > 1 else self.huge_pages[0]
        chosen = {}
        for group in self.groups:
            labels = self._labels(group, threads)
            if len(labels) > 1:
                chosen[group.name] = labels[trial.suggest_categorical(self._parameter(group, threads), list(labels))]
        config = self.config(threads, pages, chosen)
        if config.communication is None:
            return config
        drawn = {name: trial.suggest_categorical(name, list(values)) for name, values in self.communication.items() if len(values) > 1}
        partition = config.partition
        if len(self.partitions) > 1:
            partition = self.partitions[trial.suggest_categorical("partition", list(range(len(self.partitions))))]
        return config.model_copy(update={"communication": config.communication.model_copy(update=drawn), "partition": partition})

    def config(self, threads: int, huge_pages: bool, chosen: Mapping[str, Knobs] | None = None) -> RunConfig:
        """The configuration with `chosen` knobs by group; a group that is not named takes its best valid finalist."""
        operators = dict(self._default(threads).operators)
        for group in self.groups:
            valid = [knobs for knobs in group.finalists if knobs.valid_for(threads)]
            knobs = (chosen or {}).get(group.name) or (valid[0] if valid else None)
            if knobs is not None:
                operators |= dict.fromkeys(group.keys, knobs)
        return self.default.model_copy(update={"threads": threads, "huge_pages": huge_pages, "operators": operators})

    def params(self, threads: int, huge_pages: bool) -> Params:
        """Parameters under which `suggest` gives the best finalists at these threads and pages."""
        fixed: Params = {"threads": threads} if len(self.threads) > 1 else {}
        if len(self.huge_pages) > 1:
            fixed["huge_pages"] = huge_pages
        for group in self.groups:
            labels = list(self._labels(group, threads))
            if len(labels) > 1:
                fixed[self._parameter(group, threads)] = labels[0]
        fixed |= {name: values[0] for name, values in self.communication.items() if len(values) > 1}
        return fixed | ({"partition": 0} if len(self.partitions) > 1 else {})

    def planned(self) -> list[Params]:
        """Trials worth running before any sampling: all race winners at the default threads, then at every other, then other pages.

        On several ranks then every other value of each communication knob alone, and every other partition.
        """
        pages = self.default.huge_pages
        points = [(self.default.threads, pages)]
        points += [(threads, pages) for threads in self.threads if threads != self.default.threads]
        points += [(self.default.threads, other) for other in self.huge_pages if other != pages]
        base = self.params(*points[0])
        alone = [base | {name: value} for name, values in self.communication.items() for value in values[1:]]
        alone += [base | {"partition": i} for i in range(1, len(self.partitions))]
        return [base, *alone, *(self.params(*point) for point in points[1:])]

    def combined(self, tried: Sequence[tuple[Params, float]]) -> Params | None:
        """All choices together that, alone beside the first of `planned`, made an iteration faster; None where fewer than two did.

        Args:
            tried: parameters of a trial, and its time over the default's.
        """
        base, *others = self.planned()
        times = [(params, value) for params, value in tried if params.keys() == base.keys()]
        # Where the races found nothing, the first is the default itself, and was not tried.
        base_value = next((value for params, value in times if params == base), 1.0)
        gains: dict[str, tuple[float, Any]] = {}
        for params, value in times:
            changed = [name for name in base if params[name] != base[name]]
            if params in others and len(changed) == 1 and value < min(base_value, gains.get(changed[0], (base_value, None))[0]):
                gains[changed[0]] = (value, params[changed[0]])
        return base | {name: choice for name, (_, choice) in gains.items()} if len(gains) > 1 else None

    def _default(self, threads: int) -> RunConfig:
        if threads not in self._defaults:
            self._defaults[threads] = self.default if threads == self.default.threads else self.default_for(threads)
        return self._defaults[threads]

    def _labels(self, group: Group, threads: int) -> dict[str, Knobs]:
        default = self.default.operators[group.name]
        return {default.changes(knobs) or "default": knobs for knobs in group.finalists if knobs.valid_for(threads)}

    def _parameter(self, group: Group, threads: int) -> str:
        """Optuna wants the same choices under one name: where the threads take some away, the name says so."""
        valid = self._labels(group, threads)
        return group.name if len(valid) == len(group.finalists) else f"{group.name} ({' | '.join(valid)})"
