"""YAML text to plain values with the line of each, and back. YAML 1.2 scalars, no aliases, no tags, no duplicate keys."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from autotune.errors import InputError

KeyPath = tuple[str, ...]

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9_]*)?\.[0-9]+|(?:0|[1-9][0-9_]*)\.)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$",
    re.ASCII,
)
_BREAKS = frozenset("\n\r\x85\u2028\u2029\ufeff")
_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_FLOW_CHARACTERS = 120
"""A mapping longer than this gets a line for each key."""


@dataclass(frozen=True)
class LineMap:
    """Line and column (1-based) of every value of a file, by its path: ``("tables", "2", "dim")``."""

    file: str
    marks: dict[KeyPath, tuple[int, int]]

    def place(self, *path: str | int) -> str:
        """``file:line: tables[2].dim``, or the line of the nearest enclosing value; no line where the map has none."""
        keys = tuple(map(str, path))
        known = keys
        while known and known not in self.marks:
            known = known[:-1]
        line = self.marks.get(known, (1, 1))[0]
        spoken = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
        at = f"{self.file}:{line}" if self.marks else self.file
        return f"{at}: {spoken}" if spoken else at


class _Loader(yaml.SafeLoader):
    """Scalars as YAML 1.2 reads them (``1e-3`` is a float, ``no`` and ``2024-01-01`` are strings), aliases refused."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own interface

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        return super().compose_node(parent, index)


class _Quick(getattr(yaml, "CSafeLoader", _Loader)):  # type: ignore[misc]
    """The same by libyaml where PyYAML was built with it, ten times as fast. It lets aliases pass, and words errors in its own way."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


class _Top(dict[str, Any]):
    """The outermost mapping, which always has a line for each key."""


class _Dumper(yaml.SafeDumper):
    """Writes numeric lists and short mappings of scalars on one line, everything else one entry a line."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Entries of a list stand indented under their key."""
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=_is_flow_list(sequence))

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        return super().represent_mapping(tag, mapping, flow_style=not isinstance(mapping, _Top) and _is_flow_mapping(mapping))


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Line breaks of every kind are escaped: PyYAML writes the Unicode ones raw and reads them back as spaces."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _BREAKS.intersection(text) else None)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
# The dumper quotes what any YAML reader could take for something else, this loader among them.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Dumper.add_representer(_Top, lambda dumper, value: dumper.represent_mapping("tag:yaml.org,2002:map", value))
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _is_flow_list(values: Any) -> bool:
    if all(map(_is_number, values)):
        return True
    scalars = all(not isinstance(value, dict | list | tuple) for value in values)
    nested = all(isinstance(value, list | tuple) and all(map(_is_number, value)) for value in values)
    return (scalars or nested) and len(str(values)) <= _FLOW_CHARACTERS


def _is_flow_mapping(mapping: Any) -> bool:
    values = list(mapping.values())
    scalars = all(value is None or isinstance(value, str | int | float) for value in values)
    return scalars and any(map(_is_number, values)) and len(str(mapping)) <= _FLOW_CHARACTERS + 4 * len(values)


def dump_yaml(value: BaseModel | dict[str, Any]) -> str:
    """YAML of a model or of plain values: ``schema`` first, floats exact (shortest repr); what `load_yaml` reads back equal."""
    plain = value.model_dump(by_alias=True) if isinstance(value, BaseModel) else dict(value)
    if "schema" in plain:
        plain = {"schema": plain.pop("schema"), **plain}
    return yaml.dump(_Top(plain), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140, default_flow_style=False)


def _plain(text: str, marks: dict[KeyPath, tuple[int, int]], kind: type[_Loader]) -> Any:
    """The values of a text; `_EMPTY` of an empty one."""
    loader = kind(text)
    try:
        node = loader.get_single_node()
        return _EMPTY if node is None else _walk(loader, node, (), marks)
    finally:
        loader.dispose()


_EMPTY = object()


def _walk(loader: _Loader, node: Any, path: KeyPath, marks: dict[KeyPath, tuple[int, int]]) -> Any:
    marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN:
        raise yaml.constructor.ConstructorError(None, None, f"tags ({node.tag}) are not supported", node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return [_walk(loader, child, (*path, str(i)), marks) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    values: dict[str | int, Any] = {}
    for key_node, child in node.value:
        key = loader.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
        mark = key_node.start_mark
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word or a whole number", mark)
        below = (*path, str(key))
        if below in marks:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {str(key)!r}, first on line {marks[below][0]}", mark)
        marks[below] = (mark.line + 1, mark.column + 1)
        values[key] = _walk(loader, child, below, marks)
    return values


def read_text(path: str | Path) -> str:
    """The text of a file.

    Raises:
        InputError: it is missing, is no readable file, or is not UTF-8.
    """
    try:
        if Path(path).is_fifo():
            raise InputError(f"a file must be one that can be read twice, got the pipe {path}; write it to a file")
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"file not found: {path}; check the path") from None
    except UnicodeDecodeError as error:
        got = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise InputError(f"file must be UTF-8 text, got {got} ({path}); check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {path}: {reason}; check the path and its permissions") from None


def parse_yaml(text: str, file: str) -> tuple[Any, LineMap]:
    """Plain values of a YAML text and the line of each; `file` is what errors call it.

    Raises:
        InputError: malformed YAML, a duplicate key, an alias, a tag; names file, line, column and the problem.
    """
    try:
        marks: dict[KeyPath, tuple[int, int]] = {}
        values: Any = _EMPTY
        if "*" not in text:  # no alias
            with suppress(yaml.YAMLError, ValueError, RecursionError):  # said by the other one
                values = _plain(text, marks, _Quick)
        if values is _EMPTY:
            marks.clear()
            values = _plain(text, marks, _Loader)
        if values is _EMPTY:
            raise InputError(f"file is empty ({file}); see the shipped files for an example")
        return values, LineMap(file, marks)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        problem = error.problem or error.context or "syntax error"
        raise InputError(f"malformed YAML: {problem} ({at}); correct that line") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"malformed YAML: character {error.character!r} is not allowed ({file}:{line}); remove it") from None
    except RecursionError:
        raise InputError(f"malformed YAML: nested too deeply ({file}); flatten it") from None
    except ValueError as error:
        raise InputError(f"malformed YAML: {error} ({file}); correct that value") from None


def load_yaml(path: str | Path) -> tuple[Any, LineMap]:
    """Plain values of a YAML file and the line of each.

    Raises:
        InputError: the file cannot be read, or see `parse_yaml`.
    """
    return parse_yaml(read_text(path), str(path))


def load_json(path: str | Path) -> tuple[Any, LineMap]:
    """Plain values of a JSON file, its places without lines.

    Raises:
        InputError: the file cannot be read, or is no whole JSON text; names file, line, column and the problem.
    """
    try:
        return json.loads(read_text(path)), LineMap(str(path), {})
    except json.JSONDecodeError as error:
        at = f"{path}:{error.lineno}:{error.colno}"
        raise InputError(f"malformed JSON: {error.msg} ({at}); the file was cut short or edited: restore or remove it") from None
    except RecursionError:
        raise InputError(f"malformed JSON: nested too deeply ({path}); restore or remove it") from None
