"""Made-up machines as folders in the form of sysfs and procfs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from autotune.config.profile import Topology
from autotune.machine.topology import detect

GIB = 1 << 30
X86 = "vendor_id : GenuineIntel\nmodel name : Model X\nflags : fpu avx2 fma avx512f"


def write(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def listed(cpus: list[int]) -> str:
    return ",".join(map(str, cpus))


@dataclass
class Machine:
    """A machine as folders: `sysfs` and `proc` below `root`."""

    root: Path
    cpus: list[int] = field(default_factory=list)

    @property
    def sysfs(self) -> Path:
        return self.root / "sys"

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    def cpu(self, cpu: int) -> Path:
        return self.sysfs / f"devices/system/cpu/cpu{cpu}"

    def core(self, cpus: list[int], package: int = 0) -> None:
        for cpu in cpus:
            self.cpus.append(cpu)
            write(self.cpu(cpu) / "topology/core_cpus_list", listed(cpus))
            write(self.cpu(cpu) / "topology/physical_package_id", package)

    def cache(self, level: int, size: str, shared: list[int], kind: str = "Unified") -> None:
        for cpu in shared:
            index = self.cpu(cpu) / f"cache/index{level if kind != 'Instruction' else 9}"
            for name, value in (("level", level), ("type", kind), ("size", size), ("coherency_line_size", 64)):
                write(index / name, value)
            write(index / "shared_cpu_list", listed(shared))

    def node(self, node: int, cpus: list[int]) -> None:
        write(self.sysfs / f"devices/system/node/node{node}/cpulist", listed(cpus))

    def system(self, memory_kib: int = 64 << 20, available_kib: int = 32 << 20, fields: str = X86) -> None:
        write(self.proc / "cpuinfo", "\n".join(f"processor : {cpu}\n{fields}\n" for cpu in sorted(self.cpus)))
        write(self.proc / "meminfo", f"MemTotal: {memory_kib} kB\nMemAvailable: {available_kib} kB")

    def cgroup(self, line: str, mount: str) -> None:
        write(self.proc / "self/cgroup", line)
        write(self.proc / "self/mountinfo", mount)

    def detect(self, allowed: list[int] | None = None) -> Topology:
        return detect(self.sysfs, self.proc, self.cpus if allowed is None else allowed)
