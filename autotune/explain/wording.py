"""Every sentence of the explainer. The rest of the package deals in kinds and numbers."""

from __future__ import annotations

from typing import Literal

from autotune.units import format_time

FindingKind = Literal[
    "memory_bound",
    "compute_bound",
    "network_bound",
    "below_every_ceiling",
    "outside_operators",
    "no_gain",
    "wide_interval",
    "small_pages",
    "note",
]

_REMEDIES: dict[FindingKind, str] = {
    "memory_bound": "only fewer bytes help: a larger minibatch for layers, a larger cache share, or a machine with more memory bandwidth",
    "compute_bound": "only fewer operations help: lower precision, smaller layers, or a machine with more cores or wider vectors",
    "network_bound": "only less traffic helps: another partition of the tables, a smaller wire dtype, or overlap with compute",
    "below_every_ceiling": "overhead, imbalance or latency: a larger minibatch or fewer threads gives every fork and join more work",
    "outside_operators": "time of the step outside every operator: a larger minibatch makes its share smaller",
    "no_gain": "keep the default, or tune again with a larger --budget",
    "wide_interval": "stop other programs, or tune again with a larger --budget",
    "small_pages": "tables on 4 KiB pages miss the TLB at nearly every row: set transparent_hugepage to madvise or always, and tune again",
    "note": "tune again on a quiet machine if the figure matters",
}
_EMBEDDING_MEMORY = "only fewer row bytes help: more re-use of hot rows, narrower rows, or a machine with more memory bandwidth"


def remedy(kind: FindingKind, operator: str) -> str:
    """What to do about it."""
    return _EMBEDDING_MEMORY if kind == "memory_bound" and operator.startswith("embedding") else _REMEDIES[kind]


def ceiling_evidence(fractions: dict[str, float], detail: str) -> str:
    """The verdict's own account, or where it has none ``91% of the memory ceiling, 12% of the compute ceiling``, the highest first."""
    ranked = sorted(fractions.items(), key=lambda entry: -entry[1])
    return detail or ", ".join(f"{value:.0%} of the {name} ceiling" for name, value in ranked) or "no ceiling to hold it against"


def outside_evidence(time_s: float, iteration_s: float) -> str:
    return f"{format_time(time_s)} of {format_time(iteration_s)} per iteration"


def no_gain_evidence(low: float, high: float) -> str:
    return f"default over tuned lies in {low:.3f} .. {high:.3f}, so the default may be as good"


def wide_interval_evidence(low_s: float, high_s: float, samples: int) -> str:
    return f"its 95 % interval is {format_time(low_s)} .. {format_time(high_s)} from {samples} samples"


def small_pages_evidence(setting: str) -> str:
    return f"the kernel's transparent huge pages are set to {setting}"
