"""`autotune models`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.cli.options import JsonOption
from autotune.cli.output import show
from autotune.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autotune.config.model import Model


@dataclass(frozen=True)
class ModelEntry:
    """One shipped model."""

    name: str
    tables: int
    dim: int
    """Embedding dim."""
    lookups_per_sample: float
    minibatch: int
    table_bytes: int
    required_bytes: int
    """Memory to train it in one process."""
    fits: bool
    """Whether this machine has that much now, and what a process takes beside it."""


@dataclass(frozen=True)
class ModelList:
    """What `autotune models` prints."""

    available_bytes: int
    models: tuple[ModelEntry, ...]


def _entry(model: Model, available_bytes: int) -> ModelEntry:
    from autotune import catalog
    from autotune.config.required_memory import required_memory_bytes

    required_bytes = required_memory_bytes(model)
    return ModelEntry(
        name=model.name,
        tables=model.num_tables,
        dim=model.embedding_dim,
        lookups_per_sample=sum(table.pooling for table in model.tables),
        minibatch=model.minibatch,
        table_bytes=model.table_bytes,
        required_bytes=required_bytes,
        fits=catalog.needed_memory_bytes(model) <= available_bytes,
    )


def model_list() -> ModelList:
    """Every shipped model, and whether it fits this machine."""
    from autotune import catalog
    from autotune.machine.memory import available_memory_bytes
    from autotune.machine.topology import detect

    available_bytes = available_memory_bytes(detect())
    models = tuple(_entry(catalog.load_model_by_name(name), available_bytes) for name in catalog.list_models())
    return ModelList(available_bytes, models)


def _render(result: ModelList, width: int) -> RenderableType:
    from autotune.report.layout import Column, table

    rows = result.models
    columns = [
        Column("model", [row.name for row in rows], justify="left"),
        Column("tables", [str(row.tables) for row in rows]),
        Column("dim", [str(row.dim) for row in rows]),
        Column("look-ups", [f"{row.lookups_per_sample:g}" for row in rows], need=5),
        Column("minibatch", [str(row.minibatch) for row in rows], need=5),
        Column("tables' memory", [format_bytes(row.table_bytes) for row in rows], need=6),
        Column("needs", [format_bytes(row.required_bytes) for row in rows]),
        Column("fits", ["yes" if row.fits else "no" for row in rows], justify="left"),
    ]
    return table(columns, width)


def command(as_json: JsonOption = False) -> None:
    """List the shipped models and whether they fit this machine.

    Example: autotune models
    """
    show(model_list(), _render, as_json)
