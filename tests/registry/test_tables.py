"""The tables of an embedded registry: whole or not there, whatever is killed when."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moon_ops.errors import ServiceError
from moon_ops.registry.registry import CHAMPION, Registry
from moon_ops.registry.tables import opened
from moon_ops.settings import Settings


def first_use(home: Path) -> subprocess.Popen[bytes]:
    code = "import sys; from moon_ops.registry.registry import Registry; from moon_ops.settings import Settings; "
    return subprocess.Popen([sys.executable, "-c", code + "Registry(Settings.from_environment(sys.argv[1]))", str(home)])


def changed(home: Path) -> bool:
    """Whether MLflow has begun to make tables, wherever it does so."""
    return any(found.stat().st_size for found in home.rglob("*.db") if found.is_file())


def test_a_first_use_killed_among_mlflows_changes_is_made_up_for(tmp_path: Path) -> None:
    home = tmp_path / "home"
    running = first_use(home)
    while not changed(home) and running.poll() is None:
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert Registry(Settings.from_environment(home)).alias(CHAMPION) is None
    assert [found.name for found in home.iterdir() if "mlflow.db" in found.name] == ["mlflow.db"], "and nothing is left"


def test_tables_in_place_are_not_made_again(tmp_path: Path) -> None:
    place, asked = tmp_path / "mlflow.db", list[str]()

    def connect(uri: str) -> str:
        asked.append(uri)
        with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as tables:
            tables.execute(f"CREATE TABLE of_{len(asked)} (number INTEGER)")
        return uri

    assert opened(f"sqlite:///{place}", connect) == f"sqlite:///{place}"
    assert opened(f"sqlite:///{place}", connect) == f"sqlite:///{place}"
    assert [Path(one).name for one in asked] == ["made.db", "mlflow.db", "mlflow.db"]
    with contextlib.closing(sqlite3.connect(place)) as tables:
        found = sorted(name for (name,) in tables.execute("SELECT name FROM sqlite_master"))
    assert found == ["of_1", "of_2", "of_3"], "what was made beside it is in it"


def test_half_made_tables_are_named(tmp_path: Path) -> None:
    """As a version of before left them that was killed, or somebody else's MLflow."""
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as tables:
        tables.execute("CREATE TABLE secrets (secret_id VARCHAR(36))")
    with pytest.raises(ServiceError, match=r"MLflow cannot open .*mlflow.db: .*table secrets already exists.* → .*remove .*mlflow.db"):
        Registry(Settings.from_environment(tmp_path))
