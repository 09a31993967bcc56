"""Which tables, or parts of tables, a partition gives to a rank, and the memory that they take there."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise

from autotune.config.model import FLOAT_BYTES, Model, Table
from autotune.config.partition import Partition
from autotune.errors import InputError
from autotune.ops.all_to_all import sample_bounds
from autotune.ops.shards import Part


def check_partition(model: Model, partition: Partition) -> None:
    """Raises: InputError: the partition does not place exactly the model's tables, splits one past its rows or columns, or splits the rows
    of which Adagrad needs the whole."""
    if len(partition.tables) != model.num_tables:
        rule = f"a partition must place the {model.num_tables} tables of model {model.name}"
        raise InputError(f"{rule}, got {len(partition.tables)}; plan for this model")
    for t, (placement, table) in enumerate(zip(partition.tables, model.tables, strict=True)):
        if placement.kind == "column_wise" and model.optimizer == "adagrad":
            rule = "row-wise Adagrad needs whole rows, so a table must not be column_wise"
            raise InputError(f"{rule}, got that (partition: tables[{t}].kind); split it by rows, or plan for this model")
        limit = {"row_wise": table.rows, "column_wise": table.dim}.get(placement.kind)
        if limit is not None and placement.bounds[-1] != limit:
            rule = f"the bounds of a {placement.kind} table must end at {limit}"
            raise InputError(f"{rule}, got {placement.bounds[-1]} (partition: tables[{t}].bounds); plan for this model")


@functools.lru_cache(maxsize=4)  # the schedule of every rank asks for those of all
def parts_of_ranks(model: Model, partition: Partition) -> tuple[tuple[Part, ...], ...]:
    """What every rank owns, replicated tables left out: equal widths side by side, in the order of the tables."""
    owned: list[list[Part]] = [[] for _ in range(partition.ranks)]
    for t, (placement, table) in enumerate(zip(partition.tables, model.tables, strict=True)):
        rows, columns = (0, table.rows), (0, table.dim)
        bounds = list(pairwise(placement.bounds))
        for number, rank in enumerate(placement.ranks):
            if placement.kind == "row_wise":
                rows = bounds[number]
            elif bounds:
                columns = bounds[number]
            owned[rank].append(Part(t, rows, columns, sums=placement.kind == "row_wise"))
    return tuple(tuple(sorted(parts, key=lambda part: (part.width, part.table))) for parts in owned)


def replicated(partition: Partition) -> list[int]:
    """Numbers of the tables that every rank holds whole."""
    return [t for t, placement in enumerate(partition.tables) if placement.kind == "replicated"]


def whole_tables(model: Model) -> list[Part]:
    """Every table of the model, as a single rank owns them."""
    return [Part(t, (0, table.rows), (0, table.dim)) for t, table in enumerate(model.tables)]


def reduced_densely(model: Model, table: int) -> bool:
    """Whether the gradient of a replicated table is reduced as dense rows, each counted twice, rather than sent as pooled gradients of all
    samples of the global minibatch."""
    return 2 * model.tables[table].rows <= model.minibatch


def equal_tables(model: Model) -> list[int]:
    """Of every table the number of the first one that equals it but for the name."""
    same: dict[Table, int] = {}
    return [same.setdefault(table.model_copy(update={"name": None}), t) for t, table in enumerate(model.tables)]


def load_signatures(model: Model, partition: Partition) -> list[tuple[tuple[int, int, int, bool], ...]]:
    """What every rank owns, sorted, with equal tables named by the first of them: ranks of equal load have equal signatures.

    Returns:
        of every rank, of every part: the first table equal to its own, rows, columns, and whether its pooled rows are partial sums.
    """
    first = equal_tables(model)
    return [
        tuple(sorted((first[part.table], part.rows[1] - part.rows[0], part.width, part.sums) for part in parts))
        for parts in parts_of_ranks(model, partition)
    ]


def rank_memory_bytes(model: Model, parts: Sequence[Part], samples: int) -> int:
    """Tables and parts with their optimizer state, dense layers, and the activations of `samples` samples."""
    tables = sum(part_memory_bytes(model, part) for part in parts)
    return tables + model.dense_bytes + model.model_copy(update={"minibatch": samples}).activation_bytes


def part_memory_bytes(model: Model, part: Part) -> int:
    """A part's weights with their optimizer state, row-wise Adagrad's one float a row."""
    state = FLOAT_BYTES if model.optimizer == "adagrad" else 0
    return (part.rows[1] - part.rows[0]) * (part.width * model.weight_bytes + state)


def samples_of(model: Model, ranks: int) -> list[int]:
    """Samples of the global minibatch that each rank works on."""
    return [high - low for low, high in pairwise(sample_bounds(model.minibatch, ranks))]
