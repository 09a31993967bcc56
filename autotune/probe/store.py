"""The profile of this machine, kept under the user's cache folder so that it is measured once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.files import cache_folder, load_profile, write_yaml
from autotune.config.profile import PROFILE_SCHEMA, Fingerprint, Profile
from autotune.errors import InputError
from autotune.machine.topology import detect, fingerprint, fingerprint_differences, hardware_id, software_differences
from autotune.ops.native import kernels
from autotune.probe.probe import probe

# Of the software, only these change what the loops of the probe reach.
_SOFTWARE = ("autotune", "huge_pages")
# A disturbed profile is measured again by the next command, but not by every command of a session on a machine that stays busy.
_AGAIN_AFTER = timedelta(minutes=10)


def load_or_probe(
    *,
    refresh: bool = False,
    progress: Progress = NO_PROGRESS,
    measure: Callable[..., Profile] = probe,
    here: Fingerprint | None = None,
) -> Profile:
    """The cached profile for this hardware and kernel target, or a new one, which is then cached.

    A file that cannot be used (corrupt, of another schema, of other hardware or another release) is replaced; a folder that cannot be
    written is gone without. Both are said through `progress`, and neither is an error. A profile that other programs disturbed and
    that is more than ten minutes old is measured again; while it stays disturbed, the note says so.

    Args:
        refresh: Measure even when there is a file.
        progress: Of the probe, and for the notes.
        measure: What measures: called with ``progress``.
        here: Of the machine; None takes what this process may use of it.

    Raises:
        MachineError: too little memory to measure.
    """
    here = here or fingerprint(detect(), kernels.target())
    path = _path(here, progress)
    profile = None if path is None or refresh else _load(path, here, progress)
    if profile is None:
        profile = measure(progress=progress)
        if path is not None:
            _store(path, profile, progress)
    for warning in profile.warnings:
        progress.note(warning)
    return profile


def _is_old(profile: Profile) -> bool:
    try:
        return datetime.now(UTC) - datetime.fromisoformat(profile.created) > _AGAIN_AFTER
    except (TypeError, ValueError):  # written by hand: without a zone, or not a date
        return True


def usable(profile: Profile, here: Fingerprint) -> bool:
    """Whether a profile was measured on this hardware by this release."""
    return not _differences(profile, here)


def _differences(profile: Profile, here: Fingerprint) -> list[str]:
    different = software_differences(profile.fingerprint, here)
    return fingerprint_differences(profile.fingerprint, here) + [text for text in different if text.split(":")[0] in _SOFTWARE]


def _path(here: Fingerprint, progress: Progress) -> Path | None:
    try:
        return cache_folder() / "profiles" / f"{hardware_id(here)}.yaml"
    except InputError as error:
        progress.note(f"the profile is not kept: {error}")
        return None


def _load(path: Path, here: Fingerprint, progress: Progress) -> Profile | None:
    """The profile in the file, None when it must be measured."""
    try:
        if not path.exists():
            return None
        profile = load_profile(path)
    except (InputError, OSError) as error:
        progress.note(f"the cached profile cannot be used, probing anew: {error}")
        return None
    differences = _differences(profile, here)
    if profile.schema_version != PROFILE_SCHEMA:
        differences.append(f"schema: {profile.schema_version}, now {PROFILE_SCHEMA}")
    if differences:
        progress.note(f"the cached profile {path} does not fit, probing anew: {'; '.join(differences)}")
        return None
    if profile.is_disturbed and _is_old(profile):
        progress.note(f"{profile.disturbed:.0%} of the cached profile's ceilings were disturbed while they were measured, probing anew")
        return None
    return profile


def _store(path: Path, profile: Profile, progress: Progress) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_yaml(path, profile)
    except (InputError, OSError) as error:
        progress.note(f"the profile is not kept ({error}); set AUTOTUNE_CACHE to a folder you can write to, or every command probes again")
