"""The phases of a tuning run on a model in memory: races, the whole iteration, confirmation, table. Each result is stored at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.trial import TrialState
from pydantic import ValidationError

from autotune.bench.noise import NoiseMonitor
from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.bench.samples import ENOUGH_SAMPLES
from autotune.config.knobs import RunConfig
from autotune.config.measured import TableUse
from autotune.config.model import Model
from autotune.config.partition import Partition
from autotune.config.profile import Topology
from autotune.config.tuned import Gain, RaceResult
from autotune.errors import NoSpaceError
from autotune.machine.memory import available_memory_bytes
from autotune.perf.table import OTHER, OperatorTable
from autotune.ranks.lockstep import Lockstep
from autotune.tuning.budget import Deadline
from autotune.tuning.confirm import confirm
from autotune.tuning.journal import Journal
from autotune.tuning.objective import Bench, Paired, decided
from autotune.tuning.races import OperatorGroup, OperatorRace, group_operators, race_choices
from autotune.tuning.result import Outcome, race_gains
from autotune.tuning.space import Group, Params, Space, changes, huge_page_choices, thread_choices
from autotune.units import format_bytes, format_time

_FIRST_LOOK_ROUNDS = 5
_FIRST_LOOK_SHARE = 0.08
_TABLE_ROUNDS = 30
_TRIAL_ROUNDS = 10
# Of what the per-operator table may take: the embedding passes are a part of the iteration that it repeats.
_TABLES_SHARE = 0.3
# A pass at its ceiling may still gain something: ceilings are measured, and reached only nearly.
_LEAST_POTENTIAL = 0.1
# A choice of a pass below this share of the iteration cannot be seen in the iteration's time, so its race decides alone.
_VISIBLE_SHARE = 0.02
# Bytes per second at which tables move to other pages: a fault with zeroing (about 1 us) and a copy (0.4 us) per 4 KiB, and a third on top.
_MOVE_BYTES_PER_S = 2e9
# Moves that one trial of the other page size makes, at the least.
_MOVES_PER_TRIAL = 8
# After some draws that were all seen before, drawing is at random; after more, the space is taken for used up.
_RANDOM_AFTER_SEEN = 5
_MAX_SEEN = 20
# A trial with fewer rounds is no ground to choose by, if there are others.
_LEAST_ROUNDS = 3
_WHOLE_GAIN_SHARE = 0.2
# The transfers that a knob of the communication concerns, and what it may save of their time, to order the trials by: bf16 halves the
# bytes, others save messages. What is not named concerns every transfer, a little.
_PROMISES = {"wire_dtype": ("all_to_all", 0.5), "all_to_all": ("all_to_all", 0.2), "bucket_bytes": ("all_reduce", 0.2)}


@dataclass
class Tuner:
    """One tuning run on a model in memory. `tune` makes it; tests give it parts of their own."""

    model: Model
    host: Topology
    """The machine."""
    cores: Topology
    """The cores of a rank."""
    lockstep: Lockstep
    default_for: Callable[[int | None], RunConfig]
    """The default configuration for a number of threads; None: of the machine."""
    measure: Callable[..., OperatorTable]
    """`profile_passes`, its model and profile given."""
    deadline: Deadline
    journal: Journal
    progress: Progress = NO_PROGRESS
    monitor: NoiseMonitor | None = None
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    race: Callable[[OperatorGroup, float], RaceResult] | None = None
    """Races a group within seconds; None: in this process."""
    communication: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    partitions: tuple[Partition, ...] = ()
    """On several ranks: see `Space`."""
    measure_tables: Callable[[float], Sequence[TableUse]] = lambda budget_s: ()
    """Every table by itself, under the configuration in force, within seconds."""
    before_trial: Callable[[str], object] = lambda config: None
    after_trial: Callable[[], object] = lambda: None
    """Told of a trial's configuration, and of its end: a trial that ends its process is known by that afterwards."""

    def __post_init__(self) -> None:
        self.default = self.default_for(None)
        self.clock = self.deadline.clock
        # Batches of an interrupted run do not matter: what counts is that no two rounds of one comparison share one.
        self.bench = Bench(self.lockstep, self.monitor, self.clock, self.seed)
        # Spent on what is kept; what an interrupted result had taken is lost, and not counted.
        self.deadline.earlier_s += float(self.journal.get("spent_s") or 0.0)
        self.notes += self.journal.notes
        if self.journal.resumed:
            done = sum(key.startswith("race:") for key in self.journal.study.user_attrs)
            trials = len(self.journal.finished_trials())
            self.note(f"resumed from {self.journal.path.name}: {done} races and {trials} trials done, {self.deadline.spent_s:.1f} s spent")

    def note(self, message: str) -> None:
        self.notes.append(message)
        self.progress.note(message)

    def run(self) -> Outcome:
        """All phases; what is stored already is not measured again."""
        races, shares = self._races()
        space = self._space(races, shares)
        winner = self._iteration(space)
        winner, whole = self._settle_whole(space, winner)
        gains = [*race_gains(races, winner), *whole]
        confirmation = self._confirm(winner)
        chosen = winner if confirmation.significant else self.default
        if not confirmation.significant:
            gains = [gain.model_copy(update={"kept": False}) for gain in gains]
        table = self._table(chosen)
        trials = len(self.journal.finished_trials())
        notes = tuple(dict.fromkeys(self.notes))
        return Outcome(chosen, confirmation, tuple(gains), tuple(races), table, trials, self.deadline.spent_s, notes)

    def _store(self, key: str, value: Any) -> None:
        self.journal.put(key, value)
        self.journal.put("spent_s", self.deadline.spent_s)

    def _first_look(self) -> dict[str, dict[str, float]]:
        """Seconds by pass, and what could be gained of them, from the default's own iterations."""
        look = self.journal.get("first_look")
        if look is None:
            begin_s = self.clock()
            self.lockstep.configure(self.default)
            budget_s = _FIRST_LOOK_SHARE * self.deadline.left_s
            table = self.measure(rounds=_FIRST_LOOK_ROUNDS, budget_s=budget_s, progress=NO_PROGRESS)
            times = {row.operator: row.time_s.median for row in table.rows}
            potentials = {row.operator: max(_LEAST_POTENTIAL, 1.0 - max(row.fractions.values(), default=0.5)) for row in table.rows}
            gains = {key: times[key] * potentials[key] for key in times if key != OTHER}
            look = {"time_s": times, "gain_s": gains, "look": {"spent_s": self.clock() - begin_s}}
            self._store("first_look", look)
        # The table at the end is measured in the same way.
        self.deadline.table_s = look["look"]["spent_s"]
        return {name: dict(values) for name, values in look.items()}

    def _races(self) -> tuple[list[RaceResult], dict[str, float]]:
        """Race results, stored ones included, and every pass's share of the iteration."""
        look = self._first_look()
        total_s = sum(look["time_s"].values()) or 1.0
        shares = {key: time_s / total_s for key, time_s in look["time_s"].items()}
        operators = self.lockstep.operators()
        if self.communication:
            self.deadline.split(sum(shares.get(operator.key, 0.0) for operator in operators if operator.runs_alone))
        groups = group_operators(operators, self.default, look["gain_s"])
        results = [result for group in groups if (result := self._stored_race(group)) is not None]
        done = {key for result in results for key in result.keys}
        waiting = [group for group in groups if not done.intersection(group.keys)]
        if not waiting or self.journal.get("races_done"):
            return results, shares
        budget_s = self.deadline.phase_s("races")
        end_s = self.clock() + budget_s
        self.progress.phase("racing operators", budget_s)
        self.lockstep.configure(self.default)
        skipped = []
        for i, group in enumerate(waiting):
            left_s = end_s - self.clock()
            weights = sum(later.weight_s for later in waiting[i:])
            share_s = left_s * (group.weight_s / weights if weights else 1.0 / (len(waiting) - i))
            # A fresh set of inputs, a check and a warm-up cost some ten calls before the first round.
            if share_s < 10 * max(look["time_s"].get(key, 0.0) for key in group.keys) or share_s <= 0:
                skipped.append(group.keys[0])
                continue
            result = self.race(group, share_s) if self.race else self._race(group, share_s)
            results.append(result)
            self._store(f"race:{group.keys[0]}", result.model_dump(mode="json"))
        if skipped:
            some = ", ".join([*skipped[:3], *(["..."] if len(skipped) > 3 else [])])
            self.note(f"the budget left no time to race {len(skipped)} of {len(groups)} shapes ({some}): their default is kept")
        self._store("races_done", True)
        return results, shares

    def _race(self, group: OperatorGroup, budget_s: float) -> RaceResult:
        machine = (self.cores, self.default, self.monitor, self.clock)
        return OperatorRace(group, budget_s, *machine, self.seed, self.progress.advance).run()

    def _stored_race(self, group: OperatorGroup) -> RaceResult | None:
        stored = self.journal.get(f"race:{group.keys[0]}")
        if stored is None:
            return None
        try:
            result = RaceResult.model_validate(stored)
        except ValidationError:
            return None
        return result if result.keys == group.keys and result.default == self.default.operators[group.keys[0]] else None

    def _space(self, races: list[RaceResult], shares: dict[str, float]) -> Space:
        for result in races:
            self.notes += [f"{result.keys[0]} rejected {rejected}" for rejected in result.rejected]
        groups = []
        for result in races:
            if not result.finalists:
                continue
            visible = sum(shares.get(key, 0.0) for key in result.keys) >= _VISIBLE_SHARE
            groups.append(Group(result.keys, race_choices(result) if visible else race_choices(result)[:1]))
        threads = thread_choices(self.cores, self.default.threads)

        def promise(name: str) -> float:
            transfer, saved = _PROMISES.get(name, ("all_", 0.1))
            return saved * sum(share for key, share in shares.items() if key.startswith(transfer))

        # What promises most is tried first: the time may not suffice for all.
        communication = {name: self.communication[name] for name in sorted(self.communication, key=promise, reverse=True)}
        return Space(self.default, threads, self._pages(), tuple(groups), self.default_for, communication, self.partitions)

    def _pages(self) -> tuple[bool, ...]:
        """Page sizes to try. The choices of one study stay what they were when it began."""
        stored = self.journal.get("huge_pages")
        if stored is not None:
            return tuple(stored)
        pages = huge_page_choices(self.host, self.default.huge_pages)
        move_s = self.model.table_bytes / _MOVE_BYTES_PER_S
        largest_bytes = max(map(self.model.stored_bytes, self.model.tables))
        if len(pages) > 1 and largest_bytes > available_memory_bytes(self.host):
            self.note(f"page sizes are not searched: a table that moves needs its {format_bytes(largest_bytes)} twice; free memory")
            pages = pages[:1]
        if len(pages) > 1 and _MOVES_PER_TRIAL * move_s > 0.3 * self.deadline.phase_s("iteration"):
            self.note(f"page sizes are not searched: moving the tables takes about {format_time(move_s)}; give a larger budget")
            pages = pages[:1]
        self._store("huge_pages", list(pages))
        return pages

    def _iteration(self, space: Space) -> RunConfig:
        """The fastest configuration of all trials, by its ratio to the default; the default itself when none is faster."""
        if not self.journal.get("iteration_done"):
            budget_s = self.deadline.phase_s("iteration")
            self.progress.phase("tuning the whole iteration", budget_s)
            self._trials(space, self.clock() + budget_s)
            self._store("iteration_done", True)
        trials = [trial for trial in self.journal.finished_trials() if trial.value is not None]
        if not trials:
            # No time for a trial: the races' winners go to the confirmation as they are.
            return space.config(self.default.threads, self.default.huge_pages)
        lasting = [trial for trial in trials if trial.user_attrs["speedup"]["samples"] >= _LEAST_ROUNDS]
        best = min(lasting or trials, key=lambda trial: trial.value or 0.0)
        return RunConfig.model_validate_json(best.user_attrs["config"]) if (best.value or 0.0) < 1.0 else self.default

    def _trials(self, space: Space, end_s: float) -> None:
        study = self.journal.study
        by_model, at_random = study.sampler, optuna.samplers.RandomSampler(seed=self.seed + len(study.trials))
        seen = {trial.user_attrs["config"] for trial in self.journal.finished_trials()}
        seen.add(self.default.model_dump_json())
        seen.update(self.journal.get("failed") or ())
        planned = self._planned(space)
        duplicates = 0
        trial_s = 0.0
        while self.clock() + trial_s < end_s and duplicates < _MAX_SEEN:
            begin_s = self.clock()
            params = next(planned, None)
            if params is not None:
                study.enqueue_trial(params)
            study.sampler = by_model if duplicates < _RANDOM_AFTER_SEEN else at_random
            trial = study.ask()
            config = space.suggest(trial)
            text = config.model_dump_json()
            if text in seen:
                duplicates += params is None
                study.tell(trial, state=TrialState.FAIL)
                continue
            duplicates = 0
            seen.add(text)
            try:
                self.before_trial(text)
                paired = self.bench.compare(
                    self.default, config, budget_s=end_s - begin_s, max_rounds=_TRIAL_ROUNDS, until=decided, on_round=self.progress.advance
                )
                trial.set_user_attr("config", text)
                trial.set_user_attr("speedup", paired.speedup.model_dump())
                study.tell(trial, 1.0 / paired.speedup.median)
                self.journal.put("spent_s", self.deadline.spent_s)
            except (KeyboardInterrupt, OSError, NoSpaceError):
                self.after_trial()  # not to blame: it is tried again
                raise
            self.after_trial()
            trial_s = max(self.clock() - begin_s, 0.7 * trial_s)

    def _planned(self, space: Space) -> Iterator[Params]:
        """What is tried before sampling; the last of it follows from what came before."""
        yield from space.planned()
        combined = space.combined([(trial.params, trial.value) for trial in self.journal.finished_trials() if trial.value is not None])
        if combined is not None:
            yield combined

    def _settle_whole(self, space: Space, winner: RunConfig) -> tuple[RunConfig, list[Gain]]:
        """What threads and pages alone gain, with the winner's knobs on both sides; where that is not clear, they stay the default's.

        Else noise among the trials would choose, and each run would choose differently. Without time for it, the confirmation decides.
        """
        changed = changes(self.default, winner)
        budget_s = _WHOLE_GAIN_SHARE * self.deadline.phase_s("confirm")
        if not changed or ENOUGH_SAMPLES * self.bench.round_s > budget_s:
            return winner, []
        threads = self.default.threads
        operators = {key: knobs if knobs.valid_for(threads) else self.default.operators[key] for key, knobs in winner.operators.items()}
        before = self.default.model_copy(update={"operators": operators})
        paired = self.bench.compare(before, winner, budget_s=budget_s, max_rounds=_TRIAL_ROUNDS, on_round=self.progress.advance)
        gain = Gain(
            operator="iteration",
            knob=changed,
            default_s=paired.base,
            tuned_s=paired.other,
            speedup=paired.speedup,
            candidates=len(space.threads) * len(space.huge_pages),
            kept=paired.significant,
        )
        return winner if gain.kept else before, [gain]

    def _confirm(self, winner: RunConfig) -> Paired:
        budget_s = self.deadline.phase_s("confirm")
        self.progress.phase("confirming against the default", budget_s)
        confirmation = confirm(self.bench, self.default, winner, budget_s=budget_s, progress=self.progress)
        self.notes += confirmation.notes
        if winner != self.default and not confirmation.significant:
            low, high = confirmation.speedup.low, confirmation.speedup.high
            self.note(f"no significant gain: {confirmation.speedup.median:.3f}x [{low:.3f}, {high:.3f}]; the default stands")
        return confirmation

    def _table(self, chosen: RunConfig) -> OperatorTable:
        self.lockstep.configure(chosen)
        budget_s = self.deadline.phase_s("table")
        table = self.measure(rounds=_TABLE_ROUNDS, budget_s=budget_s, progress=self.progress)
        self.notes += table.notes
        return replace(table, tables=tuple(self.measure_tables(_TABLES_SHARE * budget_s)))
