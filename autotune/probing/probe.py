"""From this machine to a profile: what it is and what it reaches."""

from __future__ import annotations

from datetime import UTC, datetime

from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.profile import PROFILE_SCHEMA, Profile
from autotune.machine.memory import available_memory_bytes
from autotune.machine.topology import detect, fingerprint
from autotune.ops.native import kernels
from autotune.probing.calibrate import bf16_gain, calibrate
from autotune.probing.ceilings import measure_ceilings, thread_counts
from autotune.probing.drift import Drift, as_probed

SOURCE = "measured by autotune probe"

_CEILINGS_S = 33.0
_CALIBRATION_S = 45.0
EXPECTED_S = _CEILINGS_S + _CALIBRATION_S + 5.0
"""What a probe takes on a quiet machine."""


def probe(*, name: str | None = None, progress: Progress = NO_PROGRESS, quick: bool = False) -> Profile:
    """Measure this machine with the kernel target in use; about 80 seconds, and up to 40 more where other programs disturb it.

    Args:
        name: Of the profile; default the CPU and its cores.
        progress: Told of every round.
        quick: The structure of a profile in a few seconds; its numbers are no measurement.

    Raises:
        MachineError: too little memory is available.
    """
    topology = detect()
    begun = datetime.now(UTC)
    measured = measure_ceilings(topology, budget_s=_CEILINGS_S, progress=progress, quick=quick)
    profile = Profile(
        schema=PROFILE_SCHEMA,
        name=name or f"{topology.cpu_model}, {topology.physical_cores} cores",
        source=SOURCE,
        created=begun.isoformat(timespec="seconds"),
        fingerprint=fingerprint(topology, kernels.target()),
        ceilings=measured.ceilings,
        disturbed=measured.disturbed,
    )
    notes, drift, states = measured.notes, Drift(profile, topology.physical_cores), list[bool]()

    def steady() -> bool:
        states.append(quick or as_probed(drift.look()))
        return states[-1]

    runs = calibrate(
        topology,
        thread_counts(topology),
        available_memory_bytes(topology),
        budget_s=_CALIBRATION_S,
        progress=progress,
        quick=quick,
        steady=steady,
    )
    if not all(states):
        now = "as before" if states[-1] else "still another: probe again"
        notes += (f"the machine changed while it was probed, in {states.count(False)} of {len(states)} looks; at the end it was {now}",)
    gain = 1.0 if quick else bf16_gain(topology, topology.physical_cores)
    return profile.model_copy(update={"calibration": runs, "bf16_gain": gain, "notes": notes})
