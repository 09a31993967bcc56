"""The quick parser reads what the strict one reads, and leaves it every refusal."""

from __future__ import annotations

import pytest

from autotune import catalog
from autotune.config import yaml_io
from autotune.config.yaml_io import KeyPath, parse_yaml
from autotune.errors import InputError

SHIPPED = [*map(catalog.find_model, catalog.list_models()), *map(catalog.find_profile, catalog.list_profiles())]


@pytest.mark.parametrize(
    "text",
    [*(path.read_text(encoding="utf-8") for path in SHIPPED), "a: é  # c\nb: [1, {c: 2.5e3}]\n'x': |\n  t\n  no\n", "a: no\nb: 0o7\n"],
    ids=[*(path.stem for path in SHIPPED), "flow, block and comments", "what YAML 1.1 read otherwise"],
)
def test_both_parsers_give_the_same_values_at_the_same_places(text: str) -> None:
    quick: dict[KeyPath, tuple[int, int]] = {}
    strict: dict[KeyPath, tuple[int, int]] = {}
    assert yaml_io._plain(text, quick, yaml_io._Quick) == yaml_io._plain(text, strict, yaml_io._Loader)
    assert quick == strict


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x 1\nb: *x\n", "aliases (*name) are not supported (f:2:4)"),
        ("a: 1\na: 2\n", "duplicate key 'a', first on line 1 (f:2:1)"),
        ("a: [1\nb: 2\n", "malformed YAML: expected ',' or ']', but got ':' (f:2:2)"),
        ("", "file is empty (f)"),
    ],
)
def test_a_refusal_has_the_words_of_the_strict_one(text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        parse_yaml(text, "f")
    assert words in str(error.value)


def test_a_long_profile_is_read_by_the_quick_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the strict parser takes ten times as long")

    monkeypatch.setattr(yaml_io._Loader, "get_single_node", refuse)
    if yaml_io._Quick.__mro__[1] is yaml_io._Loader:
        pytest.skip("PyYAML is built without libyaml here")
    assert parse_yaml(SHIPPED[0].read_text(encoding="utf-8"), "f")[0]["schema"] == 1
