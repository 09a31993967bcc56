"""Words and limits that files and options share: plain values, so that a help text waits for no validator."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

MAX_SEED = 2**42 - 1
"""Seeds of single tensors are derived from it and reach the kernels as signed 64-bit numbers."""

MAX_SEARCH_SEED = 2**31 - 1
"""The sampler takes 32 bits, and the trials done are added."""

MAX_RANKS = 65536

Dtype = Literal["fp32", "bf16"]
Optimizer = Literal["sgd", "adagrad"]
TableStorage = Literal["split", "stochastic"]
DTYPES: tuple[Dtype, ...] = ("fp32", "bf16")
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "adagrad")
TABLE_STORAGES: tuple[TableStorage, ...] = ("split", "stochastic")
Categories = Literal["hashed", "modulo", "dictionary", "rows"]

CRITEO_TABLES = 26
PREPARED_FILE = re.compile(r"(.*_)(dense|sparse|labels)\.npy")
"""One of three arrays that lie side by side."""
DICTIONARY_FILE = re.compile(r"(.*_fea_dict_)[0-9]+\.npz")
"""One of 26, as the public DLRM names them."""

Kind = Literal["table_wise", "row_wise", "column_wise", "replicated"]
KINDS: tuple[Kind, ...] = ("table_wise", "row_wise", "column_wise", "replicated")
AllToAllForm = Literal["scatter_list", "fused_scatter", "native"]
ALL_TO_ALL_FORMS: tuple[AllToAllForm, ...] = ("scatter_list", "fused_scatter", "native")


OPENMP_BINDING = ("OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Variables by which an OpenMP library binds the process that loads it."""


@dataclass(frozen=True)
class Changes:
    """What a run changes about a model; None leaves it."""

    max_rows: int | None = None
    """Rows of every table, at most."""
    minibatch: int | None = None
    dtype: str | None = None
    """One of `DTYPES`."""
    optimizer: str | None = None
    """One of `OPTIMIZERS`."""
    table_storage: str | None = None
    """One of `TABLE_STORAGES`."""


UNCHANGED = Changes()
