"""Shipped models and profiles by name: in a wheel inside the package, in a checkout beside it."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import autotune.config
from autotune.config.files import load_model, load_profile
from autotune.config.model import Changes, Model
from autotune.config.profile import Profile
from autotune.config.required_memory import race_memory_bytes, required_memory_bytes
from autotune.errors import InputError, MachineError
from autotune.units import format_bytes

Kind = Literal["model", "profile"]

_SUFFIXES = (".yaml", ".yml")
_SCALED = re.compile(r"(?P<base>.+)\[(?P<changes>[^\[\]]*)\]")


def _folder(kind: Kind) -> Path:
    package = Path(autotune.config.__file__).parents[1]
    inside = package / f"{kind}s"
    return inside if inside.is_dir() else package.parent / f"{kind}s"


def _shipped(kind: Kind) -> dict[str, Path]:
    return {path.stem: path for path in sorted(_folder(kind).glob("*.yaml"), key=lambda path: path.stem)}


def _find(kind: Kind, name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    path = Path(text)
    shipped = _shipped(kind)
    if text in shipped:
        return shipped[text]
    if text and path.is_file():
        return path
    if text and path.is_dir():
        raise InputError(f"a {kind} file must be a file, got the folder {text}; check the path")
    if path.suffix in _SUFFIXES or "/" in text:
        step = f"for the shipped {kind} write {path.stem}" if path.stem in shipped else "check the path"
        raise InputError(f"{kind} file not found: {text}; {step}")
    near = difflib.get_close_matches(text, shipped, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    known = f"shipped: {', '.join(shipped)}" if shipped else f"no {kind} is shipped"
    raise InputError(f"unknown {kind} {text!r}; {guess}{known}; or give the path of a YAML file")


def list_models() -> list[str]:
    """Names of the shipped models, sorted."""
    return list(_shipped("model"))


def list_profiles() -> list[str]:
    """Names of the shipped hardware profiles, sorted."""
    return list(_shipped("profile"))


def find_model(name_or_path: str | Path) -> Path:
    """The file of a shipped model, or of a path, also where the name is of a changed copy. A shipped name goes first, unless it is written
    with a suffix or a slash.

    Raises:
        InputError: neither; lists the nearest and all shipped names.
    """
    match = _SCALED.fullmatch(str(name_or_path))
    return _find("model", name_or_path if match is None or Path(name_or_path).is_file() else match["base"])


def find_profile(name_or_path: str | Path) -> Path:
    """The file of a shipped profile, or of a path; as `find_model`."""
    return _find("profile", name_or_path)


def load_model_by_name(name_or_path: str | Path) -> Model:
    """A model by name, by path, or by the name of a changed copy: ``small[max_rows=10000,minibatch=64,dtype=bf16]``.

    Raises:
        InputError: unknown name, unreadable or invalid file, unknown change.
    """
    text = str(name_or_path)
    match = _SCALED.fullmatch(text)
    if match is None or Path(text).is_file():
        return load_model(find_model(text))
    changes: dict[str, Any] = {}
    known = [field.name for field in fields(Changes)]
    for change in match["changes"].split(","):
        key, _, value = change.partition("=")
        number = key in ("max_rows", "minibatch")
        if key not in known or key in changes or (number and not value.isdecimal()):
            step = f"write for example {match['base']}[max_rows=10000,minibatch=64]"
            raise InputError(f"a model's name may change {', '.join(known)}, got {change!r} ({text}); {step}")
        changes[key] = int(value) if number else value
    return load_model_by_name(match["base"]).changed(Changes(**changes))


def load_profile_by_name(name_or_path: str | Path) -> Profile:
    """A hardware profile by name or path. Raises: InputError, as `find_profile` and `load_profile`."""
    return load_profile(find_profile(name_or_path))


PROCESS_BYTES = 320 << 20
"""What a process takes beside a model: the interpreter, torch and its libraries, generated batches. A run of `tiny` has 288 MiB resident at
its peak, of which 5 are the model; a rank adds gloo's threads and buffers."""


def needed_memory_bytes(model: Model, ranks: int = 1, on_host: int | None = None, *, written: bool = False, raced: bool = False) -> int:
    """Memory that must be available before the processes that train `model` start. Arguments as for `check_fits`."""
    here = ranks if on_host is None else on_host
    races_bytes = here * race_memory_bytes(model, -(-model.minibatch // ranks)) if raced else 0
    # 16-bit tables are written in fp32, and the parts of several ranks brought together in the first.
    joined_bytes = sum(table.size_bytes for table in model.tables) if written and (model.dtype == "bf16" or ranks > 1) else 0
    return required_memory_bytes(model, ranks, on_host) + PROCESS_BYTES * here + races_bytes + joined_bytes


def nearest_model_that_fits(
    available_bytes: int, like: Model | None = None, needed: Callable[[Model], int] = needed_memory_bytes
) -> Model | None:
    """The largest shipped model of which `available_bytes` holds what is `needed`; one with the tables' count and dim of `like` goes first.
    None: none fits."""
    models = [load_model(path) for path in _shipped("model").values()]
    sizes = [(needed(model), model) for model in models]
    fitting = [(size_bytes, model) for size_bytes, model in sizes if size_bytes <= available_bytes]
    if not fitting:
        return None

    def nearness(entry: tuple[int, Model]) -> tuple[bool, int]:
        size_bytes, model = entry
        same = like is not None and (model.num_tables, model.embedding_dim) == (like.num_tables, like.embedding_dim)
        return same, size_bytes

    return max(fitting, key=nearness)[1]


def check_fits(
    model: Model, available_bytes: int, *, written: bool = False, raced: bool = False, ranks: int = 1, on_host: int | None = None
) -> None:
    """Refuse a model too large for the memory available, before anything is allocated.

    Args:
        written: A checkpoint is to be written, for which halves and parts are joined in memory.
        raced: Its passes are to be timed alone.
        ranks: That train it.
        on_host: How many of them share the memory available; None: all.

    Raises:
        MachineError: names the sizes of tables, dense layers and activations, what is available, and the nearest shipped model that fits.
    """
    needed = functools.partial(needed_memory_bytes, ranks=ranks, on_host=on_host, written=written, raced=raced)
    needed_bytes = needed(model)
    if needed_bytes <= available_bytes:
        return
    here = ranks if on_host is None else on_host
    more = [
        f", {what} {format_bytes(needed_bytes - needed(model, **{name: False}))}"
        for name, wanted, what in (("raced", raced, "timing passes alone"), ("written", written, "joining tables for the checkpoint"))
        if wanted
    ]
    nearest = nearest_model_that_fits(available_bytes, model, needed)
    smaller = "fewer rows" if model.table_bytes >= model.dense_bytes else "narrower layers"
    if nearest:
        step = f"use {nearest.name} ({format_bytes(needed(nearest))}), the nearest shipped model that fits"
        step += f", or {smaller}{', or fewer sockets' if ranks > 1 else ''}"
    else:
        step = f"no shipped model fits; free memory or raise the limit{', or take fewer sockets' if ranks > 1 else ''}"
    among = f" of {ranks} ranks, {here} of them here" if ranks > here else f" of {ranks} ranks" if ranks > 1 else ""
    raise MachineError(
        f"a model must fit the memory available, got {format_bytes(needed_bytes)} for {format_bytes(available_bytes)} "
        f"(model {model.name}{among}: tables {format_bytes(model.table_bytes)}, dense layers with packed copies and gradients "
        f"{format_bytes(model.dense_bytes)}{' in every rank' if ranks > 1 else ''}, activations {format_bytes(model.activation_bytes)}, "
        f"{format_bytes(PROCESS_BYTES)} for every process{''.join(more)}); {step}"
    )
