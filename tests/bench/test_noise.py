from __future__ import annotations

import psutil
import pytest

from autotune.bench.noise import SPAN_S, NoiseMonitor, Reading
from autotune.errors import InputError


def judge(*readings: Reading, cpus: int = 2) -> list[str]:
    """Why each window is disturbed, from pairs of readings."""
    left = iter(readings)
    monitor = NoiseMonitor(cpus=range(cpus), read=lambda: next(left))
    found = []
    for _ in range(len(readings) // 2):
        monitor.before()
        found.append(monitor.after())
    return found


def at(time_s: float, busy_s: float = 0.0, own_s: float = 0.0, steal_s: float = 0.0, frequency_hz: float | None = None) -> Reading:
    return Reading(time_s, busy_s, own_s, steal_s, frequency_hz)


def test_the_load_of_this_process_is_not_foreign() -> None:
    assert judge(at(0.0), at(1.0, busy_s=2.0, own_s=2.0)) == [""]


def test_a_busy_foreign_program_disturbs() -> None:
    assert judge(at(0.0), at(1.0, busy_s=2.0, own_s=1.0)) == ["other programs took 1.00 CPUs"]


def test_one_busy_foreign_program_is_seen_on_a_large_machine_too() -> None:
    assert judge(at(0.0), at(1.0, busy_s=64.0, own_s=63.0), cpus=64) == ["other programs took 1.00 CPUs"]


def test_own_time_beyond_the_counters_is_rounding_not_negative_load() -> None:
    assert judge(at(0.0), at(1.0, busy_s=1.0, own_s=2.0)) == [""]


def test_a_tick_of_the_counters_does_not_disturb_a_short_window() -> None:
    assert judge(at(0.0), at(0.01, busy_s=0.01)) == [""]


def test_short_windows_are_judged_together() -> None:
    """A program that takes half of both CPUs, seen through windows of 50 ms."""
    windows = [at(0.05 * (i // 2 + i % 2), busy_s=0.05 * (i // 2 + i % 2)) for i in range(12)]
    verdicts = [bool(reason) for reason in judge(*windows)]
    assert any(verdicts)
    assert round(0.05 * (verdicts.index(True) + 1), 2) <= SPAN_S


def test_what_disturbed_one_window_does_not_disturb_its_repetition() -> None:
    first, second = judge(at(0.0), at(0.2, busy_s=0.2), at(0.2, busy_s=0.2), at(0.4, busy_s=0.2))
    assert first
    assert not second


def test_a_stale_window_says_nothing_about_this_one() -> None:
    assert judge(at(0.0), at(0.1), at(5.0, busy_s=5.0), at(5.1, busy_s=5.0)) == ["", ""]


def test_stolen_time_disturbs() -> None:
    assert judge(at(0.0), at(1.0, steal_s=0.2)) == ["the hypervisor withheld 10.0% of the time"]


def test_a_kernel_that_does_not_tell_the_frequency_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> None:
        float("Unknown")  # as psutil reads "cpu MHz : Unknown"

    monkeypatch.setattr(psutil, "cpu_freq", unknown)
    monitor = NoiseMonitor()
    monitor.before()
    monitor.after()


def test_a_frequency_that_falls_disturbs_and_a_steady_one_does_not() -> None:
    steady, fallen = judge(at(0.0), at(1.0, frequency_hz=3.0e9), at(1.0), at(2.0, frequency_hz=2.4e9))
    assert (steady, fallen) == ("", "the CPU frequency went to 0.80 of what it was")


def test_a_frequency_that_stays_fallen_becomes_the_new_normal() -> None:
    readings = [at(0.0), at(1.0, frequency_hz=3.0e9)]
    for second in range(1, 8):
        readings += [at(second), at(second + 1.0, frequency_hz=2.4e9)]
    assert not judge(*readings)[-1]


def test_a_clock_that_stands_still_is_quiet() -> None:
    assert judge(at(1.0), at(1.0, busy_s=0.01)) == [""]


def test_a_window_that_was_not_opened_is_refused() -> None:
    monitor = NoiseMonitor(cpus=[0], read=lambda: at(0.0))
    with pytest.raises(InputError, match="call before"):
        monitor.after()


def test_no_cpus_to_watch_is_refused() -> None:
    with pytest.raises(InputError, match="at least one CPU"):
        NoiseMonitor(cpus=[])


def test_the_counters_of_this_machine_can_be_read() -> None:
    monitor = NoiseMonitor()
    monitor.before()
    assert isinstance(monitor.after(), str)


def test_watching_some_of_the_cpus_reads_only_those() -> None:
    monitor = NoiseMonitor(cpus=[0], processes=[1])
    monitor.before()
    assert isinstance(monitor.after(), str)
