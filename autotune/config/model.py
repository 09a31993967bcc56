"""A workload: the shape of one DLRM and of the data it trains on, as it stands in ``models/*.yaml``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from autotune.config.base import Frozen, rule_error
from autotune.config.interactions import CONCATENATION, INTERACTIONS
from autotune.config.words import DTYPES as DTYPES
from autotune.config.words import MAX_SEED, Categories
from autotune.config.words import OPTIMIZERS as OPTIMIZERS
from autotune.config.words import TABLE_STORAGES as TABLE_STORAGES
from autotune.config.words import UNCHANGED as UNCHANGED
from autotune.config.words import Changes as Changes
from autotune.config.words import Dtype as Dtype
from autotune.config.words import Optimizer as Optimizer
from autotune.config.words import TableStorage as TableStorage
from autotune.errors import InputError

# 1: first version.
MODEL_SCHEMA = 1

FLOAT_BYTES = 4
"""Bytes of an fp32 element; a split one keeps its lower half beside it for the update, and takes as much."""

_STOCHASTIC_RULE = "table_storage stochastic needs dtype bf16"

MAX_COUNT = 100_000
"""Tables one entry may stand for: far above any published model, low enough that a slip of the keyboard fills no memory."""


def _must(holds: Callable[[Any], bool], rule: str, step: str) -> AfterValidator:
    """A validator that refuses values for which `holds` is false."""

    def check(value: Any) -> Any:
        if not holds(value):
            shown = f"{value:g}" if isinstance(value, float) else list(value) if isinstance(value, tuple) else repr(value)
            raise rule_error((), rule, shown, step)
        return value

    return AfterValidator(check)


def _positive(what: str) -> AfterValidator:
    return _must(lambda value: value >= 1, f"{what} must be positive", "set it to 1 or more")


class Table(Frozen):
    """One embedding table, or in a file `count` equal ones."""

    rows: Annotated[int, _positive("rows")]
    dim: Annotated[int, _positive("embedding dim")]
    """Embedding dim E: columns of the table."""
    pooling: Annotated[
        float, _must(lambda value: value >= 0, "pooling factor must not be negative", "set the look-ups per bag to 0 or more")
    ] = 1.0
    """Look-ups per bag: exact where `pooling_kind` is fixed, the average where it varies; 0 leaves every bag empty."""
    name: str | None = None
    count: Annotated[
        int,
        _must(lambda value: value <= MAX_COUNT, f"count must be at most {MAX_COUNT}", "split the entry if so many are meant"),
        _positive("count"),
    ] = 1
    """How many tables this entry of a file stands for; always 1 in a loaded model."""

    @model_validator(mode="after")
    def _one_name_one_table(self) -> Table:
        if self.name is not None and self.count > 1:
            raise rule_error(("count",), "a named table cannot be repeated", self.count, "drop the name or write the tables one by one")
        return self

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        values["pooling"] = int(self.pooling) if self.pooling.is_integer() else self.pooling
        if self.name is None:
            del values["name"]
        if self.count == 1:
            del values["count"]
        return values

    @property
    def size_bytes(self) -> int:
        """fp32 bytes of one table."""
        return self.rows * self.dim * FLOAT_BYTES


class DataSpec(Frozen):
    """Where indices come from."""

    distribution: Literal["uniform", "zipf", "histogram", "criteo"] = "uniform"
    """Uniform over the rows; Zipf; a published reuse histogram; rows of a Criteo file."""
    alpha: float | None = None
    """Zipf exponent: the i-th hottest row is drawn in proportion to i**-alpha."""
    path: str | None = None
    """Histogram or Criteo file, relative to the working directory."""
    hashed: bool = True
    """Criteo only: False is the older spelling of ``categories: rows``."""
    categories: Categories | None = None
    """Criteo only: how a category becomes a row, see `data.categories`. None hashes text; prepared ``.npy`` files hold row numbers."""
    dictionary: str | None = None
    """With ``categories: dictionary`` one of the 26 files ``..._fea_dict_0.npz`` that the public DLRM writes; the others lie beside it."""
    max_ind_range: Annotated[
        int | None, _must(lambda value: value is None or value >= 1, "max_ind_range must be positive", "leave it out for none")
    ] = None
    """With ``categories: dictionary`` the public DLRM's option of that name: values are taken modulo it before they are looked up."""
    pooling_kind: Literal["fixed", "varying"] = "fixed"
    """Whether every bag holds exactly `pooling` look-ups, or `pooling` on average."""

    @model_validator(mode="after")
    def _belongs(self) -> DataSpec:
        kind = self.distribution
        if kind == "zipf" and not (self.alpha is not None and self.alpha > 0):
            raise rule_error(("alpha",), "a zipf distribution needs a positive alpha", self.alpha, "set alpha, for example 1.05")
        if kind != "zipf" and self.alpha is not None:
            raise rule_error(("alpha",), f"alpha belongs to zipf, not to {kind}", self.alpha, "drop alpha or set distribution: zipf")
        if kind in ("histogram", "criteo") and not self.path:
            raise rule_error(("path",), f"a {kind} distribution reads a file", self.path, "set path to that file")
        if kind in ("uniform", "zipf") and self.path is not None:
            raise rule_error(
                ("path",), f"a {kind} distribution reads no file", self.path, "drop path or set distribution: histogram or criteo"
            )
        for key in ("hashed", "categories", "dictionary", "max_ind_range") if kind != "criteo" else ():
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                raise rule_error((key,), f"{key} belongs to criteo, not to {kind}", value, f"drop {key} or set distribution: criteo")
        if not self.hashed and self.categories not in (None, "rows"):
            raise rule_error(("hashed",), f"hashed: false means categories: rows, not {self.categories}", False, "drop hashed")
        if (self.categories == "dictionary") != (self.dictionary is not None):
            raise rule_error(("dictionary",), "a dictionary goes with categories: dictionary", self.dictionary, "set both or neither")
        if self.max_ind_range is not None and self.dictionary is None:
            rule = "max_ind_range belongs to categories: dictionary"
            raise rule_error(("max_ind_range",), rule, self.max_ind_range, "drop it; modulo takes the rows of each table")
        return self

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None and not (key == "hashed" and value)}


def _sizes_positive(sizes: tuple[int, ...]) -> tuple[int, ...]:
    for i, size in enumerate(sizes):
        if size < 1:
            raise rule_error((i,), "layer size must be positive", size, "set it to 1 or more")
    return sizes


Sizes = Annotated[tuple[int, ...], AfterValidator(_sizes_positive)]


def _parameters(sizes: Sequence[int]) -> int:
    return sum(c * k + k for c, k in pairwise(sizes))


class Model(Frozen):
    """A DLRM: bottom MLP and embedding tables, their interaction, top MLP; trained on binary cross entropy."""

    schema_version: int = Field(MODEL_SCHEMA, alias="schema")
    name: Annotated[
        str,
        Field(min_length=1),
        _must(str.isprintable, "a model's name must be printable, on one line", "take out control characters and line breaks"),
    ]
    source: str
    """Where the numbers come from, and which of them are assumed."""
    description: str
    minibatch: Annotated[int, _positive("minibatch")]
    """Samples per iteration (N)."""
    learning_rate: Annotated[float, _must(lambda value: value > 0, "learning rate must be positive", "set for example 0.01")] = 0.01
    dtype: Dtype = "fp32"
    """Of tables and of the layers' weights. bf16 is Split-SGD: passes read the upper 16 bits of an fp32 weight, the update joins both."""
    table_storage: TableStorage = "split"
    """Of tables in bf16. split keeps the lower 16 bits too. stochastic keeps bf16 alone, half the memory: an updated weight is rounded up
    or down by a chance that the seed decides, and is right on average."""
    optimizer: Optimizer = "sgd"
    """adagrad is row-wise for tables, element-wise for layers."""
    index_dtype: Literal["int32", "int64"] = "int64"
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of the initial weights and of the generated data."""
    data: DataSpec = DataSpec()
    interaction: str = "dot"
    """How the bottom MLP's output and the tables' vectors become the top MLP's input; it names the schedule. dot: that output, then the dot
    product of every two; dot_with_diagonal: also of each with itself; concatenation: all side by side. The public DLRM has
    --arch-interaction-op and --arch-interaction-itself."""
    bottom_mlp: Annotated[
        Sizes,
        _must(
            lambda sizes: len(sizes) >= 2, "bottom_mlp must hold its input size and at least one layer", "write for example [13, 512, 64]"
        ),
    ]
    """Layer sizes, input included: ``[13, 512, 256, 128]``; the last is the embedding dim. ReLU after every layer."""
    top_mlp: Annotated[Sizes, _must(bool, "top_mlp must hold at least one layer", "write for example [512, 1]")]
    """Layer sizes without the input, which the interaction gives; the last is 1. ReLU, at the end a sigmoid."""
    tables: tuple[Table, ...]
    model_config = Frozen.model_config | {"populate_by_name": True, "serialize_by_alias": True}

    @field_validator("interaction")
    @classmethod
    def _interaction(cls, value: str) -> str:
        if value not in INTERACTIONS:
            raise rule_error((), f"interaction must be one of {', '.join(INTERACTIONS)}", repr(value), "set one, or leave it out for dot")
        return value

    @field_validator("table_storage")
    @classmethod
    def _table_storage(cls, value: TableStorage, info: ValidationInfo) -> TableStorage:
        if value == "stochastic" and info.data.get("dtype") == "fp32":
            raise rule_error((), _STOCHASTIC_RULE, "fp32", "set dtype: bf16, or drop table_storage")
        return value

    @field_validator("top_mlp")
    @classmethod
    def _top(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if sizes[-1] != 1:
            rule = "the last layer of top_mlp must be 1, the click probability"
            raise rule_error((len(sizes) - 1,), rule, sizes[-1], "end the list with 1")
        return sizes

    @field_validator("tables")
    @classmethod
    def _tables(cls, entries: tuple[Table, ...], info: ValidationInfo) -> tuple[Table, ...]:
        """Checks the entries as the file has them, so that places are right, then repeats those with a count."""
        if not entries:
            raise rule_error((), "a model must have at least one table", [], "add an entry such as {rows: 1000, dim: 64, pooling: 10}")
        names = set()
        for i, table in enumerate(entries):
            bottom = info.data.get("bottom_mlp")
            if bottom and table.dim != bottom[-1]:
                rule = f"the interaction needs every embedding dim equal to the last size of bottom_mlp ({bottom[-1]})"
                raise rule_error((i, "dim"), rule, table.dim, f"set dim: {bottom[-1]} or end bottom_mlp with {table.dim}")
            if info.data.get("index_dtype") == "int32" and table.rows > 2**31:
                raise rule_error((i, "rows"), "int32 indices reach 2147483648 rows", table.rows, "set index_dtype: int64")
            data = info.data.get("data")
            if data and data.pooling_kind == "fixed" and not table.pooling.is_integer():
                step = "set a whole number, or data.pooling_kind: varying"
                raise rule_error((i, "pooling"), "a fixed pooling factor must be whole", f"{table.pooling:g}", step)
            if table.name is not None and table.name in names:
                raise rule_error((i, "name"), "table names must differ", repr(table.name), "rename one")
            names.add(table.name)
        return tuple(table for entry in entries for table in (entry.model_copy(update={"count": 1}),) * entry.count)

    @field_serializer("tables")
    def _grouped(self, tables: tuple[Table, ...]) -> list[dict[str, Any]]:
        """Equal neighbours as one entry with a count."""
        groups = [(table, len(list(same))) for table, same in groupby(tables)]
        return [table.model_copy(update={"count": count}).model_dump() for table, count in groups]

    @property
    def num_tables(self) -> int:
        return len(self.tables)

    @property
    def embedding_dim(self) -> int:
        return self.bottom_mlp[-1]

    @property
    def dense_features(self) -> int:
        """Dense inputs per sample."""
        return self.bottom_mlp[0]

    @property
    def num_features(self) -> int:
        """F: the vectors that interact, the tables' and the bottom MLP's."""
        return self.num_tables + 1

    @property
    def top_input(self) -> int:
        """Input size of the top MLP, which the interaction gives."""
        return INTERACTIONS[self.interaction](self.num_features, self.embedding_dim)

    @property
    def top_sizes(self) -> tuple[int, ...]:
        """Sizes of the top MLP, input included."""
        return (self.top_input, *self.top_mlp)

    @property
    def weight_bytes(self) -> int:
        """Bytes in memory of one weight of a table: both halves of a split one."""
        return FLOAT_BYTES // 2 if self.table_storage == "stochastic" else FLOAT_BYTES

    @property
    def table_bytes(self) -> int:
        """All tables in memory."""
        return sum(map(self.stored_bytes, self.tables))

    def stored_bytes(self, table: Table) -> int:
        """One table in memory."""
        return self.weight_bytes * table.rows * table.dim

    @property
    def dense_parameters(self) -> int:
        """Weights and biases of both MLPs."""
        return _parameters(self.bottom_mlp) + _parameters(self.top_sizes)

    @property
    def state_bytes(self) -> int:
        """Optimizer state of all tables: row-wise Adagrad keeps one fp32 a row."""
        return FLOAT_BYTES * sum(table.rows for table in self.tables) if self.optimizer == "adagrad" else 0

    @property
    def dense_bytes(self) -> int:
        """Weights, gradients, a packed copy each for forward and backward-data (of half the size in bf16), and Adagrad's state."""
        packed = 2 * FLOAT_BYTES // (2 if self.dtype == "bf16" else 1)
        state = FLOAT_BYTES if self.optimizer == "adagrad" else 0
        return (2 * FLOAT_BYTES + packed + state) * self.dense_parameters

    @property
    def lookups_per_iteration(self) -> int:
        """NS: rows gathered by one minibatch, on average where the pooling varies."""
        return round(self.minibatch * sum(table.pooling for table in self.tables))

    @property
    def activation_bytes(self) -> int:
        """An estimate of what one minibatch needs besides parameters.

        ``2 * 4 * N * (bottom sizes + F * E + top sizes)`` for values and gradients, the indices and offsets, and the gradient row
        of every look-up (``4 * NS * E``), which only the unfused update writes out. Concatenated vectors are the top MLP's input itself.
        """
        vectors = 0 if self.interaction == CONCATENATION else self.num_features * self.embedding_dim
        values = sum(self.bottom_mlp) + vectors + sum(self.top_sizes)
        index_bytes = 4 if self.index_dtype == "int32" else 8
        indices = self.lookups_per_iteration + self.num_tables * (self.minibatch + 1)
        gradient_rows = self.lookups_per_iteration * self.embedding_dim
        return 2 * FLOAT_BYTES * self.minibatch * values + index_bytes * indices + FLOAT_BYTES * gradient_rows

    def hash(self) -> str:
        """sha256 (hex) of the canonical JSON of all that decides a run; source, description and schema do not."""
        values = self.model_dump(mode="json", by_alias=False, exclude={"schema_version", "source", "description"})
        for key in ("dtype", "table_storage", "optimizer"):  # younger than configs that hold a hash: what they then had goes unsaid
            if values[key] == Model.model_fields[key].default:
                del values[key]
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def changed(self, changes: Changes) -> Model:
        """A copy with these changes; the name tells what changed: ``small[max_rows=10000,dtype=bf16]``.

        Raises:
            InputError: a value is below 1, or none of those there are.
        """
        update: dict[str, Any] = {}
        for key, value in (("max_rows", changes.max_rows), ("minibatch", changes.minibatch)):
            if value is not None and value < 1:
                raise InputError(f"{key} must be positive, got {value} (model {self.name}); set it to 1 or more")
        for key, known in (("dtype", DTYPES), ("table_storage", TABLE_STORAGES), ("optimizer", OPTIMIZERS)):
            chosen = getattr(changes, key)
            if chosen is not None and chosen not in known:
                raise InputError(f"{key} must be one of {', '.join(known)}, got {chosen!r} (model {self.name}); correct it")
        suffix = []
        rows = changes.max_rows
        if rows is not None and any(table.rows > rows for table in self.tables):
            update["tables"] = tuple(table.model_copy(update={"rows": min(table.rows, rows)}) for table in self.tables)
            suffix.append(f"max_rows={rows}")
        for key in ("minibatch", "dtype", "table_storage", "optimizer"):
            chosen = getattr(changes, key)
            if chosen is not None and chosen != getattr(self, key):
                update[key] = chosen
                suffix.append(f"{key}={chosen}")
        if update.get("dtype", self.dtype) == "fp32":
            if changes.table_storage == "stochastic":
                raise InputError(f"{_STOCHASTIC_RULE}, got fp32 (model {self.name}); choose dtype bf16 too (--dtype bf16)")
            update["table_storage"] = "split"
        return self.model_copy(update=update | {"name": f"{self.name}[{','.join(suffix)}]"}) if suffix else self
