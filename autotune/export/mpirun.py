"""A bash script that starts a tuned run under Open MPI's mpirun; a comment has the line for MPICH."""

from __future__ import annotations

from pathlib import Path

from autotune.config.tuned import TunedConfig
from autotune.export import hosts


def to_mpirun(config: TunedConfig, config_file: str | Path) -> str:
    """The script, started on one host: one process a socket on every host; further arguments go to `autotune run`.

    mpirun only starts the ranks, which meet at MASTER_ADDR and talk over gloo: no MPI library is needed in Python.

    Args:
        config_file: Where the config lies; the script names it by its absolute path, and ``AUTOTUNE_CONFIG`` overrides that.

    Source: mpirun(1) of Open MPI; tried on one host with Open MPI 5.0 and MPICH 5.0 (Hydra).
    """
    names = hosts.forwarded(config)
    return hosts.text_of(
        [
            *hosts.header(config),
            "# Start it on the first host, from which mpirun reaches the others; the lines marked 'edit' are the cluster's.",
        ],
        [
            *hosts.edit_hosts(config),
            *hosts.edit_network(),
            *hosts.edit_files(config, config_file),
            *hosts.edit_python(),
        ],
        hosts.begin(),
        hosts.check_hosts(config.sockets, "HOSTS, RANKS_PER_HOST"),
        hosts.rank_environment(config),
        hosts.meet(),
        [
            "# Other hosts have another PATH: name the interpreter as this one finds it.",
            'PYTHON=$(type -P "$PYTHON" || printf %s "$PYTHON")',
            f"names=({' '.join(names)})",
            "if [[ -n ${GLOO_SOCKET_IFNAME-} ]]; then names+=(GLOO_SOCKET_IFNAME); fi",
            "slots=()",
            'for host in "${HOSTS[@]}"; do slots+=("$host:$RANKS_PER_HOST"); done',
            "forward=()",
            'for name in "${names[@]}"; do forward+=(-x "$name"); done',
        ],
        [
            "# MPICH: put these lines in place of the last command. Intel MPI: the same, but -genv I_MPI_PIN 0 for -bind-to none.",
            "#   forward=()",
            '#   for name in "${names[@]}"; do forward+=(-genv "$name" "${!name}"); done',
            '#   exec mpiexec -n "$SOCKETS" -ppn "$RANKS_PER_HOST" -hosts "$(IFS=,; echo "${HOSTS[*]}")" -bind-to none "${forward[@]}" \\',
            f'#     "$PYTHON" {hosts.RUN}',
            'exec mpirun -np "$SOCKETS" --host "$(IFS=,; echo "${slots[*]}")" --map-by slot --bind-to none "${forward[@]}" \\',
            f'  "$PYTHON" {hosts.RUN}',
        ],
    )
