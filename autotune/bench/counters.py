"""Counters of this process's threads from the kernel's perf events, where the machine has them and the kernel lets us.

Most virtual machines have none of the hardware's; then there is nothing to read and nothing is lost. Linux on x86-64 alone.

Source of the layout and numbers: the manual page of perf_event_open(2), and <linux/perf_event.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from autotune.bench.rounds import Observer

_SYSCALL = 298
_ATTRIBUTES = struct.Struct("=IIQQQQQIIQ")  # the first 64 bytes, which every kernel knows
_FORMAT_TIMES = 0b11  # total time enabled, total time running
_EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 5, 1 << 6
_HARDWARE = 0


class Event(NamedTuple):
    kind: int
    config: int


HARDWARE: Mapping[str, Event] = {
    "cycles": Event(_HARDWARE, 0),
    "instructions": Event(_HARDWARE, 1),
    "cache_misses": Event(_HARDWARE, 3),
}
"""Events of the CPU. Cache misses are of the last level: what a core asked memory for, and not what a prefetcher did, on most CPUs."""


class Counters(Observer):
    """Counts events of all threads that the process has when it is made; a context manager, and an observer that sums them over rounds.

    Args:
        events: By name. Those that cannot be counted are left out; `missing` says why.
    """

    def __init__(self, events: Mapping[str, Event]) -> None:
        self._open: dict[str, list[int]] = {}
        self.missing: dict[str, str] = {}
        self.counted: dict[str, float] = {}
        """Counts inside the rounds observed."""
        for name, event in events.items():
            files, failure = _open_for_all_threads(event)
            if failure:
                self.missing[name] = failure
            else:
                self._open[name] = files

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._open)

    def read(self) -> dict[str, float]:
        """Counts so far, summed over the threads; one that the hardware counted for part of the time only is extended to all of it."""
        return {name: sum(map(_value, files)) for name, files in self._open.items()}

    def before(self) -> None:
        self._begin = self.read()

    def after(self) -> str:
        end = self.read()
        self.counted = {name: self.counted.get(name, 0.0) + end[name] - self._begin[name] for name in end}
        return ""

    def close(self) -> None:
        for files in self._open.values():
            for file in files:
                os.close(file)
        self._open = {}

    def __enter__(self) -> Counters:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _open_for_all_threads(event: Event) -> tuple[list[int], str]:
    """Files of the counters, and why there are none."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return [], f"not known how on {platform.system()} {platform.machine()}"
    files: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        file, failure = _open(event, int(thread.name))
        if failure == errno.ESRCH:  # it has ended
            continue
        if failure:
            for other in files:
                os.close(other)
            return [], os.strerror(failure)
        files.append(file)
    return files, ""


def _open(event: Event, thread: int) -> tuple[int, int]:
    """A counter's file, or the error's number. Without the kernel's own share where that is not permitted."""
    failure = 0
    for excluded in (_EXCLUDE_HYPERVISOR, _EXCLUDE_HYPERVISOR | _EXCLUDE_KERNEL):
        attributes = _ATTRIBUTES.pack(event.kind, _ATTRIBUTES.size, event.config, 0, 0, _FORMAT_TIMES, excluded, 0, 0, 0)
        file = _LIBC.syscall(_SYSCALL, ctypes.c_char_p(attributes), thread, -1, -1, 0)
        if file >= 0:
            os.set_inheritable(file, False)
            return file, 0
        failure = ctypes.get_errno()
        if failure not in (errno.EACCES, errno.EPERM):
            break
    return -1, failure


_LIBC = ctypes.CDLL(None, use_errno=True)


def _value(file: int) -> float:
    count, enabled, running = struct.unpack("=QQQ", os.read(file, 24))
    return count * enabled / running if running else float(count)
