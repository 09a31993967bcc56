"""The environment of a tuned config as shell lines: ``eval "$(autotune export small.tuned.yaml --to env)"``."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import TYPE_CHECKING

from autotune.config.words import OPENMP_BINDING
from autotune.ranks.launch import TUNABLES, environment

if TYPE_CHECKING:
    from autotune.config.tuned import Launch, TunedConfig


def export_lines(launch: Launch, without: Collection[str] = ()) -> list[str]:
    """``export NAME=value`` for every variable but those `without`, values quoted for the shell; GLIBC_TUNABLES beside what is there."""
    there = {TUNABLES: f"${{{TUNABLES}:+${TUNABLES}:}}"}
    return [
        f"export {name}={there.get(name, '')}{shlex.quote(value)}" for name, value in environment(launch).items() if name not in without
    ]


def to_env(config: TunedConfig) -> str:
    """The shell lines of a config, one a variable; on several sockets without the binding, which is another one for every rank."""
    return "".join(f"{line}\n" for line in export_lines(config.launch, without=OPENMP_BINDING if config.sockets > 1 else ()))
