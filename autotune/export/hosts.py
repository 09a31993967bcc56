"""What the launch scripts for several hosts share: the lines to edit, the check of the hosts, the meeting point, the environment.

Every script is bash, needs no file beside the config, and is the same text on every host.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from autotune.config.tuned import TunedConfig
from autotune.export.env import export_lines
from autotune.ranks.launch import environment

# A launcher bound by these would hand its one core on to the ranks, which each compute their own binding and start again with it.
BINDING = ("OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY")

# Of a rank, as torchrun sets them: they would count for more than those of another launcher.
_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_WITHOUT = (*BINDING, *_RANK)

# torch's usual port: any free one above 1023 does.
PORT = 29500


def header(config: TunedConfig) -> list[str]:
    """First line, and what the script runs."""
    threads = config.launch.threads
    each = " each" if config.sockets > 1 else ""
    return [
        "#!/usr/bin/env bash",
        f"# {comment(config.model)} on {config.sockets} socket{'s' if config.sockets > 1 else ''}: "
        f"{threads} thread{'s' if threads > 1 else ''}{each}, bound by autotune.",
    ]


def comment(text: str) -> str:
    """`text` on one line: a line break would end the comment and start a command."""
    return "".join(character if character.isprintable() else "?" for character in text)


def edit_hosts(config: TunedConfig) -> list[str]:
    """The lines that name the hosts: this one alone until they are edited."""
    return [
        "HOSTS=(localhost)  # edit: every host, the same order everywhere, such as (node-a node-b)",
        f"RANKS_PER_HOST={config.sockets}  # edit: sockets of a host; hosts x RANKS_PER_HOST must be {config.sockets}",
    ]


def edit_network() -> list[str]:
    """The lines that say where the ranks meet and what they talk over."""
    return [
        "RENDEZVOUS=''  # edit: address of the first host as the others reach it; empty: its name; one host: loopback",
        f"MASTER_PORT={PORT}  # edit: a port that is free on the first host and open to the others",
        "INTERFACE=''  # edit: GLOO_SOCKET_IFNAME, such as eth0, the same everywhere; empty: as set here, else by host name; one host: lo",
    ]


def edit_files(config: TunedConfig, config_file: str | Path) -> list[str]:
    """The lines that name model and config. ``AUTOTUNE_CONFIG`` overrides the latter."""
    return [
        f"MODEL={shlex.quote(config.model)}  # edit: a name that ships, or a file that lies there on every host",
        f"CONFIG={shlex.quote(str(Path(config_file).absolute()))}  # edit: the same file on every host",
    ]


def edit_python() -> list[str]:
    """The line that names the interpreter."""
    return ["PYTHON=python  # edit: the interpreter with autotune; an absolute path where hosts have no common PATH"]


def begin() -> list[str]:
    """Stop at the first error; ``refuse`` ends the script as autotune itself ends at wrong input."""
    return ["set -euo pipefail", "refuse() {", '  echo "error: $*" >&2', "  exit 2", "}"]


def check_hosts(sockets: int, where: str) -> list[str]:
    """Refuse hosts that do not make `sockets` ranks. Reads HOSTS, RANKS_PER_HOST; sets NODES, SOCKETS.

    Args:
        where: What the user edits, for the message.
    """
    return [
        f"SOCKETS={sockets}",
        "NODES=${#HOSTS[@]}",
        "if [[ ! $RANKS_PER_HOST =~ ^[1-9][0-9]{0,4}$ ]] || ((NODES * RANKS_PER_HOST != SOCKETS)); then",
        '  refuse "hosts x ranks per host must be the $SOCKETS sockets of the config," \\',
        f'    "got $NODES x $RANKS_PER_HOST ({where}); correct them, or tune for this number"',
        "fi",
    ]


def meet() -> list[str]:
    """Set MASTER_ADDR, MASTER_PORT and GLOO_SOCKET_IFNAME: over loopback where there is one host."""
    return [
        "if ((NODES == 1)); then",
        "  MASTER_ADDR=127.0.0.1",
        "  INTERFACE=lo",
        "else",
        '  MASTER_ADDR="${RENDEZVOUS:-${HOSTS[0]}}"',
        "fi",
        "export MASTER_ADDR MASTER_PORT",
        'if [[ -n $INTERFACE ]]; then export GLOO_SOCKET_IFNAME="$INTERFACE"; fi',
    ]


def rank_environment(config: TunedConfig) -> list[str]:
    """Every variable of the launch but the binding, and none of the binding or the ranks of whoever starts the script."""
    return [
        "# Each rank binds itself by its number on its host.",
        f"unset {' '.join(_WITHOUT)}",
        *export_lines(config.launch, without=_WITHOUT),
    ]


def forwarded(config: TunedConfig) -> list[str]:
    """Names of the variables that ranks on other hosts need and that are always set, sorted."""
    return sorted({*environment(config.launch), "MASTER_ADDR", "MASTER_PORT"} - {*_WITHOUT, "GLOO_SOCKET_IFNAME"})


RUN = '-m autotune run "$MODEL" --config "${AUTOTUNE_CONFIG:-$CONFIG}" "$@"'
"""Ends every script's last command: its further arguments go to `autotune run`."""


def text_of(*parts: list[str]) -> str:
    """The script: its parts with an empty line between."""
    return "\n\n".join("\n".join(part) for part in parts) + "\n"
