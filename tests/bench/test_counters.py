from __future__ import annotations

import os
import threading
import time

import pytest

from autotune.bench.counters import HARDWARE, Counters, Event

# What the kernel counts by itself.
SOFTWARE = {"task_clock_ns": Event(1, 1), "page_faults": Event(1, 2), "context_switches": Event(1, 3)}


def test_what_the_kernel_counts_by_itself_grows_with_work() -> None:
    with Counters(SOFTWARE) as counters:
        if "task_clock_ns" not in counters.names:
            pytest.skip(f"perf events are not permitted here: {counters.missing}")
        before = counters.read()
        begin_s = time.thread_time()
        while time.thread_time() < begin_s + 0.02:
            pass
        after = counters.read()
        assert after["task_clock_ns"] - before["task_clock_ns"] >= 0.9 * 0.02e9


def test_threads_that_were_there_are_counted() -> None:
    end, ready = threading.Event(), threading.Event()

    def spin() -> None:
        begin_s = time.thread_time()
        ready.wait()
        while time.thread_time() < begin_s + 0.03:
            pass
        end.wait()

    other = threading.Thread(target=spin)
    other.start()
    try:
        with Counters({"clock": SOFTWARE["task_clock_ns"]}) as counters:
            if not counters.names:
                pytest.skip(f"perf events are not permitted here: {counters.missing}")
            before = counters.read()["clock"]
            ready.set()
            time.sleep(0.1)
            while counters.read()["clock"] < before + 0.025e9:
                time.sleep(0.01)  # a busy machine gives the thread its turn later
    finally:
        ready.set()
        end.set()
        other.join()


def test_what_cannot_be_counted_is_left_out_with_the_reason_and_no_file_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Counters({"nonsense": Event(0, 4711)} | HARDWARE) as counters:
        assert "nonsense" in counters.missing
        assert set(counters.names) | set(counters.missing) == {"nonsense", *HARDWARE}
        assert set(counters.read()) == set(counters.names)
    assert len(os.listdir("/proc/self/fd")) == before
