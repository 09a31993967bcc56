"""The environment of a tuned config as shell lines: ``eval "$(autotune export small.tuned.yaml --to env)"``."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from autotune.config.tuned import Launch, TunedConfig


def environment(launch: Launch) -> dict[str, str]:
    """Every variable a process needs before OpenMP and the allocator start, sorted by name.

    `launch.environment` as it is; threads and binding, where it does not name them, follow from `launch.threads` and `launch.cpus`.

    Source: OpenMP 5.2, OMP_NUM_THREADS, OMP_PROC_BIND, OMP_PLACES.
    """
    derived = {"OMP_NUM_THREADS": str(launch.threads)}
    if places := ",".join(f"{{{cpu}}}" for cpu in dict.fromkeys(launch.cpus)):
        derived |= {"OMP_PROC_BIND": "true", "OMP_PLACES": places}
    return dict(sorted((derived | launch.environment).items()))


def export_lines(launch: Launch, without: Collection[str] = ()) -> list[str]:
    """``export NAME=value`` for every variable but those `without`, values quoted for the shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment(launch).items() if name not in without]


def to_env(config: TunedConfig) -> str:
    """The shell lines of a config, one a variable."""
    return "".join(f"{line}\n" for line in export_lines(config.launch))
