"""Who is compared: ours, and the other ways to train the same model on this machine, each with the environment it starts in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from autotune.config.interactions import CONCATENATION, DOT_WITH_DIAGONAL
from autotune.ranks.launch import GUARD, TUNABLES, put_into

if TYPE_CHECKING:
    from autotune.config.model import Model
    from autotune.config.tuned import Launch

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


_INTERACTIONS = ("dot", DOT_WITH_DIAGONAL, CONCATENATION)
"""Interactions of the peers' dense part, `models.TorchModel`."""


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
    dim_multiple: int = 1
    """Embedding dims it takes are multiples of this."""

    @property
    def missing(self) -> str | None:
        """Why it cannot run here; None where it can."""
        absent = [module for module in self.modules if find_spec(module) is None]
        return f"not installed: {', '.join(absent)}; {self.remedy}" if absent else None

    def unfit(self, model: Model) -> str | None:
        """Why it cannot train `model`; None where it can. That a model is in fp32 with SGD is checked before."""
        if model.interaction not in _INTERACTIONS:
            return f"it is built with interaction {', '.join(_INTERACTIONS)}, got {model.interaction}"
        if model.embedding_dim % self.dim_multiple == 0:
            return None
        return f"on a CPU it takes embedding dims that are multiples of {self.dim_multiple}, got {model.embedding_dim}"

    def unusable(self, model: Model) -> str | None:
        """Why it is not compared on `model` here; None where it is."""
        return self.missing or self.unfit(model)


# fbgemm-gpu-cpu 1.8.0 on a CPU: a mean over weighted look-ups has a backward that is wrong by the bag's length; weight decay, max_norm and
# stochastic rounding do nothing; bf16 tables are refused. A model here sums without weights and takes plain SGD, so that none of these is
# asked of it; whoever adds one must leave fbgemm, and torchrec on it, out of the comparison.
_FBGEMM_DIMS = 4
_PEERS_EXTRA = "pip install '.[peers]'"
PEERS = (
    Peer(BASELINE, "stock", best_environment=True),
    Peer("stock", "stock", best_environment=False),
    Peer("torch.compile", "compiled", best_environment=True),
    Peer("fbgemm", "fbgemm", best_environment=True, modules=("fbgemm_gpu",), remedy=_PEERS_EXTRA, dim_multiple=_FBGEMM_DIMS),
    Peer(
        "torchrec",
        "torchrec",
        best_environment=True,
        modules=("torchrec", "fbgemm_gpu", "tensordict", "torchmetrics"),
        remedy=f"{_PEERS_EXTRA}, then pip install --no-deps torchrec==1.8.0",
        dim_multiple=_FBGEMM_DIMS,
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
