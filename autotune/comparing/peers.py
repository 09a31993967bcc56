"""Who is compared: ours, and the other ways to train the same model on this machine, each with the environment it starts in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from autotune.config.tuned import Launch
from autotune.ranks.launch import GUARD, TUNABLES, put_into

# An allocator that keeps its memory, in huge pages: without it, stock PyTorch loses 13-80 % of an iteration to page faults.
_KEEPS_MEMORY = {
    TUNABLES: "glibc.malloc.hugetlb=1",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_MMAP_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}

OURS = "default"
TUNED = "tuned"
BASELINE = "stock-best"
"""What ratios are quoted against: stock PyTorch with every setting of its environment that helps it."""


@dataclass(frozen=True)
class Peer:
    """Another way to train the model."""

    name: str
    kind: str
    """What a worker builds; see `models.BUILDERS`."""
    best_environment: bool
    modules: tuple[str, ...] = ()
    """Packages it needs."""
    remedy: str = ""
    """How to get them."""

    @property
    def missing(self) -> str | None:
        """Why it cannot run here; None where it can."""
        absent = [module for module in self.modules if find_spec(module) is None]
        return f"not installed: {', '.join(absent)}; {self.remedy}" if absent else None


_PEERS_EXTRA = "pip install '.[peers]'"
PEERS = (
    Peer(BASELINE, "stock", best_environment=True),
    Peer("stock", "stock", best_environment=False),
    Peer("torch.compile", "compiled", best_environment=True),
    Peer("fbgemm", "fbgemm", best_environment=True, modules=("fbgemm_gpu",), remedy=_PEERS_EXTRA),
    Peer(
        "torchrec",
        "torchrec",
        best_environment=True,
        modules=("torchrec", "fbgemm_gpu", "tensordict", "torchmetrics"),
        remedy=f"{_PEERS_EXTRA}, then pip install --no-deps torchrec==1.8.0",
    ),
)


def environment_of(peer: Peer | None, launch: Launch, threads: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment a worker starts in.

    Args:
        peer: None for ours, which starts as every command of ours does.
        launch: Of our default.
        threads: Of every contestant.
        environ: Of this process. What it says of threads, places and allocation is not passed on.
    """
    owned = ("OMP_", "GOMP_", "KMP_", "MALLOC_", GUARD)
    kept = {name: value for name, value in environ.items() if not name.startswith(owned)}
    # Other settings stay: without some of them torch may not even load.
    settings = [setting for setting in kept.pop(TUNABLES, "").split(":") if setting and not setting.startswith("glibc.malloc.")]
    kept |= {TUNABLES: ":".join(settings)} if settings else {}
    if peer is None:
        return put_into(kept, launch.environment)
    if not peer.best_environment:
        return kept
    return put_into(kept, {"OMP_NUM_THREADS": str(threads)} | _KEEPS_MEMORY)
