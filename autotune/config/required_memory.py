"""Memory that a model takes, counted before anything is allocated."""

from __future__ import annotations

import math
from itertools import pairwise

from autotune.config.model import FLOAT_BYTES, Model

_RACE_INPUTS_BYTES = 128 << 20
"""Inputs that rotate through four times a last-level cache of 32 MiB; larger caches take more, of machines with more memory."""


def race_memory_bytes(model: Model, samples: int) -> int:
    """Memory that timing passes alone takes beside the model, at most: for the largest layer a copy of its weights, panels of another width
    and what a check compares; two sets of activations of `samples` samples; and what passes the caches."""
    layers = [*pairwise(model.bottom_mlp), *pairwise(model.top_sizes)]
    return max(3 * FLOAT_BYTES * c * k + 3 * FLOAT_BYTES * samples * (c + k) for c, k in layers) + _RACE_INPUTS_BYTES


def required_memory_bytes(model: Model, ranks: int = 1, on_host: int | None = None) -> int:
    """Memory to train `model`: tables, dense layers and activations; every array is counted in whole pages of 2 MiB,
    though one below 256 KiB takes small pages.

    A layer has six arrays (weight, bias, their gradients, two packed copies) and two activations. Tables and samples are parted among
    ranks; every rank has all dense layers.

    Args:
        ranks: That train it.
        on_host: How many of them share the memory asked for; None: all. Replicated tables come on top.
    """
    page_bytes = 2 * 1024**2
    on_host = ranks if on_host is None else on_host
    tables = sum(math.ceil(model.stored_bytes(table) / page_bytes) * page_bytes for table in model.tables)
    if model.dtype == "bf16" and model.table_storage == "split":  # two arrays a table, one of which begins some cache lines into its pages
        tables += 2 * page_bytes * model.num_tables
    if model.state_bytes:
        tables += model.state_bytes + page_bytes * model.num_tables
    layers = len(model.bottom_mlp) + len(model.top_mlp)
    return (tables + model.activation_bytes) * on_host // ranks + on_host * (model.dense_bytes + 8 * layers * page_bytes)
