"""A full disk, a locked database and a closed place end in one sentence, and nothing that was there before is lost."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import sqlalchemy.exc
from safetensors import SafetensorError

from moon_ops.cli.faults import told
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.settings import Settings

FULL, LOCKED = "the disk is full", "the database is locked"


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/shop/lake/x"), f"{FULL} (/shop/lake/x): `moon embed` did not end"),
        (OSError("LanceError(IO): No space left on device (os error 28)"), f"{FULL}: `moon embed` did not end"),
        (sqlite3.OperationalError("database or disk is full"), f"{FULL}: `moon embed` did not end"),
        (sqlite3.OperationalError("database is locked"), f"{LOCKED}: another process has been writing to it for too long"),
        (sqlalchemy.exc.OperationalError("UPDATE", {}, sqlite3.OperationalError("database is locked")), LOCKED),
        (PermissionError(errno.EACCES, "Permission denied", "/shop/x"), "a file cannot be written or read (/shop/x): `moon embed` did"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
        (RuntimeError("write error in /shop/index.faiss: 20971475 != 51200000 (No space left on device)"), FULL),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), FULL),
        (OSError("Not enough free space to write 72000000 bytes after offset 128"), FULL),
        (OSError("9000000 requested and 262144 written"), FULL),
        (duckdb.IOException('IO Error: Could not write file "/shop/x": No space left on device'), FULL),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "a file cannot be written or read: `moon"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "a file cannot be written or read: `moon embed` did not end"),
    ],
    ids=[
        "disk",
        "lance",
        "sqlite",
        "locked",
        "sqlalchemy",
        "permission",
        "safetensors",
        "faiss",
        "torch",
        "numpy",
        "numpy's older",
        "duckdb",
        "temporary",
        "readonly",
    ],
)
def test_a_fault_of_the_machine_is_told(fault: Exception, problem: str) -> None:
    found = told(fault, "moon embed")
    assert found is not None
    assert found.problem.startswith(problem)
    assert "what was finished before is kept, nothing is lost → " in str(found)
    wrapped = RuntimeError("the registry cannot be written")
    wrapped.__cause__ = fault
    assert str(told(wrapped, "moon embed")) == str(found)


@pytest.mark.parametrize("fault", [ValueError("database is locked"), OSError(errno.ENOENT, "No such file", "/x"), RuntimeError("boom")])
def test_a_fault_of_ours_keeps_its_traceback(fault: Exception) -> None:
    assert told(fault, "moon embed") is None


def moon(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "moon_ops.cli", *words], capture_output=True, text=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_an_ingest_on_a_full_disk(small_disk: Path, shop: Path, lake: Lake, tmp_path: Path) -> None:
    full = moon("ingest", str(shop), "--home", str(small_disk))
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("moon: ")]
    assert line.startswith("moon: the disk is full")
    assert line.endswith("`moon ingest` did not end; what was finished before is kept, nothing is lost → make room, and run it again")
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert moon("ingest", str(shop), "--home", str(small_disk)).returncode == 0
    again = ingest(shop, Lake(str(small_disk / "lake")), now=lake.read("items", ["created"])["created"][0].as_py())
    assert (again.items, again.events) == (0, 0)
    assert Lake(str(small_disk / "lake")).count("items") == lake.count("items")


def test_a_locked_registry(copied: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from moon_ops.cli import main
    from moon_ops.registry import file, moved

    for part in (file, moved):
        monkeypatch.setattr(part, "PATIENCE", 0.2)
    monkeypatch.setattr(main, "start", lambda: None)
    monkeypatch.setattr(main, "stop_at_once", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["moon", "promote", "1", "--home", str(copied.home)])
    (copied.home / "moves.lock").touch()
    with contextlib.closing(sqlite3.connect(copied.home / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SystemExit) as ended:
            main.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        f"moon: {copied.home}/mlflow.db is locked: another process has been writing to it for 0.2 seconds; nothing is lost"
        " → end that process, or wait for it, and run it again\n"
    )
