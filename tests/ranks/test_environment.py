"""A rank learns its number from any launcher."""

from __future__ import annotations

import pytest

from autotune.errors import InputError
from autotune.ranks.environment import Ranks, from_environment


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Ranks(3, 4, 1, 2, "torchrun")),
        (
            {f"OMPI_COMM_WORLD_{name}": value for name, value in (("RANK", "1"), ("SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_SIZE", "1"))},
            Ranks(1, 2, 0, 1, "Open MPI"),
        ),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, Ranks(0, 2, 0, 2, "MPICH")),
        (
            {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "4", "SLURM_STEP_ID": "0"},
            Ranks(5, 8, 1, 4, "Slurm"),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({}, None),
    ],
)
def test_the_launchers_numbers(environ: dict[str, str], wanted: Ranks | None) -> None:
    assert from_environment(environ) == wanted


@pytest.mark.parametrize("environ", [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "0"}])
def test_a_bad_number_is_refused_by_name(environ: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"a launcher's (RANK|WORLD_SIZE) must be a number"):
        from_environment(environ)
