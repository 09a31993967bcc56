"""Which target runs, who decides it, and that the stub is the one of the module."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autotune import _kernels as kernels
from autotune import errors

LANES = {"reference": 1, "scalar": 1, "wide_avx2": 16, "avx2": 8, "avx512": 16, "avx512_bf16": 16}


def in_a_new_process(wanted: str | None, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "AUTOTUNE_TARGET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if wanted is not None:
        environment["AUTOTUNE_TARGET"] = wanted
    program = "from autotune import _kernels; print(_kernels.target())"
    command = [sys.executable, *(["-S"] if sys.flags.no_site else []), "-c", program]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("wanted", ["reference", "scalar"])
def test_the_environment_chooses(wanted: str, tmp_path: Path) -> None:
    result = in_a_new_process(wanted, tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, wanted), result.stderr


@pytest.mark.parametrize("wanted", [None, ""])
def test_cpuid_chooses_the_widest(wanted: str | None, tmp_path: Path) -> None:
    result = in_a_new_process(wanted, tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, kernels.targets()[-1]), result.stderr


def test_an_unknown_target_in_the_environment_is_one_clear_error(tmp_path: Path) -> None:
    result = in_a_new_process("avx1024", tmp_path)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: kernel target must be one that this CPU runs (reference, scalar")
    assert "got 'avx1024'" in last
    assert "AUTOTUNE_TARGET" in last


def test_every_target_can_be_set(target: str) -> None:
    assert kernels.target() == target
    assert kernels.lanes() == LANES[target]


def test_reference_comes_first_and_is_never_the_choice() -> None:
    names = kernels.targets()
    assert names[:2] == ["reference", "scalar"]
    assert len(set(names)) == len(names)
    assert "wide_avx2" not in names[-1:]


@pytest.mark.parametrize("name", ["", "AVX2", "sse9"])
def test_an_unknown_target_is_refused_and_the_old_one_stays(name: str) -> None:
    before = kernels.target()
    with pytest.raises(ValueError, match=re.escape(f"({', '.join(kernels.targets())}), got '{name}'")):
        kernels.set_target(name)
    assert kernels.target() == before


def test_the_stub_is_what_nanobind_writes_of_the_module() -> None:
    nanobind = pytest.importorskip("nanobind", reason="nanobind, of the extra dev, writes the stub")
    # Not beside the module, which lies elsewhere in an editable install.
    stub = (Path(errors.__file__).parent / "_kernels.pyi").read_text()
    written_by = re.match(r"# Written by kernels/stub.py with nanobind (\d+\.\d+)", stub)
    assert written_by
    if not nanobind.__version__.startswith(f"{written_by[1]}."):
        pytest.skip(f"the stub was written by nanobind {written_by[1]}, and {nanobind.__version__} is installed")
    script = Path(__file__).parents[2] / "kernels" / "stub.py"
    written = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert written == stub, "python kernels/stub.py >autotune/_kernels.pyi"
