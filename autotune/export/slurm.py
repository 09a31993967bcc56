"""A batch script that starts a tuned run under Slurm: ``sbatch small.sbatch``."""

from __future__ import annotations

from pathlib import Path

from autotune.config.tuned import TunedConfig
from autotune.export import hosts


def to_slurm(config: TunedConfig, config_file: str | Path) -> str:
    """The script: whole nodes, one task a socket; further arguments of ``sbatch`` go to `autotune run`.

    A task gets no ``--cpus-per-task`` from ``srun``, which would confine the step to that many CPUs (``--exact``), taken anywhere on the
    node: it sees the whole node, and autotune takes the cores of its socket.

    Args:
        config_file: Where the config lies; the script names it by its absolute path, and ``AUTOTUNE_CONFIG`` overrides that.

    Source: sbatch(1); srun(1), ``--exact``, implied by ``--cpus-per-task`` since Slurm 21.08.
    """
    return hosts.text_of(
        [
            *hosts.header(config),
            "# Start it with sbatch; the lines marked 'edit' are the cluster's.",
            "#SBATCH --job-name=autotune",
            "#SBATCH --exclusive",
            "#SBATCH --mem=0",
            f"# edit: the nodes, and the sockets of a node; their product must be {config.sockets}",
            "#SBATCH --nodes=1",
            f"#SBATCH --ntasks-per-node={config.sockets}",
            "# edit: CPUs of a socket as Slurm counts them, at least this; the job has the whole nodes in any case",
            f"#SBATCH --cpus-per-task={_cores(config)}",
            "# edit: add what the cluster asks for, such as --partition, --account, --time",
        ],
        [
            *hosts.edit_network(),
            *hosts.edit_files(config, config_file),
            *hosts.edit_python(),
        ],
        hosts.begin(),
        [
            "if [[ -z ${SLURM_JOB_NODELIST-} ]]; then",
            '  refuse "this script must run in a Slurm job, got no SLURM_JOB_NODELIST; start it with sbatch"',
            "fi",
            'names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
            'mapfile -t HOSTS <<<"$names"',
            'RANKS_PER_HOST="${SLURM_NTASKS_PER_NODE-nothing}"',
            *hosts.check_hosts(config.sockets, "--nodes, --ntasks-per-node"),
        ],
        hosts.rank_environment(config),
        hosts.meet(),
        [
            "# --mpi=none: PMI's variables would count for more than Slurm's, and do not tell the rank on this host.",
            'exec srun --nodes="$NODES" --ntasks="$SOCKETS" --ntasks-per-node="$RANKS_PER_HOST" \\',
            "  --cpu-bind=none --mpi=none --kill-on-bad-exit=1 --export=ALL \\",
            f'  "$PYTHON" {hosts.RUN}',
        ],
    )


def _cores(config: TunedConfig) -> int:
    """What a rank computes and talks on."""
    communication = config.config.communication
    return config.launch.threads + (communication.communication_cores if communication else 0)
