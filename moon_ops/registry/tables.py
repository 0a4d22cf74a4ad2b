"""An embedded registry's tables, made by MLflow in a file beside its place: SQLite commits each of MLflow's hundred changes by itself,
so a registry that was killed among them could not be opened again.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moon_ops.errors import ServiceError
from moon_ops.files import put


def opened(uri: str, connect: Callable[[str], Any]) -> Any:
    """What ``connect`` makes of the address ``sqlite:///…``, whose file is whole or not there, whatever is killed when.

    The caller holds a lock. :class:`ServiceError` for tables that MLflow cannot bring up to date.
    """
    from sqlalchemy.exc import DatabaseError

    place = Path(uri.removeprefix("sqlite:///"))
    try:
        if "%" not in uri and "?" not in uri and not (place.is_file() and place.stat().st_size):  # SQLAlchemy reads these two otherwise
            _make(place, connect)
        return connect(uri)
    except DatabaseError as fault:
        action = f"bring it back from a backup; if nothing was registered there yet, remove {place}"
        raise ServiceError(f"MLflow cannot open {place}: {str(fault.orig).splitlines()[0]}", action=action) from fault


def _make(place: Path, connect: Callable[[str], Any]) -> None:
    scratch = place.with_name(f".{place.name}-new")
    shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
    scratch.mkdir(parents=True)
    connect(f"sqlite:///{scratch / 'made.db'}")
    # a copy, because MLflow keeps open what it has made
    with contextlib.closing(sqlite3.connect(scratch / "made.db")) as made, contextlib.closing(sqlite3.connect(scratch / "copy.db")) as copy:
        made.backup(copy)
    put(scratch / "copy.db", place)
    shutil.rmtree(scratch)
