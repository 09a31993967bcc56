"""A rank learns its number from any launcher: environments as launchers were seen to set them, whatever else was in them left out."""

from __future__ import annotations

import pytest

from autotune.errors import InputError
from autotune.ranks.environment import Ranks, from_environment

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
MEETING = {"MASTER_ADDR": "node-a", "MASTER_PORT": "29500"}
POD = {"RANK": "1", "WORLD_SIZE": "4", **MEETING}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "1",
}  # fmt: skip
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SRUN = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
SALLOC = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "interactive", "SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1",
}  # fmt: skip
SBATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "4(x2)"}
PTY = {**SRUN, "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_PTY_PORT": "41000"}
UNEVEN = {**SRUN, "SLURM_NTASKS": "5", "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}
HYDRA_BY_SRUN = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", **MPICH}


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        pytest.param({}, None, id="no launcher"),
        pytest.param(TORCH, Ranks(3, 4, 1, 2, "torchrun"), id="torchrun"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "1"}, None, id="a world of one"),
        pytest.param({**TORCH, **SRUN, "SLURM_STEP_NUM_TASKS": "2"}, Ranks(3, 4, 1, 2, "torchrun"), id="torchrun started by srun"),
        pytest.param({**TORCH, "PMIX_RANK": "0"}, Ranks(3, 4, 1, 2, "torchrun"), id="torchrun in a step of PMIx"),
        pytest.param({**POD, "PET_NPROC_PER_NODE": "1"}, Ranks(1, 4, 0, 1, "torchrun"), id="PyTorchJob"),
        pytest.param({**POD, "PET_NPROC_PER_NODE": "auto"}, Ranks(1, 4, 0, 1, "torchrun"), id="PyTorchJob, auto"),
        pytest.param(POD, Ranks(1, 4, 0, 1, "torchrun"), id="PyTorchJob without PET"),
        pytest.param({**POD, "MASTER_ADDR": "127.0.0.1"}, Ranks(1, 4, 1, 4, "torchrun"), id="by hand on one host"),
        pytest.param({**POD, **OPEN_MPI}, Ranks(1, 4, 0, 2, "Open MPI"), id="a wrapper that hands on Open MPI's numbers"),
        pytest.param({**TORCH, **MPICH}, Ranks(3, 4, 1, 2, "MPICH"), id="a wrapper that hands on all of MPICH's numbers"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "1", **OPEN_MPI}, Ranks(1, 4, 0, 2, "Open MPI"), id="Open MPI in a pod of one"),
        pytest.param(OPEN_MPI, Ranks(1, 4, 0, 2, "Open MPI"), id="Open MPI"),
        pytest.param({**SRUN, "SLURM_PROCID": "0", **OPEN_MPI}, Ranks(1, 4, 0, 2, "Open MPI"), id="Open MPI's daemon started by srun"),
        pytest.param({**SALLOC, **OPEN_MPI}, Ranks(1, 4, 0, 2, "Open MPI"), id="Open MPI in a shell of salloc"),
        pytest.param({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, None, id="mpirun -np 1"),
        pytest.param(MPICH, Ranks(3, 4, 1, 2, "MPICH"), id="MPICH"),
        pytest.param(HYDRA_BY_SRUN, Ranks(3, 4, 1, 2, "MPICH"), id="Hydra's proxy started by srun"),
        pytest.param({"PMI_RANK": "0", "PMI_SIZE": "2"}, Ranks(0, 2, 0, 2, "MPICH"), id="PMI alone"),
        pytest.param(SRUN, Ranks(2, 4, 0, 2, "Slurm"), id="srun -N2 -n4"),
        pytest.param({**UNEVEN, "SLURM_PROCID": "4", "SLURM_NODEID": "2"}, Ranks(4, 5, 0, 1, "Slurm"), id="srun -N3 -n5, last node"),
        pytest.param({**UNEVEN, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}, Ranks(3, 5, 1, 2, "Slurm"), id="cyclic"),
        pytest.param({**SRUN, "PMI_RANK": "2", "PMI_SIZE": "4"}, Ranks(2, 4, 0, 2, "Slurm"), id="srun --mpi=pmi2"),
        pytest.param({**SRUN, "PMIX_RANK": "2"}, Ranks(2, 4, 0, 2, "Slurm"), id="srun --mpi=pmix"),
        pytest.param({**SRUN, "SLURM_NTASKS": "8"}, Ranks(2, 4, 0, 2, "Slurm"), id="a step smaller than its job"),
        pytest.param(
            {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "4"},
            Ranks(5, 8, 1, 4, "Slurm"),
            id="srun that lists no tasks by node",
        ),
        pytest.param(SALLOC, None, id="a shell of salloc"),
        pytest.param(SBATCH, None, id="a batch script"),
        pytest.param({**SALLOC, "SLURM_STEP_ID": "4294967291"}, None, id="the step of a batch script"),
        pytest.param(PTY, None, id="a shell of srun --pty"),
        pytest.param({**PTY, "PMI_RANK": "0", "PMI_SIZE": "4"}, None, id="a shell of srun --pty --mpi=pmi2"),
        pytest.param({**PTY, **MEETING}, Ranks(0, 4, 0, 2, "Slurm"), id="srun from a shell of srun --pty"),
        pytest.param({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None, id="srun -n1"),
    ],
)
def test_the_launchers_numbers(environ: dict[str, str], wanted: Ranks | None) -> None:
    assert from_environment(environ, has_terminal=lambda: False) == wanted


def test_a_shell_with_a_terminal_is_one_process_also_where_ranks_would_meet() -> None:
    assert from_environment({**PTY, **MEETING}, has_terminal=lambda: True) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "a launcher's RANK must be a number, 0 to 1, got 'x'"),
        ({"RANK": "1" * 5000, "WORLD_SIZE": "2"}, "a launcher's RANK must be a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "a launcher's RANK must be a number"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "a launcher's WORLD_SIZE must be a number"),
        ({**TORCH, "LOCAL_RANK": "2"}, "LOCAL_RANK must be a number, 0 to 1, got '2'"),
        ({**TORCH, "LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE must be a number, 1 to 4, got '5'"),
        ({**POD, "LOCAL_RANK": "0"}, "must tell LOCAL_RANK and LOCAL_WORLD_SIZE, got LOCAL_RANK='0' alone; set LOCAL_WORLD_SIZE too"),
        ({**POD, "PET_NPROC_PER_NODE": "2"}, "must start them with torchrun, got PET_NPROC_PER_NODE='2'"),
        (POD | OPEN_MPI | {"RANK": "0"}, "got RANK='0' and WORLD_SIZE='4' and OMPI_COMM_WORLD_RANK='1' and OMPI_COMM_WORLD_SIZE='4'"),
        ({**SRUN, "SLURM_PROCID": "4"}, "SLURM_PROCID must be a number, 0 to 3, got '4'"),
        ({**SRUN, "SLURM_LOCALID": "2"}, "SLURM_LOCALID must be a number, 0 to 1, got '2'"),
        ({**SRUN, "SLURM_NODEID": "2"}, "SLURM_NODEID must be a number, 0 to 1, got '2'"),
        ({**UNEVEN, "SLURM_NODEID": ""}, "SLURM_NODEID must be a number, 0 to 2, got ''"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, r"got SLURM_STEP_TASKS_PER_NODE='2\(x3\)' and SLURM_STEP_NUM_TASKS='4'"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x99999999999)"}, "and SLURM_STEP_NUM_TASKS='4'"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2" * 5000}, r"must look like 2\(x3\),1"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "two"}, r"must look like 2\(x3\),1"),
        ({**SRUN, "SLURM_STEP_ID": "x"}, "SLURM_STEP_ID must be a number"),
        ({**SRUN, "PMI_RANK": "1", "PMI_SIZE": "4"}, "got SLURM_PROCID='2' and SLURM_STEP_NUM_TASKS='4' and PMI_RANK='1'"),
        ({**SRUN, "PMIX_RANK": "0"}, "and PMIX_RANK='0'"),
        ({"PMIX_RANK": "0"}, "must tell the number of ranks, got PMIX_RANK='0' alone"),
    ],
)
def test_a_wrong_or_contradicting_value_is_refused_by_name(environ: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_environment(environ, has_terminal=lambda: False)


@pytest.mark.parametrize(
    ("environ", "note"),
    [
        (POD, "nobody tells how many ranks share this host (no LOCAL_RANK and LOCAL_WORLD_SIZE): this one is taken to be alone here"),
        (
            {"PMI_RANK": "0", "PMI_SIZE": "2"},
            "MPICH does not tell how many ranks share this host (no MPI_LOCALNRANKS): all 2 are taken to be here",
        ),
        ({**POD, "PET_NPROC_PER_NODE": "1"}, ""),
        ({**POD, "MASTER_ADDR": "localhost"}, ""),
        (SRUN, ""),
    ],
)
def test_what_cannot_be_told_is_said(environ: dict[str, str], note: str) -> None:
    ranks = from_environment(environ, has_terminal=lambda: False)
    assert ranks is not None
    assert ranks.note == note
