"""The house: which room may import which, how large a file may be, and that tests stand in the rooms of what they test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "moon_ops", ROOT / "tests"
BELOW = {  # room → the rooms it may import, besides itself: in the order data flows, each imports what stands above it
    "errors": set(),
    "shapes": set(),
    "processor": set(),
    "recipes": {"errors", "shapes"},
    "shops": {"errors"},
    "inputs": {"errors"},
    "lake": {"errors", "inputs"},
    "settings": {"errors", "lake"},
    "encoder": {"errors", "processor", "recipes", "inputs", "lake"},
    "embeddings": {"errors", "settings", "inputs", "lake"},
    "ctr": {"errors", "recipes", "inputs", "lake", "encoder", "embeddings"},
    "registry": {"errors", "settings"},
    "publication": {"errors", "settings", "inputs", "lake", "embeddings", "ctr", "registry"},
    "release": {"errors", "settings", "recipes", "inputs", "lake", "encoder", "embeddings", "ctr", "registry", "publication"},
    "studies": {"errors", "settings", "recipes", "inputs", "lake", "encoder", "ctr", "registry", "publication", "release"},
    "serving": {"errors", "settings", "inputs", "lake", "embeddings", "ctr", "registry", "publication", "release"},
    "tasks": {"errors", "settings", "lake", "embeddings", "ctr", "registry", "publication", "release"},
}
FRONT = {"cli", "__init__"}  # the command line and what only it calls: may import everything
FILES = sorted(PACKAGE.rglob("*.py"))
TEST_FILES = sorted(TESTS.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """All that a file imports anywhere in it, inside functions too: modules, and names of modules as if they were some."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("moon_ops.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    if here in FRONT:
        return
    assert here in BELOW, f"{path.name} stands in no room"
    assert imported_rooms(path) - {here} <= BELOW[here]


def test_rooms_are_what_the_map_says() -> None:
    assert {room(p) for p in FILES} == set(BELOW) | FRONT


def test_only_the_front_imports_the_front() -> None:
    assert not {p.name for p in FILES if room(p) not in FRONT and imported_rooms(p) & FRONT}


def test_no_two_files_import_each_other() -> None:
    """Not over others, and not inside a function either."""
    modules = {".".join(("moon_ops", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
    imports = {name: {m for m in imported(path) if m in modules} - {name} for name, path in modules.items()}
    for _ in modules:  # take away what imports nothing that is left
        ready = {name for name, needed in imports.items() if not needed}
        imports = {name: needed - ready for name, needed in imports.items() if name not in ready}
    assert not imports


def test_tests_stand_in_rooms() -> None:
    """A directory of tests is named like the room that they test; what tests no room, or a room of one file, lies beside them."""
    assert {p.parent.relative_to(TESTS).as_posix() for p in TEST_FILES} <= {".", "cli", *BELOW}


@pytest.mark.parametrize("path", [*FILES, *TEST_FILES], ids=lambda p: str(p.relative_to(PACKAGE if PACKAGE in p.parents else ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 320


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions if (f.end_lineno or 0) - f.lineno >= 40}


def test_no_file_name_says_nothing() -> None:
    assert not {p.name for p in FILES} & {"utils.py", "common.py", "helpers.py", "base.py", "misc.py"}
