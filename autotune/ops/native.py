"""The compiled kernels and torch, loaded at their first use in the one order that works, and memory for them.

Operators describe themselves (knobs, work, features) to commands that compute nothing, and those must not wait for torch. Modules of `ops/`
therefore take `torch`, `dist` and `kernels` from here.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import InputError, MachineError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    import autotune._kernels as kernels
else:

    class _Deferred:
        """A module that is imported when one of its attributes is first asked for."""

        def __init__(self, load: Any) -> None:
            self._load = load

        def __getattr__(self, name: str) -> Any:
            value = getattr(self._load(), name)
            if not name.startswith("__"):
                setattr(self, name, value)  # the next look-up finds it without this function
            return value

    class _Transfers(_Deferred):
        """torch.distributed, whose transfers take contiguous tensors only.

        On a strided view gloo in torch 2.13 is silently wrong: all_reduce, reduce, broadcast, scatter, and what all_to_all_single writes.
        """

        def __getattr__(self, name: str) -> Any:
            value = super().__getattr__(name)
            if _TRANSFER.fullmatch(name):
                value = _of_contiguous(value)
                setattr(self, name, value)
            return value

    def _of_contiguous(transfer: Any) -> Any:
        @functools.wraps(transfer)
        def checked(*arguments: Any, **options: Any) -> Any:
            for argument in (*arguments, *options.values()):
                for tensor in argument if isinstance(argument, list | tuple) else (argument,):
                    if isinstance(tensor, torch.Tensor) and not tensor.is_contiguous():
                        raise AssertionError(f"{transfer.__name__} takes contiguous tensors, got strides {tensor.stride()}")
            return transfer(*arguments, **options)

        return checked

    _TRANSFER = re.compile(r"(all_(reduce|gather|to_all)|reduce|broadcast|scatter|gather|i?send|i?recv)(?!.*object).*")

    def _load_kernels() -> Any:
        importlib.import_module("torch")  # first: the kernels must share the OpenMP library that torch carries
        try:
            module = importlib.import_module("autotune._kernels")
            module.target()  # it reads AUTOTUNE_TARGET
            return module
        except ValueError as error:
            raise InputError(str(error)) from None
        except ImportError as error:
            folder = Path(__file__).parents[1]
            raise MachineError(
                f"the compiled kernels must lie in the package, got none that loads in {folder} ({error}); "
                "run pip install . and start from outside the source folder, or pip install -e ."
            ) from error

    torch = _Deferred(lambda: importlib.import_module("torch"))
    dist = _Transfers(lambda: importlib.import_module("torch.distributed"))
    kernels = _Deferred(_load_kernels)

__all__ = ["cold_sets", "dist", "empty", "empty_rows", "kernels", "leading_dimension", "target", "torch", "zeros"]

_FLOATS_PER_LINE = 16
ADAGRAD_EPSILON = 1e-10
"""Of tables and layers alike, as in torch.optim.Adagrad."""


def zeros(*shape: int, huge_pages: bool = True, threads: int = 1, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Zeros, fp32 unless said otherwise, on pages of their own, aligned to 2 MiB, placed by first touch of `threads` threads.

    Raises:
        MachineError: the memory cannot be had.
    """
    dtype = dtype or torch.float32
    elements = math.prod(shape)
    flat = empty(-(-elements * dtype.itemsize // 4), huge_pages)
    kernels.fill_zero(flat, threads)
    return flat.view(dtype)[:elements].view(*shape)


def empty(count: int, huge_pages: bool = True) -> torch.Tensor:
    """fp32 [count] on pages of its own, aligned to 2 MiB, which whoever writes them first places.

    Raises:
        MachineError: the memory cannot be had.
    """
    try:
        return torch.from_numpy(kernels.allocate(count, huge_pages))
    except MemoryError as error:
        step = "free memory or use a smaller model"
        raise MachineError(f"{count * 4} bytes of memory are needed, and the machine refused them; {step}") from error


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


def cold_sets(set_bytes: int) -> int:
    """How many sets of inputs to rotate through so that none is still cached when its turn comes: 2 to 64.

    Four instances of the last-level cache, since a package may have several; at least 64 MiB and at most 1 GiB in all. Sets so small
    that 64 of them fit a cache stay there, as they do within a step.
    """
    wanted_bytes = min(max(64 << 20, 4 * _last_level_cache_bytes()), 1 << 30)
    return max(2, min(64, -(-wanted_bytes // set_bytes)))


@functools.cache
def _last_level_cache_bytes() -> int:
    """From the kernel's list rather than from CPUID: a virtual machine may see the host's whole cache there."""
    sizes = [0]
    for size in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number = re.fullmatch(r"(\d+)K", size.read_text().strip())
        sizes.append(int(number[1]) << 10 if number else 0)
    return max(sizes)


@contextmanager
def target(name: str) -> Iterator[None]:
    """Run the kernels of one target inside the block: ``with target("reference"):``."""
    before = kernels.target()
    kernels.set_target(name)
    try:
        yield
    finally:
        kernels.set_target(before)
