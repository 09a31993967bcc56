"""Foreign load, stolen time and frequency drift during a timing window.

A window is judged by the operating system's counters before and after it: two reads of about 20 us each on a small machine.
The CPU counters tick in hundredths of a second, so a window shorter than `SPAN_S` is judged together with the windows just before
it, and the counters' own uncertainty is granted before anything is called foreign.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from autotune.bench.rounds import Observer
from autotune.errors import InputError
from autotune.machine.sysfs import parse_cpu_list, read_text

# One CPU's counter ticks in 10 ms; over 250 ms the error of two CPUs (14 ms) is 0.06 CPUs, below the threshold of 0.16.
SPAN_S = 0.25
# An older window says nothing about this one.
_STALE_S = 1.0
# Daemons in the background take more on a larger machine, but a barrier waits for its slowest thread, so one busy foreign program
# must be seen however many CPUs there are: the limit is 0.16 CPUs of 2, 0.47 of 64.
FOREIGN_CPUS = 0.15
FOREIGN_PER_CPU = 0.005
# Time the hypervisor gave to others, as a share of the allowed CPUs' time.
STEAL_SHARE = 0.02
FREQUENCY_DRIFT = 0.10
# Reading the frequency costs 40 us and grows with the CPUs, so it is not read at every window.
_FREQUENCY_PERIOD_S = 0.25
_FREQUENCY_HISTORY = 8


@dataclass(frozen=True)
class Reading:
    """Counters at one moment; only differences mean anything."""

    time_s: float
    busy_s: float
    """CPU seconds that any program used on the watched CPUs."""
    own_s: float
    """CPU seconds that this process and its children used."""
    steal_s: float
    """CPU seconds the hypervisor withheld."""
    frequency_hz: float | None
    """Mean CPU frequency; None where it is not known or was read a moment ago."""


class NoiseMonitor(Observer):
    """Observer of foreign load, stolen time and the frequency. A window is what lies between `before` and `after`.

    Args:
        cpus: The CPUs the work runs on; default the affinity of the calling thread, which OpenMP may have bound to one CPU: give the
            allowed CPUs of the topology then.
        processes: Other processes whose load is not foreign (ranks of the same run), beside the children this process has now.
        read: Source of readings, for tests.

    Disturbed is a window in which, beyond the counters' uncertainty of 10 ms x sqrt(CPUs), other programs took more than
    0.15 + 0.005 x CPUs CPUs' worth of time, or the hypervisor withheld more than 2 %, or the frequency moved by more than 10 %.
    """

    def __init__(self, cpus: Iterable[int] | None = None, processes: Iterable[int] = (), read: Callable[[], Reading] | None = None) -> None:
        watched = frozenset(os.sched_getaffinity(0) if cpus is None else cpus)
        if not watched:
            raise InputError("cpus must name at least one CPU to watch, got none; leave it out to watch all allowed ones")
        self._cpus = len(watched)
        self._read = read or _System(watched, tuple(processes)).read
        self._open: Reading | None = None
        self._past: deque[Reading] = deque(maxlen=256)
        self._frequencies: deque[float] = deque(maxlen=_FREQUENCY_HISTORY)

    def before(self) -> None:
        self._open = self._read()

    def after(self) -> str:
        """Close the window and judge it.

        Raises:
            InputError: no window is open.
        """
        if self._open is None:
            raise InputError("after() needs a window, got none open; call before() first")
        begin, end, self._open = self._open, self._read(), None
        since = self._reference(begin, end)
        frequency_ratio = self._frequency_ratio(end.frequency_hz or begin.frequency_hz)
        span_s = end.time_s - since.time_s
        if span_s <= 0:
            return ""
        foreign_s = (end.busy_s - since.busy_s) - (end.own_s - since.own_s)
        reason = self._reason(foreign_s, end.steal_s - since.steal_s, span_s, frequency_ratio)
        if reason:
            self._past.clear()  # what was judged once must not disturb the repetition too
        else:
            self._past.append(begin)
        return reason

    def _reference(self, begin: Reading, end: Reading) -> Reading:
        """The latest window start that lies `SPAN_S` back; where the last one is stale, this window's own."""
        for past in (begin, *reversed(self._past)):
            age_s = end.time_s - past.time_s
            if age_s >= SPAN_S:
                return past if past is begin or age_s <= _STALE_S else begin
        return begin

    def _frequency_ratio(self, frequency_hz: float | None) -> float | None:
        if not frequency_hz:
            return None
        ratio = frequency_hz / statistics.median(self._frequencies) if self._frequencies else 1.0
        self._frequencies.append(frequency_hz)
        return ratio

    def _reason(self, foreign_s: float, steal_s: float, span_s: float, frequency_ratio: float | None) -> str:
        uncertain_s = _TICK_S * math.sqrt(self._cpus)
        reasons = []
        if (foreign_s - uncertain_s) / span_s > FOREIGN_CPUS + FOREIGN_PER_CPU * self._cpus:
            reasons.append(f"other programs took {foreign_s / span_s:.2f} CPUs")
        if (steal_s - uncertain_s) / (span_s * self._cpus) > STEAL_SHARE:
            reasons.append(f"the hypervisor withheld {steal_s / (span_s * self._cpus):.1%} of the time")
        if frequency_ratio is not None and abs(frequency_ratio - 1.0) > FREQUENCY_DRIFT:
            reasons.append(f"the CPU frequency went to {frequency_ratio:.2f} of what it was")
        return "; ".join(reasons)


_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class _System:
    """Readings of this machine."""

    def __init__(self, cpus: frozenset[int], processes: tuple[int, ...]) -> None:
        # In the order in which psutil lists them.
        online = parse_cpu_list(read_text(Path("/sys/devices/system/cpu/online"))) or tuple(range(psutil.cpu_count() or 1))
        self._positions = [position for position, cpu in enumerate(online) if cpu in cpus]
        self._all = len(self._positions) in (0, len(online))
        try:
            children = psutil.Process().children(recursive=True)
            named = [psutil.Process(pid) for pid in processes if pid != os.getpid() and psutil.pid_exists(pid)]
        except psutil.Error:
            children, named = [], []
        self._others = list({process.pid: process for process in (*children, *named)}.values())
        self._frequency_at_s = -math.inf
        self._last_s: dict[int, float] = {}

    def read(self) -> Reading:
        now_s = time.perf_counter()
        times = [psutil.cpu_times()] if self._all else self._watched_times()
        busy_s = sum(t.user + t.nice + t.system + t.irq + t.softirq for t in times)
        steal_s = sum(t.steal for t in times)
        return Reading(now_s, busy_s, self._own_s(), steal_s, self._frequency_hz(now_s))

    def _watched_times(self) -> list[psutil._ntuples.scputimes]:
        every = psutil.cpu_times(percpu=True)
        return [every[position] for position in self._positions if position < len(every)]

    def _own_s(self) -> float:
        """A child that ends keeps the time last seen, so its end never makes the sum fall."""
        for process in self._others:
            try:
                used = process.cpu_times()
            except psutil.Error:
                continue
            self._last_s[process.pid] = used.user + used.system
        return time.process_time() + sum(self._last_s.values())

    def _frequency_hz(self, now_s: float) -> float | None:
        if now_s - self._frequency_at_s < _FREQUENCY_PERIOD_S:
            return None
        try:
            frequency = psutil.cpu_freq()
        except (OSError, NotImplementedError, RuntimeError, ValueError):  # some kernels say "cpu MHz : Unknown"
            frequency = None
        self._frequency_at_s = now_s if frequency else math.inf
        return frequency.current * 1e6 if frequency and frequency.current else None
