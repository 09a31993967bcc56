"""The bash scripts that start a tuned run under torchrun, Slurm or mpirun: a template for each launcher, on what all of them share.

A script needs no file beside the config and is the same text on every host; its further arguments go to `autotune run`. It names the config
by its absolute path, and ``AUTOTUNE_CONFIG`` overrides that.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.config.words import OPENMP_BINDING
from autotune.exporting.env import export_lines
from autotune.ranks.launch import environment
from autotune.units import plural

if TYPE_CHECKING:
    from autotune.config.tuned import TunedConfig

# Of a rank, as torchrun sets them: they would count for more than those of another launcher.
_LEFT_OUT = (*OPENMP_BINDING, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

# What srun(1) reads from its environment as options that give a step a part of the node, and the sign of an interactive shell.
_SRUN_OPTIONS = (
    *("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_EXACT", "SLURM_HINT", "SLURM_THREADS_PER_CORE"),
    "SLURM_PTY_PORT",
)

# The installed package counts, wherever the script is started: Python does not search that folder.
_SAFE_PATH = "PYTHONSAFEPATH"

# torch's usual port: any free one above 1023 does.
PORT = 29500


def script(launcher: str, config: TunedConfig, config_file: Path) -> str:
    """The script for ``torchrun``, ``slurm`` or ``mpirun``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # heavy for a help text

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "assets"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True,
        comment_start_string="<#", comment_end_string="#>",
    )  # fmt: skip
    templates.filters["quote"] = shlex.quote
    launch, communication = config.launch, config.config.communication
    alone = launcher == "torchrun" and config.sockets == 1
    return templates.get_template(f"{launcher}_alone.sh.j2" if alone else f"{launcher}.sh.j2").render(
        title=_title(config),
        sockets=config.sockets,
        cores=launch.threads + (communication.communication_cores if communication else 0),
        model=config.model,
        config_file=str(config_file.absolute()),
        port=PORT,
        left_out=_LEFT_OUT,
        binding=OPENMP_BINDING,
        srun_options=_SRUN_OPTIONS,
        exports=[f"export {_SAFE_PATH}=1", *export_lines(launch, without=_LEFT_OUT)],
        unbound_exports=[f"export {_SAFE_PATH}=1", *export_lines(launch, without=OPENMP_BINDING)],
        forwarded=sorted({*environment(launch), _SAFE_PATH, "MASTER_ADDR", "MASTER_PORT"} - {*_LEFT_OUT, "GLOO_SOCKET_IFNAME"}),
        run='-m autotune run "$MODEL" --config "${AUTOTUNE_CONFIG:-$CONFIG}" "$@"',
    )


def _title(config: TunedConfig) -> str:
    """What the script runs, on one line: a line break in the model's name would end the comment and start a command."""
    threads, each = config.launch.threads, " each" if config.sockets > 1 else ""
    model = "".join(character if character.isprintable() else "?" for character in config.model)
    return f"{model} on {plural(config.sockets, 'socket')}: {plural(threads, 'thread')}{each}, bound by autotune."
