"""A bash script that starts a tuned run under torchrun: one host at once, or the same script on every host."""

from __future__ import annotations

import shlex
from pathlib import Path

from autotune.config.tuned import TunedConfig
from autotune.export import hosts
from autotune.export.env import export_lines


def to_torchrun(config: TunedConfig, config_file: str | Path) -> str:
    """The script: environment but for the binding, then one process a socket; further arguments go to `autotune run`.

    On several hosts it is started on each, and finds its NODE_RANK as the place of this host in HOSTS; NODE_RANK in the environment
    overrides that.

    Args:
        config_file: Where the config lies; the script names it by its absolute path, and ``AUTOTUNE_CONFIG`` overrides that.
    """
    if config.sockets == 1:
        return _one_process(config, config_file)
    return hosts.text_of(
        [
            *hosts.header(config),
            "# Start it on every host, within ten minutes; the lines marked 'edit' are the cluster's.",
        ],
        [
            *hosts.edit_hosts(config),
            *hosts.edit_network(),
            *hosts.edit_files(config, config_file),
        ],
        hosts.begin(),
        hosts.check_hosts(config.sockets, "HOSTS, RANKS_PER_HOST"),
        _find_node_rank(),
        hosts.rank_environment(config),
        [
            "# torch opens MASTER_PORT on every interface, whatever MASTER_ADDR says: keep a firewall before it. On one host",
            f"# `autotune run --sockets {config.sockets}` does the same and opens no port but on loopback.",
            *hosts.meet(),
        ],
        [
            'exec torchrun --nnodes="$NODES" --node-rank="$NODE_RANK" --nproc-per-node="$RANKS_PER_HOST" \\',
            '  --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" \\',
            f"  {hosts.RUN}",
        ],
    )


def _one_process(config: TunedConfig, config_file: str | Path) -> str:
    """One socket joins nobody: no host to name, no port to choose."""
    file = shlex.quote(str(Path(config_file).absolute()))
    return hosts.text_of(
        [*hosts.header(config), "set -euo pipefail"],
        export_lines(config.launch, without=hosts.BINDING),
        [
            f"default_config={file}",
            'config="${AUTOTUNE_CONFIG:-$default_config}"',
            "exec torchrun --standalone --nproc-per-node=1 \\",
            f'  -m autotune run {shlex.quote(config.model)} --config "$config" "$@"',
        ],
    )


def _find_node_rank() -> list[str]:
    """Set NODE_RANK: 0 on one host, else the place of this host's full name, short name or an address of it, which must be found once."""
    return [
        "if [[ -z ${NODE_RANK-} ]] && ((NODES == 1)); then NODE_RANK=0; fi",
        "if [[ -z ${NODE_RANK-} ]]; then",
        "  name=$(uname -n)",
        '  names=" $name ${name%%.*} $(hostname -I 2>/dev/null || true) "',
        "  found=()",
        '  for i in "${!HOSTS[@]}"; do',
        '    if [[ $names == *" ${HOSTS[i]} "* || ${HOSTS[i]} == "$name".* ]]; then found+=("$i"); fi',
        "  done",
        "  if ((${#found[@]} != 1)); then",
        '    refuse "HOSTS must have this host once, got $name ${#found[@]} times in ${HOSTS[*]};" \\',
        '      "correct HOSTS, or set NODE_RANK to its place, counted from 0"',
        "  fi",
        "  NODE_RANK=${found[0]}",
        "fi",
        "if [[ ! $NODE_RANK =~ ^(0|[1-9][0-9]{0,4})$ ]] || ((NODE_RANK >= NODES)); then",
        '  refuse "NODE_RANK must be 0 to $((NODES - 1)), got $NODE_RANK; correct it or HOSTS"',
        "fi",
    ]
