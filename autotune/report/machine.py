"""The machine and the software that a result is valid for, as pairs of a name and its words."""

from __future__ import annotations

from autotune.config.profile import Fingerprint
from autotune.config.tuned import Provenance
from autotune.units import format_bytes, format_time, plural


def facts(fingerprint: Fingerprint, provenance: Provenance) -> list[tuple[str, str]]:
    """Machine, then versions, then how it was tuned; what is not known is left out."""
    machine = fingerprint.topology
    caches = [
        ("L1D", machine.l1d_bytes),
        ("L2", machine.l2_bytes),
        ("L3", machine.l3_bytes),
        ("memory-side", machine.memory_side_cache_bytes),
    ]
    limit = machine.memory_limit_bytes
    pairs = [
        ("CPU", machine.cpu_model),
        ("cores", f"{machine.physical_cores} ({machine.logical_cpus} logical CPUs) on {plural(machine.sockets, 'socket')}"),
        ("NUMA nodes", str(len(machine.numa_nodes))),
        ("quota", "" if machine.cpu_quota is None else f"{machine.cpu_quota:g} CPUs (cgroup)"),
        ("caches", ", ".join(f"{name} {format_bytes(size)}" for name, size in caches if size)),
        ("memory", format_bytes(machine.memory_bytes) + (f", limit {format_bytes(limit)}" if limit else "")),
        ("huge pages", machine.huge_pages),
        ("kernels", f"{fingerprint.target} ({' '.join(machine.isa)})"),
        ("system", fingerprint.kernel),
        ("versions", ", ".join(f"{name} {version}" for name, version in fingerprint.versions.items())),
        ("tuned", f"{provenance.created}, {format_time(provenance.spent_s)} of {format_time(provenance.budget_s)}"),
        ("trials", f"{provenance.trials} of the whole iteration, seed {provenance.seed}"),
    ]
    return [(name, words) for name, words in pairs if words]
