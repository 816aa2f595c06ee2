"""Dependencies point down only, as the design draws them; read from the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "configs": {"configs"},
    "checkpoint": {"configs", "checkpoint"},
    "inference": {"configs", "checkpoint", "inference"},
    "convert": {"configs", "checkpoint", "convert"},
}
# The rooms of convert that ask inference to run a model; no other may.
ASKING = {("convert", "quality"), ("convert", "calibration")}
MODULES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    package, room = path.relative_to(ROOT).parts[:2]
    may = MAY_IMPORT[package] | ({"inference"} if (package, room) in ASKING else set())
    assert imported(path) & MAY_IMPORT.keys() <= may


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_say_what_they_own(path: Path) -> None:
    text = path.read_text("utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 350
