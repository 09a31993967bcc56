"""A tuned config in the form other launchers read."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import InputError
from autotune.exporting.env import to_env
from autotune.exporting.hosts import script

if TYPE_CHECKING:
    from autotune.config.tuned import TunedConfig

TARGETS: dict[str, Callable[[TunedConfig, Path], str]] = {
    "env": lambda config, _: to_env(config),
    "torchrun": partial(script, "torchrun"),
    "json": lambda config, _: _to_json(config),
    "slurm": partial(script, "slurm"),
    "mpirun": partial(script, "mpirun"),
}


def check_target(to: str) -> None:
    """Raises: InputError: there is no such target; lists those there are."""
    if to not in TARGETS:
        near = difflib.get_close_matches(to, TARGETS, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown export target {to!r} (--to); {guess}the targets are {', '.join(TARGETS)}")


def export(config: TunedConfig, to: str, config_file: str | Path | None = None) -> str:
    """The text of `config` for the target `to`: the same input gives the same text.

    Args:
        to: One of `TARGETS`: ``env`` (shell lines), ``json`` (the config itself), or a bash script for ``torchrun``, ``slurm``, ``mpirun``.
        config_file: Where the config lies, for targets that refer to it; default ``<model>.tuned.yaml`` in the working folder.

    Raises:
        InputError: unknown target; lists the targets.
    """
    check_target(to)
    return TARGETS[to](config, Path(config_file or default_output(config.model)))


def _to_json(config: TunedConfig) -> str:
    """The whole config, keys in the order of the YAML file."""
    return json.dumps(config.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"


def default_output(model: str) -> Path:
    """``<model>.tuned.yaml`` in the working folder, named without the characters a shell would take for its own."""
    name = re.sub(r"\.ya?ml(?=\[|$)", "", Path(model).name)
    return Path(f"{re.sub(r'[^A-Za-z0-9._=+-]+', '-', name).strip('-')}.tuned.yaml")
