"""A bash script that starts a tuned run under torchrun."""

from __future__ import annotations

import shlex
from pathlib import Path

from autotune.config.tuned import TunedConfig
from autotune.export.env import export_lines

# torchrun's own process would be bound first and hand its one core on to the run, which starts itself with these in any case.
_BINDING = ("OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY")


def to_torchrun(config: TunedConfig, config_file: str | Path) -> str:
    """The script: environment but for the binding, then one process a socket; further arguments go to `autotune run`.

    Args:
        config_file: Where the config lies; the script names it by its absolute path, and ``AUTOTUNE_CONFIG`` overrides that.
    """
    file = shlex.quote(str(Path(config_file).absolute()))
    threads = config.launch.threads
    lines = [
        "#!/usr/bin/env bash",
        f"# {config.model} on {config.sockets} socket{'s' if config.sockets > 1 else ''}: "
        f"{threads} thread{'s' if threads > 1 else ''}, bound by autotune.",
        "set -euo pipefail",
        "",
        *export_lines(config.launch, without=_BINDING),
        "",
        f"default_config={file}",
        'config="${AUTOTUNE_CONFIG:-$default_config}"',
        f"exec torchrun --standalone --nproc-per-node={config.sockets} \\",
        f'  -m autotune run {shlex.quote(config.model)} --config "$config" "$@"',
    ]
    return "\n".join(lines) + "\n"
