"""What a command imports, seen in a process of its own: nothing heavy before it is needed. Held by names, not by a clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from moon_ops import startup
from moon_ops.registry.registry import CHAMPION, PREVIOUS, Registry
from moon_ops.release import promotion
from moon_ops.settings import Settings

HEAVY = {"torch", "transformers", "feast", "mlflow", "pandas", "scipy", "sklearn", "sqlalchemy", "ray", "matplotlib", "onnxruntime"}
TABLES = {"lance", "pyarrow", "numpy", "faiss", "duckdb"}
PROCESS = """
import json, sys
from moon_ops.cli.main import app, main
ended = 0
try:
    {run}
except SystemExit as end:
    ended = end.code or 0
print("IMPORTED", json.dumps([ended, sorted(sys.modules)]))
"""
HELP = """
    import click, typer
    for words in {commands}:
        try:
            typer.main.get_command(app)([*words, "--help"])
        except SystemExit:
            pass
"""
REQUESTS = """
    import httpx
    from moon_ops.cli.main import NEEDLESS
    from moon_ops.settings import Settings
    from moon_ops.cli.terminal import Without
    Without.start(NEEDLESS["serve"])
    from moon_ops.cli.trial import running
    picture = open({picture!r}, "rb").read()
    with running(Settings.from_environment()) as client:
        for path, asked in (("search", dict(files=dict(image=picture))), ("search", dict(data=dict(text="red lamp"))),
                            ("score", dict(json=dict(user_id=1, item_ids=[1, 2], text="red lamp")))):
            client.post("/v1/" + path, **asked).raise_for_status()
"""


def imported(run: str, home: Path) -> tuple[int, set[str]]:
    """Exit code of ``run`` in a new process, and the packages and modules that it has imported at its end."""
    variables = {"MOON_HOME": str(home), "PATH": "/usr/bin:/bin", "HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", PROCESS.format(run=run)], env=variables, capture_output=True, text=True, timeout=300)
    said = [line for line in done.stdout.splitlines() if line.startswith("IMPORTED ")]
    assert said, done.stderr
    ended, names = json.loads(said[0].removeprefix("IMPORTED "))
    return ended, set(names)


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    from typer.main import get_command

    from moon_ops.cli.main import app

    tree: Any = get_command(app)
    commands = [[], *([name] for name in tree.commands), *(["study", name] for name in tree.commands["study"].commands)]
    assert len(commands) > 20
    _, names = imported(HELP.strip("\n").replace("    ", "", 1).format(commands=commands), tmp_path)
    assert not names & (HEAVY | TABLES)


@pytest.mark.parametrize("command", ["status", "promote 1", "rollback --to 1"])
def test_a_command_in_a_hurry_opens_tables_and_nothing_else(copied: Settings, command: str) -> None:
    """The registry's file is read without MLflow's client, vectors are found without Feast, and Arrow does without pandas."""
    Registry(copied).point(PREVIOUS, 1)
    ended, names = imported(f"sys.argv = ['moon', *{command.split()}]; main()", copied.home)
    assert ended == 0
    assert "lance" in names
    assert not names & (HEAVY | {"lance.namespace", "duckdb"})
    assert Registry(copied).alias(CHAMPION) == 1


def test_a_rollback_that_moves_asks_how_fresh_the_release_is_and_imports_no_more(copied: Settings, make_release: Any) -> None:
    version, registry = make_release(), Registry(copied)
    promotion.promote(copied, version, promotion.Wish("test", "2026-06-02T00:00:00+00:00"))
    ended, names = imported("sys.argv = ['moon', 'rollback']; main()", copied.home)
    assert ended == 0
    assert "moon_ops.release.freshness" in names
    assert not names & (HEAVY | {"lance.namespace", "duckdb"})
    assert registry.alias(CHAMPION) == 1


@pytest.mark.parametrize("command", ["moves", "explain 1", "diff 1 1"])
def test_a_command_that_reads_the_registry_opens_nothing_else(copied: Settings, command: str) -> None:
    ended, names = imported(f"sys.argv = ['moon', *{command.split()}]; main()", copied.home)
    assert ended == 0
    assert not names & (HEAVY | {"lance", "duckdb", "numpy"})


def test_the_service_answers_without_torch(copied: Settings, lake: Any, tmp_path: Path) -> None:
    """Search by picture and by text, and scores; Feast would import torch only because it is installed."""
    picture = next(lake.open("images").to_batches(columns=["bytes"], limit=1))["bytes"][0].as_py()
    (tmp_path / "photo").write_bytes(picture)
    ended, names = imported(REQUESTS.strip("\n").replace("    ", "", 1).format(picture=str(tmp_path / "photo")), copied.home)
    assert ended == 0
    assert {"onnxruntime", "feast", "faiss"} <= names
    unwanted = {"torch", "transformers", "sentence_transformers", "accelerate", "mlflow.tracking", "ray", "airflow", "matplotlib"}
    assert not names & unwanted


def test_what_a_command_does_without_is_not_warned_of(tmp_path: Path) -> None:
    """MLflow's client of a server looks for everybody's request headers, and Feast's would import pandas."""
    code = "from moon_ops.cli.terminal import Without; from moon_ops.startup import start; start(); Without.start(['pandas']); "
    code += "import mlflow.tracking.request_header.registry"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "request header" not in done.stderr


@pytest.mark.parametrize(
    ("given", "own", "spins", "threads"),
    [
        ({}, 2, "3000", "2"),
        ({}, 64, "3000", None),
        ({"OMP_NUM_THREADS": "8", "GOMP_SPINCOUNT": "1"}, 2, "1", "8"),
        ({"OMP_WAIT_POLICY": "active"}, 64, None, None),
    ],
)
def test_threads_leave_other_work_its_cores(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], own: int, spins: str | None, threads: str | None
) -> None:
    """On a machine of 64 cores, of which a container may use ``own``; what somebody has set stays."""
    monkeypatch.setattr(startup, "bound", lambda: 64)
    monkeypatch.setattr(startup, "cores", lambda: own)
    with mock.patch.dict(os.environ, given):
        for name in {"OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} - set(given):
            os.environ.pop(name, None)
        startup.start()
        assert (os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_NUM_THREADS")) == (spins, threads)
