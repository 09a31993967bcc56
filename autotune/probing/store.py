"""The profile of this machine, kept under the user's cache folder so that it is measured once."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from autotune.bench.progress import NO_PROGRESS, Progress
from autotune.config.files import cache_folder, load_profile, write_yaml
from autotune.config.profile import PROFILE_SCHEMA, Fingerprint, Profile
from autotune.errors import AutotuneError, InputError
from autotune.machine.topology import detect, fingerprint, fingerprint_differences, hardware_id, software_differences
from autotune.ops.native import kernels
from autotune.probing.probe import probe

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
    path = profile = None
    try:
        path = profile_path(here)
    except InputError as error:
        progress.note(f"the profile is not kept: {error}")
    if path is not None and not refresh:
        try:
            profile = read_profile(path, here, current=True)
        except InputError as error:
            progress.note(str(error))
    if profile is None:
        profile = measure(progress=progress)
        if path is not None:
            write_profile(path, profile, progress)
    for warning in profile.warnings:
        progress.note(warning)
    return profile


def is_stored() -> bool:
    """Whether `load_or_probe` finds a profile of this machine."""
    here = fingerprint(detect(), kernels.target())
    try:
        return read_profile(profile_path(here), here, current=True) is not None
    except InputError:
        return False


def profile_path(here: Fingerprint, network: str = "") -> Path:
    """The file of this hardware's profile; of one with a network under its name.

    Raises:
        InputError: there is no cache folder.
    """
    file = cache_folder() / "profiles" / f"{hardware_id(here)}{network}.yaml"
    # A newer version's profile stays: both versions may serve the same user.
    return file.with_name(f"{file.stem}.schema-{PROFILE_SCHEMA}.yaml") if _is_newer(file) else file


def _is_newer(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            first = re.fullmatch(r"schema: (\d{1,9})", lines.readline().strip(), re.ASCII)
    except OSError:
        return False
    return first is not None and int(first[1]) > PROFILE_SCHEMA


def read_profile(path: Path, here: Fingerprint, current: bool = False) -> Profile | None:
    """The profile in a file; None where there is no file.

    Args:
        current: Refuse one of an older schema, and an old one that was disturbed.

    Raises:
        InputError: it cannot be read, or another release or other hardware measured it.
    """
    try:
        if not path.exists():
            return None
        profile = load_profile(path)
    except (InputError, OSError) as error:
        raise InputError(f"the cached profile cannot be used, probing anew: {error}") from error
    software = [text for text in software_differences(profile.fingerprint, here) if text.split(":")[0] in _SOFTWARE]
    differences = fingerprint_differences(profile.fingerprint, here) + software
    if current and profile.schema_version != PROFILE_SCHEMA:
        differences.append(f"schema: {profile.schema_version}, now {PROFILE_SCHEMA}")
    if differences:
        raise InputError(f"the cached profile {path} does not fit, probing anew: {'; '.join(differences)}")
    if current and profile.is_disturbed and _is_old(profile):
        raise InputError(f"{profile.disturbed:.0%} of the cached profile's ceilings were disturbed while they were measured, probing anew")
    return profile


def write_profile(path: Path, profile: Profile, progress: Progress) -> None:
    """Keep a profile; a folder that cannot be written costs a note."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_yaml(path, profile)
    except (AutotuneError, OSError) as error:
        progress.note(f"the profile is not kept ({error}); set AUTOTUNE_CACHE to a folder you can write to, or every command probes again")


def _is_old(profile: Profile) -> bool:
    try:
        return datetime.now(UTC) - datetime.fromisoformat(profile.created) > _AGAIN_AFTER
    except (TypeError, ValueError):  # written by hand: without a zone, or not a date
        return True
