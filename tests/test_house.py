"""The house: which room may import which, and how large a file may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "moon_ops"
BELOW = {  # room → the rooms it may import, besides itself
    "errors": set(),
    "lake": {"errors"},
    "settings": {"errors", "lake"},
    "shapes": set(),
    "processor": set(),
    "recipes": {"errors", "shapes"},
    "encoder": {"errors", "processor", "recipes", "lake"},
    "embeddings": {"errors", "settings", "lake"},
    "ctr": {"errors", "recipes", "lake", "encoder", "embeddings"},
    "release": {"errors", "settings", "recipes", "lake", "encoder", "embeddings", "ctr"},
    "serving": {"errors", "settings", "lake", "encoder", "embeddings", "ctr", "release"},
}
FRONT = {
    "cli",
    "studies",
    "production",
    "terminal",
    "demo",
    "trial",
    "doctor",
    "standalone",
    "__init__",
}  # the command line and what only it calls: may import everything
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports anywhere in it, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("moon_ops.")}
    return found


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 320


def test_no_file_name_says_nothing() -> None:
    assert not {p.name for p in FILES} & {"utils.py", "common.py", "helpers.py", "base.py", "misc.py"}
