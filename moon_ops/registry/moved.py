"""A home that was moved or copied: MLflow keeps absolute addresses, and they name the place where the home was first.

When a registry in a home is opened, its addresses are compared with where it lies now and mended, all of them in one transaction. What
cannot be written is read where it would be after that. So a moved home works, and a copied one reads and writes its own files alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
from pathlib import Path

from moon_ops.files import put

ROOT = "mlartifacts"  # of the files of all versions, in a home
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
PATIENCE = 5.0  # seconds that somebody else's write may take; then it is left to the next command


def settle(uri: str, home: Path) -> str:
    """Let the addresses in an embedded registry's file name this home's files; where they named them before, empty if none was wrong.

    Only of a registry that lies in its home: one beside it may serve several. A broken file is left to whoever reads it.
    """
    database = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not database.is_file() or database.parent.resolve() != home.resolve():
        return ""
    with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(_opened(database)) as tables:
        before = _elsewhere(tables, home)
        if before and all(os.access(place, os.W_OK) for place in (database, home)):
            _bring(tables, before, home)
            _rename(tables, before, home)
            return before[0]
    return ""


def _opened(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=PATIENCE)


def _rename(tables: sqlite3.Connection, before: list[str], home: Path) -> None:
    with tables:  # one transaction: all addresses, or none
        tables.execute("BEGIN IMMEDIATE")
        for table, column in ADDRESSES:
            for old in before:
                ours = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?"
                tables.execute(ours, (str(home / ROOT), len(old) + 1, old, len(old) + 1, f"{old}/"))


def here(home: Path, address: str) -> str:
    """The address of a version's files as it is in this home, whichever home it was written in; others stay as they are."""
    if not address.startswith("/") or f"/{ROOT}/" not in address or Path(address).is_relative_to(home / ROOT):
        return address
    return str(home / ROOT / address.rpartition(f"/{ROOT}/")[2])


def _elsewhere(tables: sqlite3.Connection, home: Path) -> list[str]:
    """Where experiments keep their files, if that is another home's place for them; not this home's by another name."""
    found = [str(place) for (place,) in tables.execute("SELECT DISTINCT artifact_location FROM experiments")]
    ours = home / ROOT
    others = [place for place in found if place.startswith("/") and Path(place).name == ROOT and place != str(ours)]
    return [place for place in others if not (ours.exists() and Path(place).exists() and ours.samefile(place))]


def _bring(tables: sqlite3.Connection, before: list[str], home: Path) -> None:
    """Copy the files of versions that this registry knows and only the other home has: a copied home once wrote them there."""
    for (source,) in tables.execute("SELECT source FROM model_versions").fetchall():
        ours = Path(here(home, str(source)))
        theirs = Path(str(source))
        if any(theirs.is_relative_to(old) for old in before) and not ours.exists() and theirs.is_dir():
            scratch = ours.with_name(f".{ours.name}-{os.getpid()}-{threading.get_ident()}")
            shutil.copytree(theirs, scratch, dirs_exist_ok=True)
            try:
                put(scratch, ours)
            except OSError:  # somebody else was quicker
                if not ours.is_dir():
                    raise
                shutil.rmtree(scratch)
