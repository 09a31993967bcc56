"""What the calibration runs of a profile teach: their passes with the features of any model, and the models fitted to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from autotune.config.calibration import CalibrationRun
from autotune.config.knobs import Knobs, RunConfig
from autotune.config.profile import Profile, Topology
from autotune.dlrm.defaults import default_knobs
from autotune.dlrm.schedule import schedule
from autotune.machine.topology import vector_lanes
from autotune.ops.base import Residence
from autotune.ops.embedding_bag import UPDATE
from autotune.ops.overhead import KEY as OTHER
from autotune.ops.overhead import Overhead
from autotune.ops.schedule import Pass, Schedule
from autotune.perf.cache_model import HeldShares, residences_of, shares_held
from autotune.perf.features import CACHE_SHARE, Machine, features_of
from autotune.perf.regression import FittedModel, Reference, fit

_SHARES = (0.1, 0.2, 0.35, 0.5, CACHE_SHARE)


@dataclass(frozen=True, eq=False)
class _Run:
    """A calibration run with what no share of the cache changes."""

    run: CalibrationRun
    passes: tuple[Pass, ...]
    knobs: Mapping[str, Knobs]
    sizes: tuple[Mapping[str, float], ...]
    """By pass; last of what lies between them."""
    own: HeldShares
    """What the cores' own caches hold."""


class Calibration:
    """The fits to the calibration runs of a profile; `of` keeps those of the last profiles."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._runs: dict[int, list[_Run]] = {}
        self._machines: dict[tuple[int, bool, float], Machine] = {}
        self._references: dict[int, Mapping[str, list[Reference]]] = {}
        self._models: dict[tuple[str, int], FittedModel] = {}
        disturbed = sum(run.disturbed for run in profile.calibration)
        few = 2 * disturbed < len(profile.calibration)
        self._kept = [run for run in profile.calibration if not (run.disturbed and few)]
        self._counts = sorted({run.threads for run in self._kept})

    @staticmethod
    def of(profile: Profile) -> Calibration:
        """That of a profile, made once."""
        if id(profile) not in _KNOWN:
            while len(_KNOWN) >= _MOST_KNOWN:
                _KNOWN.pop(next(iter(_KNOWN)))
            _KNOWN[id(profile)] = (profile, Calibration(profile))
        return _KNOWN[id(profile)][1]

    @cached_property
    def cache_share(self) -> float:
        """Part of the last-level cache under which the runs with the most threads are predicted best, each unseen by its model."""
        if not self._counts:
            return CACHE_SHARE
        most, best = self._counts[-1], math.inf
        chosen = CACHE_SHARE
        for share in _SHARES:
            references = self._references_at(most, share)
            models = {kind: fit(kind, most, of_kind) for kind, of_kind in references.items()}
            spread = sum(model.spread for model in models.values())
            if spread < best:
                best, chosen = spread, share
                self._references[most] = references
                self._models = {(kind, most): model for kind, model in models.items()}
        return chosen

    def model(self, kind: str, threads: int) -> FittedModel:
        """The fit of the number of threads nearest to the one asked for, in proportion; the operator's prior where nothing was learned."""
        for count in sorted(self._counts, key=lambda count: abs(math.log(count / threads))):
            if kind in self._of_count(count):
                if (kind, count) not in self._models:
                    self._models[kind, count] = fit(kind, count, self._of_count(count)[kind])
                return self._models[kind, count]
        return fit(kind, threads, ())

    def _of_count(self, count: int) -> Mapping[str, list[Reference]]:
        share = self.cache_share
        if count not in self._references:
            self._references[count] = self._references_at(count, share)
        return self._references[count]

    def _references_at(self, count: int, share: float) -> dict[str, list[Reference]]:
        """By kind the passes of the runs with so many threads."""
        by_kind: dict[str, list[Reference]] = {}
        held: dict[tuple[int, float], HeldShares] = {}
        for each in self._runs_of(count):
            run, machine = each.run, self._machine(each.run, share)
            key = (id(each.passes), machine.shared_bytes)
            if key not in held:  # runs of one model differ in their knobs alone
                held[key] = shares_held(each.passes, machine.shared_bytes)
            places = (*residences_of(each.passes, each.own, held[key]), Residence(0.0, 0.0, 0.0))
            for step, place, size in zip(_with_other(each.passes), places, each.sizes, strict=True):
                if run.passes_s.get(step.key, 0.0) > 0:
                    features = features_of(step, place, each.knobs.get(step.key), machine)
                    reference = Reference(features, size, run.passes_s[step.key], run.threads)
                    by_kind.setdefault(step.operator.kind, []).append(reference)
        return by_kind

    def _runs_of(self, count: int) -> list[_Run]:
        if count not in self._runs:
            steps: dict[str, Schedule] = {}
            runs = self._runs[count] = []
            for run in self._kept:
                if run.threads == count:
                    walked = steps.get(run.model.name)
                    if walked is None or walked.model != run.model:
                        walked = steps[run.model.name] = schedule(run.model)
                    own = shares_held(walked.passes, self._machine(run, CACHE_SHARE).own_bytes)
                    sizes = tuple(step.operator.size() for step in _with_other(walked.passes))
                    runs.append(_Run(run, walked.passes, knobs_of(run, walked, self._profile.fingerprint.topology), sizes, own))
        return self._runs[count]

    def _machine(self, run: CalibrationRun, share: float) -> Machine:
        key = (run.threads, run.huge_pages, share)
        if key not in self._machines:
            self._machines[key] = Machine(self._profile, run.threads, share=share, huge_pages=run.huge_pages)
        return self._machines[key]


def _with_other(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """The passes, and what lies between them."""
    return (*passes, Pass(OTHER, Overhead(OTHER, len(passes))))


_MOST_KNOWN = 4
_KNOWN: dict[int, tuple[Profile, Calibration]] = {}
"""By the profile's identity; each holds on to its profile, so that no other one gets its address."""


def knobs_of(run: CalibrationRun, steps: Schedule, machine: Topology) -> dict[str, Knobs]:
    """The knobs of every pass under which a reference model ran on a machine."""
    defaults = default_knobs(steps, run.threads, vector_lanes(machine))
    if run.strategy:
        defaults[UPDATE] = defaults[UPDATE].model_copy(update={"strategy": run.strategy})
    return {**defaults, **run.knobs}


def config_of(run: CalibrationRun, machine: Topology) -> RunConfig:
    """The configuration under which a reference model ran on a machine."""
    return RunConfig(threads=run.threads, huge_pages=run.huge_pages, operators=knobs_of(run, schedule(run.model), machine))
