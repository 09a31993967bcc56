"""The round loop of every measurement: each participant takes one turn a round, in an order drawn anew, while observers watch.

Slow drift of the machine (temperature, neighbours, page cache) then meets all participants alike, and the ratio of two of them is taken
within a round. A disturbed round is repeated, up to `MAX_REPEATS` times in one measurement and while the budget has room for another
round; after that it is kept, and the measurement's note says so.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from autotune.bench.samples import Samples
from autotune.errors import InputError
from autotune.machine.activity import advanced

Turn = Callable[[], Sequence[float]]
"""One turn of a participant; returns the seconds of each sample that it took."""
Times = Mapping[str, Sequence[float]]
"""Seconds by participant, of the rounds that count."""
Clock = Callable[[], float]

# Under steady foreign load repeating does not help, so the repeats of one measurement are limited.
MAX_REPEATS = 8
# The next round is expected to take as long as the longest before it, each of which counts a tenth less than the one after it.
_LENGTH_DECAY = 0.9


@dataclass(frozen=True)
class Round:
    """One round, whether it counts or was repeated."""

    number: int
    """Rounds that count so far, this one included."""
    times_s: Mapping[str, Sequence[float]]
    """Seconds by participant."""
    disturbed: str
    """Why the observers call it disturbed; empty when they do not."""
    counts: bool
    """False for a disturbed round that is measured again."""
    length_s: float
    """Wall time, preparation included."""


class Observer:
    """Watches a measurement. Every method does nothing here; an observer defines those it needs."""

    def begin(self) -> None:
        """Called once, before the warm-up."""

    def before(self) -> None:
        """Called before the turns of every round."""

    def after(self) -> str:
        """Called after the turns of every round; returns why the round is disturbed, or an empty string."""
        return ""

    def done(self, finished: Round) -> None:
        """Called with every round once it is decided whether it counts."""

    def end(self) -> None:
        """Called once, after the last round or an error."""


class EachRound(Observer):
    """Calls a function with every round, counted or not; progress is reported so."""

    def __init__(self, report: Callable[[Round], object]) -> None:
        self._report = report

    def done(self, finished: Round) -> None:
        self._report(finished)


@dataclass(frozen=True)
class Measurement:
    """All rounds of one measurement."""

    rounds: tuple[Round, ...]
    """In the order in which they ran, repeated ones included."""
    samples: dict[str, Samples]
    """Of every participant, from the rounds that count: entry i of two participants is from the same round."""
    notes: tuple[str, ...]
    """Disturbance, and a budget that ended early."""

    @property
    def counted(self) -> int:
        """Rounds that count."""
        return sum(each.counts for each in self.rounds)

    @property
    def disturbed(self) -> int:
        """Disturbed rounds, both repeated and kept."""
        return sum(bool(each.disturbed) for each in self.rounds)


def timed(
    call: Callable[[], object], clock: Clock = time.perf_counter, *, calls: int = 1, before: Callable[[], object] | None = None
) -> Turn:
    """A turn of one sample: the time of `call`, the mean of several in a row; `before` is called first, outside the clock."""

    def turn() -> tuple[float]:
        if before is not None:
            before()
        begin_s = clock()
        for _ in range(calls):
            call()
        return ((clock() - begin_s) / calls,)

    return turn


def run_rounds(
    turns: Mapping[str, Turn],
    *,
    max_rounds: int | None = None,
    budget_s: float | None = None,
    min_rounds: int = 1,
    enough_rounds: int = 3,
    warmup: int = 1,
    observers: Sequence[Observer] = (),
    prepare: Callable[[], object] | None = None,
    until: Callable[[Times], bool] | None = None,
    drop: Callable[[Times], Collection[str]] | None = None,
    decide: Callable[[bool], bool] = bool,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> Measurement:
    """Run rounds until a limit is met.

    Args:
        turns: Participants by name.
        max_rounds: Rounds that count, at most.
        budget_s: Wall time, seconds, warm-up included; a round that is expected to pass it is not begun. One that is
            spent already leaves `min_rounds`.
        min_rounds: Rounds that count and run whatever the budget is.
        enough_rounds: Rounds below which `until` is not asked, and a budget that ends the measurement is noted.
        warmup: Untimed turns of each participant first.
        observers: What watches, in this order.
        prepare: Makes the inputs of a round or of a warm-up turn, outside every observation.
        until: Asked after each round that counts; True ends the measurement.
        drop: Asked after each round that counts for the participants that leave; the first one stays where all should go.
        decide: Makes a decision that depends on this process's clock and observers. Where several processes run the rounds together, it
            returns the same answer in all of them; it is called after every round, outside the clock.
        seed: Seed of the order inside the rounds.
        clock: Seconds, monotonic.

    Raises:
        InputError: no participants, no limit, or less than one round.
    """
    if not turns:
        raise InputError("a measurement needs at least one participant, got none")
    if max_rounds is None and budget_s is None and until is None:
        raise InputError("a measurement needs an end, got neither rounds nor budget_s; give one of them")
    if max_rounds is not None and max_rounds < 1:
        raise InputError(f"rounds must be at least 1, got {max_rounds}; ask for one or more")
    begin_s, expected_s, repeats, ended, late = clock(), 0.0, 0, False, False
    names, shuffle = list(turns), random.Random(seed).shuffle
    make_inputs = prepare or (lambda: None)
    rounds: list[Round] = []
    times_s: dict[str, list[float]] = {name: [] for name in turns}
    counted = 0
    with ExitStack() as stack:
        for observer in observers:
            stack.callback(observer.end)
            observer.begin()
        for name in names * warmup:
            make_inputs()
            turns[name]()
        while not ended:
            advanced()
            round_begin_s = clock()
            make_inputs()
            order = list(names)
            shuffle(order)
            taken_s, disturbed = _observed({name: turns[name] for name in order}, observers)
            now_s = clock()
            expected_s = max(now_s - round_begin_s, _LENGTH_DECAY * expected_s)
            room = budget_s is None or now_s - begin_s + expected_s <= budget_s
            again = decide(bool(disturbed) and room and repeats < MAX_REPEATS)
            counted += not again
            times_of_round = {name: taken_s[name] for name in names}
            rounds.append(Round(counted, times_of_round, disturbed, not again, now_s - round_begin_s))
            for observer in observers:
                observer.done(rounds[-1])
            if again:
                repeats += 1
                continue
            for name in names:
                times_s[name].extend(taken_s[name])
            if drop is not None:
                gone = drop({name: times_s[name] for name in names})
                names = [name for name in names if name not in gone] or names[:1]
            late = not room and counted >= min_rounds
            full = max_rounds is not None and counted >= max_rounds
            enough = until is not None and counted >= enough_rounds and until({name: times_s[name] for name in names})
            ended = decide(late or full or enough)
    notes = []
    disturbances = [each.disturbed for each in rounds if each.disturbed]
    if disturbances:
        share = f"{len(disturbances)} of {len(rounds)} rounds were disturbed ({disturbances[-1]})"
        notes.append(f"{share}: {repeats} measured again, {len(disturbances) - repeats} kept")
    if late and counted < min(enough_rounds, max_rounds or enough_rounds):
        notes.append(f"the budget of {budget_s:g} s ended after {counted} of at least {enough_rounds} rounds; give a larger one")
    samples = {name: Samples(tuple(values)) for name, values in times_s.items()}
    return Measurement(tuple(rounds), samples, tuple(notes))


def _observed(turns: Mapping[str, Turn], observers: Sequence[Observer]) -> tuple[dict[str, Sequence[float]], str]:
    """Times of one round, without collections of garbage in it, and why it is disturbed."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        for observer in observers:
            observer.before()
        times_s = {name: turn() for name, turn in turns.items()}
        reasons = [observer.after() for observer in reversed(observers)]
    finally:
        if collecting:
            gc.enable()
    return times_s, "; ".join(filter(None, reasons))
