"""Limits that the control groups of this process set, versions 1 and 2 alike.

Source: Linux kernel documentation, admin-guide/cgroup-v1 and cgroup-v2; mountinfo in proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from autotune.machine.sysfs import parse_cpu_list, read_text

# Limits, usage, prefix of the hierarchical counters in memory.stat: version 2, then version 1. Above `memory.high` a process is slowed
# down until it gives memory back.
_MEMORY_FILES = (
    (("memory.max", "memory.high"), "memory.current", ""),
    (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_"),
)
# Of version 1, in memory.stat: the least limit of all cgroups above, those that a container does not see too.
_HIDDEN_LIMIT = "hierarchical_memory_limit"


class Cgroups:
    """Limits of all cgroups from this process's own up to the topmost visible one, version 1 and 2 alike."""

    def __init__(self, sysfs: Path, proc: Path) -> None:
        self._sysfs = sysfs
        self._own: dict[str, str] = {}
        for line in read_text(proc / "self/cgroup").splitlines():
            _, controllers, path = (*line.split(":", 2), "", "")[:3]
            self._own |= dict.fromkeys(controllers.split(","), path)
        if not self._own and (path := read_text(proc / "self/cpuset")):
            self._own = {"cpuset": path, "": path}
        self._mounts: dict[str, tuple[str, str]] = {}
        for root, folder, kind, options in _mounts(proc):
            if kind in ("cgroup", "cgroup2"):
                names = options.split(",") if kind == "cgroup" else [""]
                self._mounts = dict.fromkeys(names, (root, folder)) | self._mounts

    @cached_property
    def memory(self) -> list[tuple[int, int]]:
        """Limit and usage without file cache, bytes, of every cgroup that has a limit."""
        limits = []
        for folder in self._folders("memory"):
            stat = dict(re.findall(r"^(\w+) (\d+)$", read_text(folder / "memory.stat"), re.MULTILINE))
            for limit_names, usage_name, prefix in _MEMORY_FILES:
                usage = read_text(folder / usage_name)
                cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                used = max(0, int(usage) - cache) if usage.isdecimal() else 0
                texts = [read_text(folder / name) for name in limit_names] + [stat.get(_HIDDEN_LIMIT, "")] * bool(prefix)
                limits += [(int(text), used) for text in texts if text.isdecimal()]
        return limits

    @property
    def cpu_quota(self) -> float | None:
        """CPUs' worth of time, the least on the path."""
        quotas = []
        for folder in self._folders("cpu"):
            version_1 = [read_text(folder / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
            for pair in (read_text(folder / "cpu.max").split(), version_1):
                if len(pair) == 2 and all(text.isdigit() and int(text) for text in pair):
                    quotas.append(int(pair[0]) / int(pair[1]))
        return min(quotas, default=None)

    @property
    def cpuset(self) -> set[int]:
        """CPUs of the nearest cpuset that is not empty; empty when there is none."""
        return self._nearest("cpus")

    @property
    def memory_nodes(self) -> set[int]:
        """NUMA nodes of the nearest cpuset that names any; empty when there is none."""
        return self._nearest("mems")

    def _nearest(self, what: str) -> set[int]:
        for folder in self._folders("cpuset"):
            # Without its prefix where the hierarchy was mounted so, as some batch systems do.
            for name in (f"cpuset.{what}.effective", f"cpuset.effective_{what}", f"cpuset.{what}", what):
                if numbers := parse_cpu_list(read_text(folder / name)):
                    return set(numbers)
        return set()

    @property
    def pids(self) -> int | None:
        """Processes and threads, the least on the path; None when unlimited."""
        limits = [read_text(folder / "pids.max") for folder in self._folders("pids")]
        return min((int(limit) for limit in limits if limit.isdigit()), default=None)

    def _folders(self, controller: str) -> Iterator[Path]:
        """Folders of the cgroups of this process, its own first: those of the controller's own hierarchy, then those of version 2."""
        for key in (controller, ""):
            if key and self._own and key not in self._own:
                continue
            root, mount = self._mounts.get(key, ("/", f"/sys/fs/cgroup/{key}"))
            top = self._sysfs / mount.removeprefix("/sys/") if mount.startswith("/sys/") else self._sysfs.parent / mount.lstrip("/")
            path = self._own.get(key, "/")
            # The path is the host's where the container has no cgroup namespace, and then starts with the mount's root.
            inside = path[len(root) :] if path == root or path.startswith(root.rstrip("/") + "/") else ""
            parts = [part for part in inside.split("/") if part and part != ".."]
            for depth in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:depth])


def _mounts(proc: Path) -> Iterator[tuple[str, str, str, str]]:
    """Root, folder, kind and options of every mount; from `mounts`, which names no roots, where there is no `mountinfo`."""
    text = read_text(proc / "self/mountinfo")
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) >= 5 and kind:
            yield fields[3], fields[4], kind[0], kind[-1]
    for line in [] if text else read_text(proc / "mounts").splitlines():
        if len(fields := line.split()) >= 4:
            yield "/", fields[1], fields[2], fields[3]
