"""The house: which room may import which, how large a file may be, and that tests stand in the rooms of what they test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "moon_ops", ROOT / "tests"
TRAINED = {"encoder", "embeddings", "ctr", "registry"}
JUDGING = {"errors", "files", "metric_names", "pieces", "columns", "settings", "recipes", "inputs", "lake"} | TRAINED
BELOW = {  # room → the rooms it may import, besides itself: in the order data flows, each imports what stands above it
    "errors": set(),
    "shapes": set(),
    "processor": set(),
    "startup": {"processor"},
    "dealing": {"errors", "startup"},
    "sessions": set(),
    "pieces": {"errors", "files"},
    "ranks": {"pieces"},
    "metric_names": set(),
    "telemetry": set(),
    "files": {"errors"},
    "locks": {"errors", "files"},
    "columns": {"errors", "shapes"},
    "recipes": {"errors", "shapes", "columns"},
    "inputs": {"errors"},
    "lake": {"errors", "dealing", "files", "locks", "pieces", "columns", "recipes", "inputs", "telemetry"},
    "shops": {"errors", "files", "processor", "lake"},
    "shard_places": {"errors"},
    "settings": {"errors", "dealing", "shard_places", "processor", "lake", "telemetry"},
    "alerts": {"settings"},
    "encoder": {"errors", "dealing", "files", "processor", "metric_names", "sessions", "ranks", "recipes", "inputs", "lake"},
    "embeddings": {"errors", "dealing", "startup", "sessions", "files", "pieces", "columns", "settings", "inputs", "lake", "telemetry"},
    "ctr": {
        "errors",
        "dealing",
        "files",
        "pieces",
        "metric_names",
        "sessions",
        "columns",
        "recipes",
        "inputs",
        "lake",
        "encoder",
        "embeddings",
    },
    "registry": {"errors", "files", "metric_names", "settings"},
    "publication": {"errors", "files", "columns", "settings", "recipes", "inputs", "lake", "embeddings", "ctr", "registry", "telemetry"},
    "release": JUDGING | {"ranks", "alerts", "publication", "telemetry"},
    "studies": JUDGING | {"publication", "release"},
    "client": {"errors"},
    "serving": {
        "errors",
        "files",
        "metric_names",
        "columns",
        "settings",
        "inputs",
        "lake",
        "embeddings",
        "ctr",
        "registry",
        "publication",
        "release",
        "telemetry",
    },
    "tasks": {"errors", "alerts", "startup", "recipes", "settings", "lake", "embeddings", "ctr", "registry", "publication", "release"},
}
STARTUP = "startup.py"  # the one file that may change the process it runs in
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


def test_shops_know_how_files_are_read_and_no_lake() -> None:
    """They write what anybody could have written."""
    known = {name for path in FILES if room(path) == "shops" for name in imported(path) if name.startswith("moon_ops.lake.")}
    assert not {name for name in known if not name.startswith(("moon_ops.lake.reading", "moon_ops.lake.meanings", "moon_ops.lake.schemas"))}


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
    """A directory of tests is named like the room that they test; what tests no room, or a room of one file, lies beside them.

    ``stack``: docker-compose.yml and what lies in deploy/.
    """
    assert {p.parent.relative_to(TESTS).as_posix() for p in TEST_FILES} <= {".", "cli", "stack", *BELOW}


@pytest.mark.parametrize("path", [*FILES, *TEST_FILES], ids=lambda p: str(p.relative_to(PACKAGE if PACKAGE in p.parents else ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 320


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions if (f.end_lineno or 0) - f.lineno >= 40}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_take_few_parameters(path: Path) -> None:
    """At most eight beside self; a command of the terminal has an option for each."""
    found = {}
    for f in [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]:
        names = [a.arg for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)]
        if not any("app.command" in ast.unparse(decorator) for decorator in f.decorator_list):
            found[f.name] = len(names) - (names[:1] in (["self"], ["cls"]))
    assert not {name: count for name, count in found.items() if count > 8}


def test_no_file_name_says_nothing() -> None:
    assert not {p.name for p in FILES} & {"utils.py", "common.py", "helpers.py", "base.py", "misc.py"}


OF_MODULES = {"atexit", "os.environ", "os.putenv", "os.unsetenv", "warnings.filterwarnings", "warnings.simplefilter", "ibis.set_backend"}
CHANGING = {"os.putenv", "os.unsetenv", "ibis.set_backend", "warnings.resetwarnings"}
CHANGING |= {f"os.environ.{name}" for name in ("setdefault", "update", "pop", "popitem", "clear", "__setitem__", "__delitem__")}
FILTERS = {"warnings.filterwarnings", "warnings.simplefilter"}
HELD = ("os.environ", "ibis.options", "warnings.filters")  # what nothing is assigned to


def global_changes(source: str) -> list[str]:
    """What a file does to the process it runs in: its environment, its warnings outside a block of their own, its end, ibis's options."""
    found: list[str] = []
    tree = ast.parse(source)
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With) and "catch_warnings" in ast.unparse(node.items[0])]
    within = {id(node) for block in blocks for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in OF_MODULES]
        elif isinstance(node, ast.ImportFrom):  # by their own names they would not be seen below
            found += [name for alias in node.names if (name := f"{node.module}.{alias.name}") in OF_MODULES or node.module == "atexit"]
        elif isinstance(node, ast.Assign | ast.Delete | ast.AugAssign):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            found += [name for target in targets if (name := ast.unparse(target)).startswith(HELD)]
        elif isinstance(node, ast.Call):
            name, first = ast.unparse(node.func), ast.unparse(node.args[0]) if node.args else ""
            if name in CHANGING or (name in FILTERS and id(node) not in within) or (name == "setattr" and first in HELD):
                found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_one_file_alone_changes_its_process(path: Path) -> None:
    found = global_changes(path.read_text())
    assert bool(found) is (path == PACKAGE / STARTUP), found


@pytest.mark.parametrize("path", [p for p in FILES if room(p) != "cli"], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_importing_a_file_does_nothing(path: Path) -> None:
    """It defines; a call that stands alone is there for its effect, on a class of the file at most."""
    body = ast.parse(path.read_text()).body
    alone = [ast.unparse(node.value) for node in body if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)]
    assert not [call for call in alone if call.split(".")[0] not in {node.name for node in body if isinstance(node, ast.ClassDef)}]


@pytest.mark.parametrize(
    "line",
    [
        "os.environ['A'] = 'b'",
        "del os.environ['A']",
        "os.environ |= {'A': 'b'}",
        "os.environ.setdefault('A', 'b')",
        "os.environ.update(A='b')",
        "os.putenv('A', 'b')",
        "from os import environ",
        "import atexit",
        "from atexit import register",
        "warnings.simplefilter('ignore')",
        "with open('a'):\n    warnings.filterwarnings('ignore')",
        "ibis.set_backend('duckdb')",
        "ibis.options.interactive = True",
        "setattr(ibis.options, 'interactive', True)",
    ],
)
def test_a_change_of_the_process_is_seen(line: str) -> None:
    assert global_changes(line)


def test_warnings_in_a_block_and_environments_of_others_are_no_change() -> None:
    within = "with warnings.catch_warnings():\n    warnings.simplefilter('ignore')"
    given = "subprocess.run(command, env={**os.environ, 'A': 'b'})"
    assert not global_changes(f"{within}\n{given}\nhome = os.environ.get('HOME')")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_settings_alone_read_our_variables(path: Path) -> None:
    """A variable that another file reads would be in no table, and a wrong value of it in no message."""
    read = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call | ast.Subscript)]
    assert not [said for node in read if re.match(r"os\.(getenv|environ(\.get)?)[(\[]'MOON_", said := ast.unparse(node))]
