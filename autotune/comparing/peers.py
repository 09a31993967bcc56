"""Who is compared: ours, and the other ways to train the same model on this machine, each with the environment it starts in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
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

OWN = "ours"
"""Kind of the contestants that are built by `dlrm.model`."""
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
    """What a worker builds: `OWN`, or one of `models.BUILDERS`."""
    best_environment: bool
    modules: tuple[str, ...] = ()
    """Packages it needs."""
    remedy: str = ""
    """How to get them; ``{release}`` stands for fbgemm's release that loads with the installed torch."""
    fbgemm: bool = False
    """Whether its tables are fbgemm's."""

    @property
    def missing(self) -> str | None:
        """Why it cannot run here; None where it can."""
        if not self.modules:
            return None
        torch = version("torch")
        release = f"1.{int(torch.split('.')[1]) - _FBGEMM_BEHIND}."
        remedy = self.remedy.format(release=f"{release}*")
        if absent := [module for module in self.modules if find_spec(module) is None]:
            return f"not installed: {', '.join(absent)}; {remedy}"
        try:
            found = version("fbgemm-gpu-cpu") if self.fbgemm else release
        except PackageNotFoundError:  # another build of it: whether it loads is seen when it starts
            return None
        return None if found.startswith(release) else f"fbgemm-gpu-cpu {found} does not load with torch {torch}; {remedy}"

    def unfit(self, model: Model) -> str | None:
        """Why it cannot train `model`; None where it can. That a model has SGD is checked before."""
        if self.kind == OWN:
            return "the model itself is in fp32" if model.dtype == "fp32" else None
        if model.interaction not in _INTERACTIONS:
            return f"it is built with interaction {', '.join(_INTERACTIONS)}, got {model.interaction}"
        if self.fbgemm and model.dtype != "fp32":
            return f"on a CPU its tables are in fp32 alone, got {model.dtype}"
        if self.fbgemm and model.embedding_dim % _FBGEMM_DIMS:
            return f"on a CPU it takes embedding dims that are multiples of {_FBGEMM_DIMS}, got {model.embedding_dim}"
        return None

    def unusable(self, model: Model) -> str | None:
        """Why it is not compared on `model` here; None where it is."""
        return self.unfit(model) or self.missing


# fbgemm-gpu-cpu 1.8.0 on a CPU: a mean over weighted look-ups has a backward that is wrong by the bag's length; weight decay, max_norm and
# stochastic rounding do nothing; bf16 tables are refused, by 1.9.0 too. A model here sums without weights and takes plain SGD, so that of
# these only bf16 is asked of it; whoever adds one must leave fbgemm, and torchrec on it, out of the comparison.
_FBGEMM_DIMS = 4
# Its library loads with one minor version of torch alone: 1.1 with 2.6 and so on, 1.8 with 2.13, 1.9 with 2.14. Its packages ask for none.
_FBGEMM_BEHIND = 5
_FBGEMM = "pip install 'fbgemm-gpu-cpu=={release}'"
PEERS = (
    Peer(BASELINE, "stock", best_environment=True),
    Peer("stock", "stock", best_environment=False),
    Peer("torch.compile", "compiled", best_environment=True),
    Peer("fbgemm", "fbgemm", best_environment=True, modules=("fbgemm_gpu",), remedy=_FBGEMM, fbgemm=True),
    Peer(
        "torchrec",
        "torchrec",
        best_environment=True,
        modules=("torchrec", "fbgemm_gpu", "tensordict", "torchmetrics"),
        remedy=f"{_FBGEMM} tensordict torchmetrics==1.0.3 pyre-extensions tqdm, then pip install --no-deps 'torchrec=={{release}}'",
        fbgemm=True,
    ),
)
DEFAULT = Peer(OURS, OWN, best_environment=True)
"""Ours, beside which all others run."""
DEFAULT_IN_FP32 = Peer(f"{OURS}-fp32", OWN, best_environment=True)
"""Our default on a bf16 model in fp32: what bf16 gains, from the same rounds."""


def peers_of(model: Model) -> tuple[Peer, ...]:
    """Who runs beside ours where nobody is named."""
    return PEERS if model.dtype == "fp32" else (*PEERS, DEFAULT_IN_FP32)


def environment_of(peer: Peer, launch: Launch, threads: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment a worker starts in.

    Args:
        peer: ours starts as every command of ours does.
        launch: Of our default.
        threads: Of every contestant.
        environ: Of this process. What it says of threads, places and allocation is not passed on.
    """
    owned = ("OMP_", "GOMP_", "KMP_", "MALLOC_", GUARD)
    kept = {name: value for name, value in environ.items() if not name.startswith(owned)}
    # Other settings stay: without some of them torch may not even load.
    settings = [setting for setting in kept.pop(TUNABLES, "").split(":") if setting and not setting.startswith("glibc.malloc.")]
    kept |= {TUNABLES: ":".join(settings)} if settings else {}
    if peer.kind == OWN:
        return put_into(kept, launch.environment)
    if not peer.best_environment:
        return kept
    return put_into(kept, {"OMP_NUM_THREADS": str(threads)} | _KEEPS_MEMORY)
