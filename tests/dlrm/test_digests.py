"""Losses, weights and optimizer state are, bit for bit, those that `digests.json` was written from: the build before the step became a
schedule, but for the losses, which are sums in double precision since then. `python tests/dlrm/test_digests.py` writes the file anew, after
a change that is meant to round differently.

The processes use the instructions of AVX2 alone, so that machines with wider vectors add in the same order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

STORED = Path(__file__).with_name("digests.json")
TARGET = "avx2"


def torch_version() -> str:
    """Major and minor version, within which torch computes the same."""
    return ".".join(version("torch").split(".")[:2])


def compute(folder: Path) -> dict[str, Any]:
    """What `digests.json` holds, of this build: torch's version, and digests by case."""
    spec = find_spec("autotune")
    assert spec is not None
    assert spec.origin is not None
    environment = {
        **os.environ, "PYTHONPATH": str(Path(spec.origin).parents[1]), "AUTOTUNE_TARGET": TARGET, "ATEN_CPU_CAPABILITY": TARGET,
        "OMP_NUM_THREADS": "2", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    script = str(Path(__file__).with_name("digest_cases.py"))
    done = subprocess.run([sys.executable, script, str(folder)], env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    alone, ranks = (json.loads((folder / name).read_text()) for name in ("alone.json", "ranks.json"))
    return {"torch": torch_version(), "one rank": alone, "two ranks": ranks}


def test_every_way_to_train_computes_what_it_did(tmp_path: Path) -> None:
    from autotune import _kernels as kernels

    stored = json.loads(STORED.read_text())
    if TARGET not in kernels.targets():
        pytest.skip(f"the digests are of target {TARGET}, which is not here")
    if stored["torch"] != torch_version():
        pytest.skip(f"the digests are of torch {stored['torch']}, got {torch_version()}: it may add in another order")
    digests = compute(tmp_path)
    for ranks in ("one rank", "two ranks"):
        assert set(digests[ranks]) == set(stored[ranks])
        different = [key for key, digest in digests[ranks].items() if digest != stored[ranks][key]]
        assert not different, f"{ranks}: {len(different)} of {len(stored[ranks])} cases compute something else"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        STORED.write_text(json.dumps(compute(Path(folder)), indent=1) + "\n")
