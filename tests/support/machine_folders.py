"""Made-up machines as folders in the form of sysfs and procfs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autotune.config.profile import Topology
from autotune.machine.memory import available_memory_bytes
from autotune.machine.topology import detect

GIB = 1 << 30
X86 = "vendor_id : GenuineIntel\nmodel name : Model X\nflags : fpu avx2 fma avx512f"


def write(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def listed(cpus: Sequence[int]) -> str:
    return ",".join(map(str, cpus))


def masked(cpus: Sequence[int]) -> str:
    """As old kernels write CPUs, and recorded machines have them: words of 32 bits, the highest first."""
    bits = f"{sum(1 << cpu for cpu in cpus):024x}"
    return ",".join(bits[i : i + 8] for i in range(0, len(bits), 8))


@dataclass
class Machine:
    """A machine as folders: `sysfs` and `proc` below `root`."""

    root: Path
    cpus: list[int] = field(default_factory=list)
    masks: bool = False
    """Whether it has masks instead of lists."""

    @property
    def sysfs(self) -> Path:
        return self.root / "sys"

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    def cpu(self, cpu: int) -> Path:
        return self.sysfs / f"devices/system/cpu/cpu{cpu}"

    def write_cpus(self, folder: Path, mask: str, list_: str, cpus: Sequence[int]) -> None:
        write(folder / (mask if self.masks else list_), masked(cpus) if self.masks else listed(cpus))

    def core(self, cpus: Sequence[int], package: int | None = 0, siblings: Sequence[int] = ()) -> None:
        """Logical CPUs of one core.

        Args:
            package: Its id; None leaves the file out.
            siblings: All CPUs of its package; none leaves the file out.
        """
        for cpu in cpus:
            self.cpus.append(cpu)
            topology = self.cpu(cpu) / "topology"
            self.write_cpus(topology, "thread_siblings", "core_cpus_list", cpus)
            if siblings:
                self.write_cpus(topology, "core_siblings", "package_cpus_list", siblings)
            if package is not None:
                write(topology / "physical_package_id", package)

    def cache(self, level: int, size: str, shared: Sequence[int], kind: str = "Unified") -> None:
        for cpu in shared:
            index = self.cpu(cpu) / f"cache/index{level if kind != 'Instruction' else 9}"
            for name, value in (("level", level), ("type", kind), ("size", size), ("coherency_line_size", 64)):
                write(index / name, value)
            self.write_cpus(index, "shared_cpu_map", "shared_cpu_list", shared)

    def node(self, node: int, cpus: Sequence[int], gib: int = 0, free_gib: int | None = None, side_cache_gib: int = 0) -> None:
        """A NUMA node with so much memory, as far as it is told."""
        folder = self.sysfs / f"devices/system/node/node{node}"
        self.write_cpus(folder, "cpumap", "cpulist", cpus)
        if gib:
            sizes = {"MemTotal": gib, "MemFree": gib if free_gib is None else free_gib}
            write(folder / "meminfo", "\n".join(f"Node {node} {name}:       {size << 20} kB" for name, size in sizes.items()))
        if side_cache_gib:
            write(folder / "memory_side_cache/index1/size", side_cache_gib * GIB)

    def grid(self, packages: int, nodes: int, cores: int, threads: int = 1, interleaved: bool = False, **node: int) -> Machine:
        """Packages of so many nodes of so many cores; hyperthreads are numbered behind all cores.

        Args:
            interleaved: Neighbouring numbers lie on different nodes.
            node: Memory of every node.
        """
        count = packages * nodes * cores
        of_node: list[list[int]] = [[] for _ in range(packages * nodes)]
        for core in range(count):
            of_node[core % len(of_node) if interleaved else core // cores].append(core)
        for package in range(packages):
            own = of_node[package * nodes : (package + 1) * nodes]
            siblings = [cpu + count * thread for thread in range(threads) for core_list in own for cpu in core_list]
            for core in sorted(core for core_list in own for core in core_list):
                cpus = [core + count * thread for thread in range(threads)]
                self.core(cpus, package, siblings)
                self.cache(2, "1024K", cpus)
            self.cache(3, "32M", siblings)
        for number, core_list in enumerate(of_node):
            self.node(number, [core + count * thread for thread in range(threads) for core in core_list], **node)
        self.system()
        return self

    def system(self, memory_kib: int = 64 << 20, available_kib: int = 32 << 20, fields: str = X86) -> None:
        write(self.proc / "cpuinfo", "\n".join(f"processor : {cpu}\n{fields}\n" for cpu in sorted(self.cpus)))
        write(self.proc / "meminfo", f"MemTotal: {memory_kib} kB\nMemAvailable: {available_kib} kB")

    def cgroup(self, line: str, mount: str) -> None:
        write(self.proc / "self/cgroup", line)
        write(self.proc / "self/mountinfo", mount)

    def status(self, **fields: str) -> None:
        write(self.proc / "self/status", "\n".join(f"{name}:\t{value}" for name, value in fields.items()))

    def detect(self, allowed: Sequence[int] | None = None, **environ: str) -> Topology:
        return detect(self.sysfs, self.proc, self.cpus if allowed is None else allowed, environ)

    def available(self, **environ: str) -> int:
        """Bytes of memory."""
        return available_memory_bytes(self.detect(**environ), self.sysfs, self.proc, environ)
