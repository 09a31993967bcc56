"""The compiled kernels, behind the one import order that works, and memory for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch  # before the kernels: both must share the OpenMP library that torch carries

from autotune import _kernels as kernels
from autotune.errors import MachineError

__all__ = ["empty_rows", "kernels", "leading_dimension", "target", "zeros"]

_FLOATS_PER_LINE = 16


def zeros(*shape: int, huge_pages: bool = True, threads: int = 1) -> torch.Tensor:
    """fp32 zeros on pages of their own, aligned to 2 MiB, placed by first touch of `threads` threads.

    Raises:
        MachineError: the memory cannot be had.
    """
    count = math.prod(shape)
    try:
        flat = torch.from_numpy(kernels.allocate(count, huge_pages))
    except MemoryError as error:
        raise MachineError(f"{count * 4} bytes of memory are needed, and the machine refused them; free memory or use a smaller model") from error
    kernels.fill_zero(flat, threads)
    return flat.view(*shape)


def leading_dimension(columns: int) -> int:
    """Floats from row to row of an activation: whole cache lines, and never a multiple of 1 KiB.

    Rows a multiple of 4 KiB apart fall into one set of L1; a microtile reads up to 12 of them at once, more than the 8 or 12 ways.
    One line more spreads them. Measured at 2048 x 1024 x 1024: 460-490 GF/s padded.
    """
    lines = -(-columns // _FLOATS_PER_LINE)
    return (lines + (lines % 16 == 0)) * _FLOATS_PER_LINE


def empty_rows(rows: int, columns: int, threads: int = 1) -> torch.Tensor:
    """fp32 [rows, columns] with a padded leading dimension: a view into memory of its own, zero at first."""
    return zeros(rows, leading_dimension(columns), threads=threads)[:, :columns]


@contextmanager
def target(name: str) -> Iterator[None]:
    """Run the kernels of one target inside the block: ``with target("reference"):``."""
    before = kernels.target()
    kernels.set_target(name)
    try:
        yield
    finally:
        kernels.set_target(before)
