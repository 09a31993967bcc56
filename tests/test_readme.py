"""README's first page, block by block, and the pages beside it: commands parse, output has the form that is printed now, links lead on.

Heavy commands are parsed, not run: the two that set everything up are what CI runs, taken from the page by their markers.
"""

from __future__ import annotations

import ast
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import typer

import autotune
from autotune import api
from autotune.cli.main import command_line
from autotune.config.tuned import TunedConfig
from autotune.exporting.targets import TARGETS
from autotune.report.explanation import explanation
from autotune.report.figures import figures
from autotune.report.layout import to_text

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "CONTRIBUTING.md", ROOT / "autotune/cli/README.md", ROOT / "autotune/perf/README.md")
MOST_LINES = 120
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")
# What stands for a user's own in a table of commands.
_PLACEHOLDERS = {"MODEL": "small", "FILE": "small.tuned.yaml", "N": "2", "P": "xeon-8280", "...": "", "1,2,4,...,64": "1,2,4,64"}


def blocks(language: str, page: Path = README) -> list[str]:
    return [text for found, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(page: Path) -> list[str]:
    """Every `autotune ...` of a page, in shell blocks and between backquotes."""
    shell = [part.strip() for text in blocks("bash", page) for line in text.splitlines() for part in line.split("&&")]
    quoted = re.findall(r"`([^`\n]+)`", _BLOCK.sub("", page.read_text(encoding="utf-8")))
    found = [line.replace("\\|", "|") for line in (*shell, *quoted) if re.match(r"autotune (?!-)[a-z]", line)]
    return list(dict.fromkeys(found))


def parse(line: str) -> None:
    """Take a command line apart as the program does, without doing anything. Raises: an error of usage."""
    words = [_PLACEHOLDERS.get(word, word) for word in shlex.split(line)[1:]]
    words = [next(iter(TARGETS)) if set(word.split("|")) == set(TARGETS) else word for word in words if word]
    group = typer.main.get_command(command_line())
    with group.make_context("autotune", [words[0]], resilient_parsing=True) as context:
        command = group.get_command(context, words[0])  # type: ignore[attr-defined]
        assert command is not None, f"no such command: {words[0]}"
        command.make_context(words[0], words[1:], parent=context)


@pytest.mark.parametrize(("page", "line"), [(page.relative_to(ROOT), line) for page in PAGES for line in commands(page)], ids=str)
def test_a_command_that_a_page_shows_is_one(page: Path, line: str) -> None:
    parse(line)


def test_a_command_that_is_none_would_be_found() -> None:
    with pytest.raises(Exception, match="bugdet"):
        parse("autotune tune small --bugdet 3s")
    with pytest.raises(AssertionError, match="no such command: tuner"):
        parse("autotune tuner small")


def test_the_first_page_is_short_and_has_its_two_commands_where_ci_looks_for_them() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < MOST_LINES
    for marker in ("main command", "test command"):
        ((line,),) = [block.splitlines() for block in re.findall(rf"<!-- {marker} -->\n```bash\n(.*?)```", text, re.DOTALL)]
        assert line.startswith("python3.11 -m venv .venv && . .venv/bin/activate && pip install ")
        assert "torch==2.13.0" in line
    assert len(commands(README)) >= 8


def shape(line: str) -> str:
    """A line with its numbers taken out: ``0.042 (0.040-0.044)`` -> ``# (#-#)``."""
    return re.sub(r"\s+", " ", re.sub(r"\d+(?:[.,]\d+)*", "#", line)).strip()


def test_the_output_has_the_form_that_explain_prints(full_config: TunedConfig) -> None:
    (shown,) = (text.splitlines() for text in blocks("text"))
    printed = to_text(explanation(api.explain(full_config), 100), 100).splitlines()
    units = re.compile(r"\b(ms|us|s)\b")
    title = r"\S+: # ms \(# ms \.\. # ms, # samples\), speedup #x \(# %: #-#, # rounds\)"
    assert re.fullmatch(title, shape(shown[0]))
    assert re.fullmatch(title, units.sub("ms", shape(printed[0].replace(full_config.model, "model"))))
    (header,) = (line for line in printed if line.startswith("operator") and "bound by" in line)
    at = next(number for number, line in enumerate(shown) if line.startswith("operator"))
    assert shown[at].split() == header.split()
    row = r"[a-z_]+(\.#)?(\.[a-z_]+)? # #% (compute|memory|network|none)( #%)? ?(#)? ?(# \(#-#\))?"
    first = printed.index(header) + 1
    rows = [shape(line) for line in (*shown[at + 1 : -1], *printed[first : printed.index("", first)]) if not line.startswith("and ")]
    assert len(rows) > 8
    assert [line for line in rows if not re.fullmatch(row, line)] == []
    assert shape(shown[-1]) == "and # more passes (--json and --html FILE show all)"


def test_the_pictures_are_those_that_explain_draws(full_config: TunedConfig) -> None:
    drawn = {figure.name for figure in figures(api.explain(full_config, timeline=True))}
    shown = [ROOT / path for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README.read_text(encoding="utf-8"))]
    assert {path.stem for path in shown} == {"roofline", "timeline"} <= drawn
    for path in shown:
        assert path.stat().st_size < 40_000
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("http") and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("text", [text for page in PAGES for text in blocks("python", page)])
def test_what_python_blocks_call_exists(text: str) -> None:
    tree = ast.parse(text)
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "autotune"}
    assert called
    assert called <= set(autotune.__all__)
