"""The direction of imports: data flows one way, and so do they."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "itstrace"

#: What each part may import of the rest. Every part may import itself, `errors`, `schemas`, `tables` and `units`.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "schemas": set(),
    "tables": set(),
    "units": set(),
    "_version": set(),
    "findings": set(),
    "gic": set(),
    "readers": set(),
    "model": {"gic"},
    "observe": {"gic", "readers"},
    "saved_tables": {"gic", "readers", "observe"},
    "instants": {"readers"},
    "seed": {"gic", "readers", "saved_tables", "instants"},
    "replay": {"gic", "model", "observe", "readers", "seed"},
    "lives": {"observe", "replay"},
    "rules": {"findings", "gic", "model", "observe", "replay", "lives"},
    "baseline": {"findings"},
    "analysis": {"readers", "observe", "replay", "lives", "rules", "findings", "seed", "instants"},
    "compare": {"analysis"},
    "difference": {"analysis", "findings", "observe"},
    "verify": {"analysis", "compare", "gic", "instants", "readers", "saved_tables", "seed"},
    "report": {
        "_version",
        "analysis",
        "baseline",
        "findings",
        "gic",
        "observe",
        "readers",
        "rules",
        "verify",
        "compare",
        "difference",
        "instants",
    },
}
COMMON = {"errors", "schemas", "tables", "units"}
#: Rules look at observations; they may name what a capture lost (Damage), and never read one.
NEVER = {"rules": {"open_capture"}, "report": {"check", "registry"}}


def _imports(path: Path) -> set[tuple[str, str]]:
    """(part, name) of every import of our own package in a file."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("itstrace"):
            part = node.module.split(".")[1] if "." in node.module else ""
            found |= {(part or alias.name, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                (alias.name.split(".")[1], "") for alias in node.names if alias.name.startswith("itstrace.")
            }
    return found


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if _part(path) not in {"cli", "__init__"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    part = _part(path)
    assert part in ALLOWED, f"say in ALLOWED what {part} may import"
    wrong = {used for used, _ in _imports(path)} - ALLOWED[part] - COMMON - {part}

    assert wrong == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_reaches_where_it_must_not(path: Path) -> None:
    names = {name for _, name in _imports(path)}

    assert names & NEVER.get(_part(path), set()) == set()


@pytest.mark.parametrize("path", [p for p in FILES if _part(p) in {"gic", "model"}], ids=lambda p: p.name)
def test_the_model_is_pure(path: Path) -> None:
    """The architecture and its model import the standard library only, and nothing that reads a clock or a file."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.split(".")[0])

    assert modules <= {
        "__future__",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "itstrace",
        "re",
        "types",
        "typing",
    }


def test_only_the_command_line_prints() -> None:
    for path in FILES:
        calls = [
            node.func.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        assert "print" not in calls, path
