"""A bash script that starts a tuned run under torchrun."""

from __future__ import annotations

import shlex
from pathlib import Path

from autotune.config.tuned import TunedConfig
from autotune.export.env import export_lines


def to_torchrun(config: TunedConfig, config_file: str | Path) -> str:
    """The script: environment, then one process a socket; further arguments go to `autotune run`.

    Args:
        config_file: Where the config lies; the script names it by its absolute path, and ``AUTOTUNE_CONFIG`` overrides that.
    """
    file = shlex.quote(str(Path(config_file).absolute()))
    lines = [
        "#!/usr/bin/env bash",
        f"# {config.model} on {config.sockets} socket{'s' if config.sockets > 1 else ''}: {config.launch.threads} threads.",
        "set -euo pipefail",
        "",
        *export_lines(config.launch),
        "",
        f"default_config={file}",
        'config="${AUTOTUNE_CONFIG:-$default_config}"',
        f"exec torchrun --standalone --nproc-per-node={config.sockets} \\",
        f'  -m autotune run {shlex.quote(config.model)} --config "$config" "$@"',
    ]
    return "\n".join(lines) + "\n"
