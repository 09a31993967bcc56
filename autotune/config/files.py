"""Files people keep: read with one clear error, written whole or not at all."""

from __future__ import annotations

import difflib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from autotune.config.model import MODEL_SCHEMA, Model
from autotune.config.profile import PROFILE_SCHEMA, Profile
from autotune.config.yaml_io import LineMap, dump_yaml, load_json, load_yaml
from autotune.errors import NO_SPACE, AutotuneError, InputError, NoSpaceError

if TYPE_CHECKING:
    from autotune.config.tuned import TunedConfig

T = TypeVar("T", bound=BaseModel)

_SHOWN_ERRORS = 3


def load(cls: type[T], path: str | Path, schema_version: int) -> T:
    """Read and validate a file of class `cls`, whose newest understood schema is `schema_version`.

    Raises:
        InputError: unreadable, malformed, of a newer schema, or invalid; names the rule, the value, ``file:line: key`` and the next step.
    """
    return validate(cls, *load_yaml(path), schema_version)


def validate(cls: type[T], values: Any, lines: LineMap, schema_version: int) -> T:
    """A file's plain values as a `cls`. Raises: InputError, see `load`."""
    _check_schema(cls, values, lines, schema_version)
    return _validate(cls, values, values, lines)


def _validate(cls: type[T], values: Any, in_file: Any, lines: LineMap) -> T:
    """`values` as a `cls`; errors name their place among the values `in_file`, where those of an older schema are laid out otherwise."""
    try:
        # Through JSON, strictly: lists become tuples, but no string becomes a number.
        return cls.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise InputError(_explain(error, cls, in_file, lines)) from None


def _check_schema(cls: type[BaseModel], values: Any, lines: LineMap, newest: int) -> None:
    if not isinstance(values, dict):
        rule = f"a {cls.__name__} file must hold keys and values"
        raise InputError(f"{rule}, got {_brief(values)} ({lines.place()}); begin it with schema: {newest}")
    if "schema" not in values:
        raise InputError(f"schema is missing ({lines.place()}); begin the file with schema: {newest}")
    schema = values["schema"]
    if isinstance(schema, bool) or not isinstance(schema, int):
        raise InputError(f"schema must be a whole number, got {_brief(schema)} ({lines.place('schema')}); write schema: {newest}")
    if schema > newest:
        raise InputError(f"schema {schema} is newer than this autotune understands ({newest}) ({lines.place('schema')}); upgrade")
    if schema < 1:
        raise InputError(f"schema must be 1 to {newest}, got {schema} ({lines.place('schema')}); write schema: {newest}")


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _explain(error: ValidationError, cls: type[BaseModel], values: Any, lines: LineMap) -> str:
    """The first few problems, one a line: unknown keys first, since a misspelt key also shows up as a missing one."""
    messages: dict[str, str] = {}
    missing_explained: set[tuple[str | int, ...]] = set()
    for detail in sorted(_details(error), key=lambda detail: detail["type"] != "extra_forbidden"):
        kind, context = detail["type"], detail.get("ctx", {})
        path = _path_in_file(detail["loc"], values)
        missing: tuple[str | int, ...] = detail["loc"][-1:] if kind == "missing" else ()
        path += tuple(context.get("at", ()))
        place = lines.place(*path, *missing)
        if kind == "extra_forbidden":
            keys = _keys_at(cls, detail["loc"][:-1])
            near = difflib.get_close_matches(str(path[-1]), keys, n=1)
            missing_explained.update((*path[:-1], name) for name in near)
            step = f"did you mean {near[0]!r}?" if near else f"the keys here are {', '.join(keys)}" if keys else "remove it"
            message = f"unknown key {str(path[-1])!r} ({place}); {step}"
        elif kind == "missing":
            if (*path, *missing) in missing_explained:
                continue
            message = f"missing key {missing[-1]!r} ({place}); add it"
        elif kind == "autotune":
            message = f"{context['rule']}, got {context['got']} ({place}); {context['step']}"
        elif kind == "union_tag_invalid":
            key = context["discriminator"].strip("'")
            place = lines.place(*path, key)
            message = f"{key} must be one of {context['expected_tags']}, got {context['tag']!r} ({place}); correct it"
        else:
            rule = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
            message = f"{path[-1] if path else cls.__name__} {rule}, got {_brief(detail['input'])} ({place}); correct it"
        messages.setdefault(place, message)
    more = len(messages) - _SHOWN_ERRORS
    return "\n".join([*messages.values()][:_SHOWN_ERRORS] + ([f"and {more} more"] if more > 0 else []))


def _details(error: ValidationError) -> Iterator[Any]:
    """Problems with their places; those of knobs, which their own class validates, with the places below the knobs'."""
    for detail in error.errors(include_url=False):
        if detail["type"] == "autotune_nested":
            context = detail["ctx"]
            yield from ({**inner, "loc": (*detail["loc"], context["kind"], *inner["loc"])} for inner in _details(context["nested"]))
        else:
            yield detail


def _path_in_file(loc: tuple[str | int, ...], values: Any) -> tuple[str | int, ...]:
    """The part of a pydantic location that the file holds: without the tags of unions, and without a key that is missing."""
    path: list[str | int] = []
    for key in loc:
        if isinstance(values, list) and isinstance(key, int) and key < len(values):
            values = values[key]
            path.append(key)
        elif isinstance(values, dict) and (name := next((name for name in values if str(name) == str(key)), None)) is not None:
            values = values[name]
            path.append(str(name))
    return tuple(path)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The model classes that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for inner in get_args(annotation) for cls in _models_in(inner)]


def _keys_at(cls: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Keys that the mapping at a pydantic location may hold, as a file spells them."""
    from autotune.config.knobs import Knobs

    classes = [cls]
    for key in loc:
        fields = [field for holder in classes for name, field in holder.model_fields.items() if key in (name, field.alias)]
        if fields:
            classes = [inner for field in fields for inner in _models_in(field.annotation)]
        elif Knobs in classes and key in Knobs.registry:
            classes = [Knobs.registry[str(key)]]
    return list(dict.fromkeys(field.alias or name for holder in classes for name, field in holder.model_fields.items()))


def load_model(path: str | Path) -> Model:
    """A workload. Raises: InputError, see `load`."""
    return load(Model, path, MODEL_SCHEMA)


def load_profile(path: str | Path) -> Profile:
    """A hardware profile. Raises: InputError, see `load`."""
    return load(Profile, path, PROFILE_SCHEMA)


def load_tuned(path: str | Path) -> TunedConfig:
    """A tuned config without the record beside it: enough to run, verify and export it. Files up to schema 2 hold their record.

    Raises:
        InputError: see `load`.
    """
    from autotune.config.tuned import RECORD_SCHEMA, TUNED_SCHEMA, Record, TunedConfig

    values, lines = load_yaml(path)
    _check_schema(TunedConfig, values, lines, TUNED_SCHEMA)
    if "record" in values:
        step = f"the record is a file of its own, {record_path(path).name}: remove the key"
        raise InputError(f"unknown key 'record' ({lines.place('record')}); {step}")
    if values["schema"] >= _FIRST_WITH_RECORD:
        return _validate(TunedConfig, values, values, lines)
    moved = {key: value for key, value in values.items() if key in _ONCE_IN_CONFIG}
    config = {key: value for key, value in values.items() if key not in moved}
    tuned = _validate(TunedConfig, config | {"schema": TUNED_SCHEMA}, values, lines)
    identity = tuned.identity
    whose = {"model": identity.model, "model_hash": identity.model_hash, "sockets": identity.sockets, "created": identity.created}
    return tuned.with_record(_validate(Record, {"schema": RECORD_SCHEMA, **whose, **moved}, values, lines))


# Before schema 3 of the config, these stood in it.
_FIRST_WITH_RECORD = 3
_ONCE_IN_CONFIG = ("gains", "verdicts", "workload", "profile", "tables", "ranks", "timeline", "state")


def record_path(path: str | Path) -> Path:
    """Where the record of a tuned config lies: ``small.record.json`` beside ``small.tuned.yaml``, or beside ``small.yaml``."""
    file = Path(path)
    return file.with_name(f"{re.sub(r'(?<=.)([.]tuned)?[.]ya?ml$', '', file.name)}.record.json")


def load_tuned_and_record(path: str | Path) -> TunedConfig:
    """A tuned config with all that was measured for it; without the record's part where there is no record file.

    Raises:
        InputError: see `load`; or the record is cut short, of a newer schema, or belongs to another config.
    """
    from autotune.config.tuned import RECORD_SCHEMA, Record

    tuned, file = load_tuned(path), record_path(path)
    if tuned.record is not None or not file.exists():
        return tuned
    record = validate(Record, *load_json(file), RECORD_SCHEMA)
    if record.identity != tuned.identity:
        raise InputError(
            f"a record must belong to the config beside it, got {file} of {record.identity}, {path} of {tuned.identity}; "
            "put each beside its own, or remove the record"
        )
    return tuned.with_record(record)


def write_tuned(path: str | Path, config: TunedConfig) -> None:
    """Write a tuned config, its record first: a config never stands beside the record of another. Raises: InputError, see `replacing`."""
    if config.record is not None:
        # Without what follows from the rest, such as rates: a reader computes it.
        write_text_atomic(record_path(path), config.record.model_dump_json(round_trip=True, by_alias=True, indent=1) + "\n")
    write_yaml(path, config.file_form())


def cache_folder() -> Path:
    """Where what belongs to this machine is kept: $AUTOTUNE_CACHE, $XDG_CACHE_HOME/autotune or ~/.cache/autotune. It is not created here.

    Raises:
        InputError: none of the variables is set and there is no home folder.
    """
    if own := os.environ.get("AUTOTUNE_CACHE"):
        return Path(own)
    # The XDG base directory specification tells to ignore relative paths.
    if (xdg := os.environ.get("XDG_CACHE_HOME")) and Path(xdg).is_absolute():
        return Path(xdg) / "autotune"
    try:
        return Path.home() / ".cache" / "autotune"
    except RuntimeError as error:
        raise InputError("the cache folder needs a home folder, got none; set AUTOTUNE_CACHE") from error


def check_writable(path: str | Path) -> None:
    """Make sure, before a long job, that its output can be written: a file is created beside it and removed.

    Raises:
        InputError: it cannot; names the folder and the next step.
    """
    target = _target(path)
    temporary = _temporary(target)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        temporary.unlink()
    except OSError as error:
        raise _unwritable(target, error) from None


def check_readable(path: str | Path) -> None:
    """Make sure, before a long job, that a file can be read. Raises: InputError: it is not there, no regular file, or not readable."""
    file = Path(path)
    try:
        if file.exists() and not file.is_file():
            raise InputError(f"an input must be a regular file, got {path}; check the path")
        file.open("rb").close()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from None


def make_folder(path: str | Path) -> None:
    """Make a folder for several outputs, with its parents; one that is there is used as it is.

    Raises:
        InputError: a file is in its way, or it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"output must be a folder, got the file {path}; choose another path") from None
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror or error}; choose a folder you can write to") from None


def write_text_atomic(path: str | Path, text: str) -> None:
    """Replace a file by `text` in UTF-8. Raises: InputError, NoSpaceError, see `replacing`."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Replace a file by `data`. Raises: InputError, NoSpaceError, see `replacing`."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write into that takes the place of `path` when the block ends, and nothing when it fails.

    A temporary file in the same folder, fsync, rename, fsync of the folder: a reader sees the old file or the new one, whole.

    Raises:
        InputError: it cannot be written; names the folder and the next step.
        NoSpaceError: the disk is full.
    """
    target = _target(path)
    temporary = _temporary(target)
    try:
        try:
            # os.open obeys the umask, as a plain open would; a file that is there keeps its mode.
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            with open(descriptor, "w+b") as file:
                if target.exists():
                    os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from None


def write_yaml(path: str | Path, value: BaseModel | dict[str, Any]) -> None:
    """Write a model or plain values as YAML. Raises: InputError, see `write_text_atomic`."""
    write_text_atomic(path, dump_yaml(value))


def _target(path: str | Path) -> Path:
    """Where the bytes go: links followed, and never a device or a folder, which a rename would destroy or refuse."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(f"output must be a file, got the folder {path}; add a file name")
    if target.exists() and not target.is_file():
        raise InputError(f"output must be a regular file, got {path}; choose another path")
    return target


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name[:64]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _unwritable(target: Path, error: OSError) -> AutotuneError:
    folder = target.parent
    if error.errno in NO_SPACE:
        return NoSpaceError(f"{target.name} needs space in {folder}, got {error.strerror}; free space there, or choose another folder")
    if not folder.exists():
        return InputError(f"output folder does not exist: {folder} (for {target.name}); create it or choose another path")
    reason = error.strerror or type(error).__name__
    return InputError(f"cannot write {target.name} in the folder {folder}: {reason}; choose a folder you can write to")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every file system can, and the file is whole either way."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
