"""Every module of the package imports only to its left in the order of layers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autotune"

# Each entry may import the ones before it and itself; the members of one entry know nothing of each other.
# `_kernels` is the C++ module; `` is the package's own `__init__`, the public API.
ORDER: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("units",),
    ("config",),
    ("catalog",),
    ("machine",),
    ("_kernels",),
    ("ops",),
    ("data",),
    ("dlrm",),
    ("ranks",),
    ("bench",),
    ("probing",),
    ("perf",),
    ("planning",),
    ("tuning",),
    ("comparing",),
    ("explaining",),
    ("report", "exporting"),
    ("api",),
    ("",),
    ("cli",),
    ("__main__",),
)
RANK = {layer: rank for rank, layers in enumerate(ORDER) for layer in layers}


def layer_of(module: str) -> str:
    """``autotune.ops.mlp`` -> ``ops``."""
    return [*module.split("."), ""][1]


def imported_modules(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and dotted name of every import of this package, those inside functions included; a relative import as its dots."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append((node.lineno, "." * node.level + (node.module or "")))
        elif isinstance(node, ast.ImportFrom) and node.module == "autotune":
            # `from autotune import ops` names a layer; `from autotune import tune_model` names the public API.
            layers = [name.name if name.name in RANK else "" for name in node.names if name.name != "__version__"]
            found += [(node.lineno, f"autotune.{layer}".rstrip(".")) for layer in layers]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.module or ""))
    return [(line, name) for line, name in found if name.startswith(".") or name.split(".")[0] == "autotune"]


def violations(module: str, source: str) -> list[str]:
    """What is wrong with the imports of a module, one sentence each."""
    own = layer_of(module)
    if own not in RANK:
        return [f"{module} is in no layer; add it to ORDER"]
    wrong = []
    for line, target in imported_modules(ast.parse(source)):
        other = layer_of(target)
        if target.startswith("."):
            wrong.append(f"{module}:{line} imports {target} relatively")
        elif other not in RANK:
            wrong.append(f"{module}:{line} imports {target}, which is in no layer")
        elif other != own and RANK[other] >= RANK[own]:
            wrong.append(f"{module}:{line} imports {target} to its right")
    return wrong


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_to_its_left(path: Path) -> None:
    assert violations(module_name(path), path.read_text(encoding="utf-8")) == []


def imported_with_the_module(body: list[ast.stmt]) -> set[str]:
    """Packages that a module imports when it is imported itself: neither inside functions nor for annotations alone."""
    found = set()
    for node in body:
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            found |= imported_with_the_module(node.body)
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            found |= imported_with_the_module(node.body + node.orelse)
    return found


# Seconds that every rank, contestant and probe would pay, for what only readers of text, frames and figures use.
IMPORTED_WHERE_USED = {"pandas", "matplotlib"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_where_it_is_used_what_training_does_without(path: Path) -> None:
    assert imported_with_the_module(ast.parse(path.read_text(encoding="utf-8")).body) & IMPORTED_WHERE_USED == set()


def test_what_is_imported_with_a_module_is_seen() -> None:
    hidden = "if TYPE_CHECKING:\n    import c\ndef g():\n    import h"
    source = f"import a.b\n{hidden}\nif x:\n    from d.e import f\ntry:\n    import i\nfinally:\n    j"
    assert imported_with_the_module(ast.parse(source).body) == {"a", "d", "i"}


def test_the_check_sees_the_package() -> None:
    assert {"autotune.errors", "autotune.units", "autotune.config.files", "autotune.catalog"} <= set(map(module_name, MODULES))


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("autotune.config.x", "from autotune.ops.base import Work", "to its right"),
        ("autotune.config.x", "import autotune.cli", "to its right"),
        ("autotune.config.x", "from autotune import tune", "to its right"),
        ("autotune.config.x", "def f():\n    from autotune.tuning.study import run", "autotune.config.x:2"),
        ("autotune.config.x", "if TYPE_CHECKING:\n    import autotune.tuning", "to its right"),
        ("autotune.config.x", "import numpy, autotune.ops", "to its right"),
        ("autotune.config.x", "from autotune import something", "to its right"),
        ("autotune.config.x", "import autotune", "to its right"),
        ("autotune.config.x", "from .base import Frozen", "relatively"),
        ("autotune.config.x", "from .. import ops", "relatively"),
        ("autotune.config.x", "from autotune.colour import red", "in no layer"),
        ("autotune.catalog", "from autotune import _kernels", "to its right"),
        ("autotune.report.text", "from autotune.exporting.env import write", "to its right"),
        ("autotune.exporting.env", "from autotune.report.text import table", "to its right"),
        ("autotune.errors", "from autotune.units import format_time", "to its right"),
        ("autotune.colour", "", "in no layer"),
    ],
)
def test_the_check_can_fail(module: str, source: str, message: str) -> None:
    found = violations(module, source)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("autotune.cli.run", "import autotune\nfrom autotune import tune, errors\nfrom autotune.report.text import table"),
        ("autotune.config.x", "from autotune.config.base import Frozen\nfrom autotune.units import format_time\nimport autotuner"),
        ("autotune.ops.mlp", "from autotune import _kernels, __version__\nimport torch"),
        ("autotune", "from autotune.tuning import tune"),
    ],
)
def test_the_check_can_pass(module: str, source: str) -> None:
    assert violations(module, source) == []
