"""Real launchers on this host, as `.ci/launchers` installs and starts them: two ranks, each on a core of its own.

One test a launcher, since every start takes seconds; what depends on the environment alone is in tests/ranks and tests/exporting.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import autotune
from autotune import catalog
from autotune.config.files import write_tuned
from autotune.config.knobs import RunConfig
from autotune.config.partition import CommunicationKnobs
from autotune.config.tuned import TunedConfig
from autotune.exporting.targets import export
from autotune.machine.topology import detect, fingerprint
from autotune.ops.native import kernels
from autotune.planning.planner import Planner
from autotune.ranks.binding import core_sets, topology_of
from autotune.ranks.launch import launch_of

_TIMEOUT_S = 120
RUN = ("-m", "autotune", "run", "tiny", "--steps", "2", "--json")
_OTHERS = ("OMP_", "GOMP_", "MALLOC_", "AUTOTUNE_", "MASTER_", "GLOO_", "SLURM_", "OMPI_", "PMI", "RANK", "WORLD_SIZE", "LOCAL_")

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks need two cores")


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """What a user's shell gives a command."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    root_may = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    values = {"PYTHONPATH": str(Path(autotune.__file__).parents[1]), "AUTOTUNE_CACHE": str(tmp_path / "cache"), "PATH": path}
    return kept | values | root_may


@pytest.fixture
def two_sockets(tuned_config: TunedConfig, tmp_path: Path) -> tuple[TunedConfig, Path]:
    """A config of `tiny` for two sockets of this machine, and its file."""
    model, topology = catalog.load_model_by_name("tiny"), detect()
    partition = Planner(model, 2, None, ranks_on_host=2, threads=1).partition()
    config = RunConfig(threads=1, partition=partition, communication=CommunicationKnobs())
    values = {
        "model": "tiny", "model_hash": model.hash(), "minibatch": model.minibatch, "sockets": 2, "config": config, "record": None,
        "launch": launch_of(config, topology_of(topology, core_sets(topology, 2)[0])),
        "fingerprint": fingerprint(topology, kernels.target()),
    }  # fmt: skip
    tuned, file = tuned_config.model_copy(update=values), tmp_path / "tiny.tuned.yaml"
    write_tuned(file, tuned)
    return tuned, file


def needed(name: str) -> str:
    """The path of a launcher; skips without it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is needed; .ci/launchers installs it where it may")
    return found


def start(shell: dict[str, str], *line: str | Path) -> str:
    """Standard output of a command that succeeds."""
    folder = Path(shell["AUTOTUNE_CACHE"]).parent
    done = subprocess.run(line, env=shell, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(output: str, bound_by: str) -> None:
    """Two ranks have trained, each with a core of its own."""
    notes = json.loads(output[output.index("{") :])["notes"]
    cpus = [core[0] for core in detect().core_cpus][:2]
    assert any(note.startswith("2 ranks") for note in notes), notes
    assert f"cores of rank 0: {cpus[0]}, rank 1: {cpus[1]}; bound by {bound_by}" in notes


def test_torchrun_goes_together_with_the_binding_of_a_shell(shell: dict[str, str]) -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    bound = {"OMP_NUM_THREADS": "1", "OMP_PLACES": f"{{{first}}},{{{second}}}", "OMP_PROC_BIND": "true", "GLOO_SOCKET_IFNAME": "lo"}
    line = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    check(start(shell | bound, *line, *RUN), "autotune")


def test_ranks_keep_the_cores_that_open_mpi_gives_them(shell: dict[str, str]) -> None:
    check(start(shell, needed("mpirun.openmpi"), "-np", "2", sys.executable, *RUN, "--sockets", "2"), "Open MPI")


def test_the_mpirun_script_runs_under_mpich(shell: dict[str, str], two_sockets: tuple[TunedConfig, Path], tmp_path: Path) -> None:
    config, file = two_sockets
    script = tmp_path / "start.sh"
    script.write_text(export(config, "mpirun", file).replace("MPIRUN=mpirun ", f"MPIRUN={needed('mpirun.mpich')} "))
    check(start(shell, "bash", script, "--steps", "2", "--json"), "autotune")


def test_slurm_runs_the_script_and_ranks_that_it_binds(
    shell: dict[str, str], two_sockets: tuple[TunedConfig, Path], tmp_path: Path
) -> None:
    state = subprocess.run([needed("sinfo"), "--noheader", "--format=%t"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if state.stdout.strip() not in ("idle", "mix", "alloc"):
        pytest.skip(f"a Slurm that answers is needed, got {(state.stdout + state.stderr).strip()!r}; .ci/launchers starts one where it may")
    config, file = two_sockets
    script, output = tmp_path / "start.sh", tmp_path / "output"
    script.write_text(export(config, "slurm", file))
    job = start(shell, "sbatch", "--parsable", f"--output={output}", script, "--steps", "2", "--json").strip()
    # Not --wait, which looks every ten seconds.
    deadline_s = time.monotonic() + _TIMEOUT_S
    while start(shell, "squeue", "--noheader", f"--jobs={job}", "--states=PENDING,RUNNING") and time.monotonic() < deadline_s:
        time.sleep(0.2)
    check(output.read_text(), "autotune")
    check(start(shell, "srun", "-n", "2", sys.executable, *RUN), "Slurm")
