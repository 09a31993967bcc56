"""Options that several commands share, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from autotune.config.words import CRITEO_TABLES, DICTIONARY_FILE, MAX_SEARCH_SEED, MAX_SEED, PREPARED_FILE, Categories
from autotune.errors import InputError

if TYPE_CHECKING:
    from autotune.config.model import DataSpec

DEFAULT_ALPHA = 1.05
"""Zipf exponent where none is given: the public DLRM's synthetic traces and Criteo's own head lie near it."""

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A shipped model (see: autotune models) or a YAML file.")]
ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A tuned config, as written by tune.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output.")]
OutputOption = Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Also write the result as JSON to FILE.")]
MaxRowsOption = Annotated[int | None, typer.Option("--max-rows", metavar="N", help="At most N rows in every table.")]
MinibatchOption = Annotated[int | None, typer.Option("--minibatch", metavar="N", help="Samples per iteration, instead of the model's.")]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", metavar="fp32|bf16", help="Of tables and weights; bf16 keeps the lower halves for the update.")
]
TableStorageOption = Annotated[
    str | None,
    typer.Option("--table-storage", metavar="split|stochastic", help="Of bf16 tables; stochastic keeps bf16 alone, rounded by chance."),
]
OptimizerOption = Annotated[
    str | None, typer.Option("--optimizer", metavar="sgd|adagrad", help="adagrad is row-wise for tables, element-wise for layers.")
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", metavar="N", help="Threads; default one for each allowed core.")]
RanksOption = Annotated[
    int | None,
    typer.Option("--sockets", metavar="N", help="Sockets, a rank on each; default: of the config or the launcher, else 1."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, max=MAX_SEED, metavar="N", help="Of weights and data, instead of the model's.")
]
SearchSeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=MAX_SEARCH_SEED, metavar="N", help="Of the search: orders and sampling.")
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="DATA", help="uniform, zipf, zipf:1.05, histogram:FILE or a Criteo file, instead of the model's."),
]
TunedOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Use exactly what this tuned config says.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Use a config of other hardware all the same.")]
BudgetOption = Annotated[str, typer.Option("--budget", metavar="TIME", help="Time to spend: 120s, 2m, 1h30m.")]


def data_of(text: str | None, model: str, categories: str | None = None) -> DataSpec | None:
    """What ``--data`` and ``--categories`` ask for, for the model of that name or file; None without these options.

    Raises:
        InputError: as `parse_data`, or categories of data that has none, or that no mapping is called so.
    """
    if text is None and categories is None:
        return None
    from autotune.catalog import load_model_by_name

    base = load_model_by_name(model).data
    data = base if text is None else parse_data(text, base)
    if categories is None:
        return data
    if data.distribution != "criteo":
        rule = "categories belong to Criteo rows"
        raise InputError(f"{rule}, got --categories {categories} with {data.distribution} data; give such a file with --data")
    how, _, file = categories.partition(":")
    if how not in get_args(Categories) or (how == "dictionary") != bool(file):
        rule = "categories must be hashed, modulo, rows or dictionary:FILE"
        raise InputError(f"{rule}, got {categories!r} (--categories); take the one that the checkpoint was trained with")
    update: dict[str, Any] = {"hashed": True, "categories": how, "dictionary": None, "max_ind_range": None}
    if file:
        update |= {"dictionary": _existing(file, "--categories", categories), "max_ind_range": data.max_ind_range}
    return data.model_copy(update=update)


def inputs_of(model: str | Path, data: str | None = None, categories: str | None = None) -> list[Path | str]:
    """Files that a command reads for a model: its own, and those of the data that it or the options name.

    Raises:
        InputError: as `data_of`, or no such model.
    """
    from autotune import catalog

    spec = data_of(data, str(model), categories) or catalog.load_model_by_name(model).data
    files = [file for file in (spec.path, spec.dictionary) if file is not None]
    if prepared := PREPARED_FILE.fullmatch(spec.path or ""):
        files += [f"{prepared[1]}{part}.npy" for part in ("dense", "sparse", "labels")]
    if dictionary := DICTIONARY_FILE.fullmatch(spec.dictionary or ""):
        files += [f"{dictionary[1]}{table}.npz" for table in range(CRITEO_TABLES)]
    return [catalog.find_model(model), *files]


def parse_data(text: str, base: DataSpec) -> DataSpec:
    """The data that ``--data`` asks for; how the pooling varies, and how categories become rows, stay as in `base`.

    Raises:
        InputError: no such distribution, a bad exponent, or no such file.
    """
    from autotune.config.model import DataSpec

    kind, _, rest = text.partition(":")
    keep = {"pooling_kind": base.pooling_kind}
    if text == "uniform":
        return DataSpec.model_validate({"distribution": "uniform", **keep})
    if kind == "zipf":
        return DataSpec.model_validate({"distribution": "zipf", "alpha": _alpha(rest) if ":" in text else DEFAULT_ALPHA, **keep})
    if kind in ("histogram", "criteo") and ":" in text:
        path = _existing(rest, "--data", text)
        return _criteo(base, path) if kind == "criteo" else DataSpec.model_validate({"distribution": kind, "path": path, **keep})
    if Path(text).is_file():
        return _criteo(base, text)
    rule = "data must be uniform, zipf, zipf:ALPHA, histogram:FILE or a Criteo file that is there, no pipe"
    raise InputError(f"{rule}, got {text!r} (--data); correct it")


def _alpha(text: str) -> float:
    try:
        alpha = float(text)
    except ValueError:
        alpha = 0.0
    if not 0.0 < alpha < float("inf"):
        raise InputError(f"a Zipf exponent must be a positive number, got {text!r} (--data); write for example zipf:{DEFAULT_ALPHA}")
    return alpha


def _criteo(base: DataSpec, path: str) -> DataSpec:
    return base.model_copy(update={"distribution": "criteo", "path": path, "alpha": None})


def _existing(file: str, option: str, text: str) -> str:
    if not Path(file).is_file():
        raise InputError(f"file not found: {file!r} ({option} {text}); check the path")
    return file
