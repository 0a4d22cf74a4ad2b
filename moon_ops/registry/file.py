"""The registry of an embedded home, read and moved in MLflow's own SQLite file without importing MLflow, which takes six CPU-seconds.

Only what an emergency needs: aliases, tags and places of versions. A file whose schema is another than those tried here is left to
MLflow's client.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from moon_ops.errors import ServiceError

SCHEMAS = ("dc11669786a5",)  # revisions of MLflow's tables that the tests compare with its client: MLflow 3.17
PATIENCE = 30.0  # seconds that somebody else's write may take


class RegistryFile:
    """MLflow's tables in the file ``path``; made by :meth:`known`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def known(cls, uri: str) -> RegistryFile | None:
        """The registry that ``uri`` names; None unless it is a SQLite file with tables that are known here. :class:`ServiceError` for one
        that somebody else holds.
        """
        path = Path(uri.removeprefix("sqlite:///"))
        if not uri.startswith("sqlite:///") or "%" in uri or "?" in uri or not path.is_file():  # SQLAlchemy reads these two otherwise
            return None
        found = cls(path)
        try:
            with found._open() as tables:
                revisions = [revision for (revision,) in tables.execute("SELECT version_num FROM alembic_version")]
        except sqlite3.Error as fault:
            if "locked" not in str(fault):
                return None
            problem = f"{path} is locked: another process has been writing to it for {PATIENCE:g} seconds; nothing is lost"
            raise ServiceError(problem, action="end that process, or wait for it, and run it again") from fault
        return found if len(revisions) == 1 and revisions[0] in SCHEMAS else None

    @staticmethod
    def is_database(path: Path) -> bool:
        """Whether SQLite can read the file, all of it that tells what tables there are."""
        try:
            with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as tables:
                tables.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as fault:
            return "locked" in str(fault)
        return True

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection that makes no file; what was written in the block is committed at once."""
        with contextlib.closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=PATIENCE)) as tables:
            tables.isolation_level = None
            yield tables

    def place(self, name: str, version: int) -> str:
        """The address of the files of a version that is there."""
        asked = "SELECT storage_location, source FROM model_versions WHERE workspace = 'default' AND name = ? AND version = ?"
        with self._open() as tables:
            stored, source = tables.execute(asked, (name, version)).fetchone()
        return str(stored or source)

    def tags(self, name: str, version: int) -> dict[str, str]:
        """The version's tags."""
        asked = "SELECT key, value FROM model_version_tags WHERE workspace = 'default' AND name = ? AND version = ?"
        with self._open() as tables:
            return dict(tables.execute(asked, (name, version)))

    def running(self) -> dict[str, tuple[str, int]]:
        """The runs that nobody has closed, by id: their name, and when they began [ms]."""
        asked = "SELECT run_uuid, name, start_time FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'"
        with self._open() as tables:
            return {run_id: (name or "", begun) for run_id, name, begun in tables.execute(asked)}

    def versions(self, name: str) -> list[int]:
        """The versions of a model, ascending."""
        asked = "SELECT version FROM model_versions WHERE workspace = 'default' AND name = ? AND current_stage != 'Deleted_Internal'"
        with self._open() as tables:
            return sorted(version for (version,) in tables.execute(asked, (name,)))

    def alias(self, name: str, alias: str) -> int | None:
        """The version that the alias points to, None if there is none."""
        asked = "SELECT version FROM registered_model_aliases WHERE workspace = 'default' AND name = ? AND alias = ?"
        with self._open() as tables:
            row = tables.execute(asked, (name, alias)).fetchone()
        return int(row[0]) if row and row[0] in self.versions(name) else None

    def point(self, name: str, alias: str, version: int) -> None:
        """Let the alias point to a version that is there."""
        moved = "INSERT OR REPLACE INTO registered_model_aliases (workspace, name, alias, version) VALUES ('default', ?, ?, ?)"
        with self._open() as tables:
            tables.execute(moved, (name, alias, version))

    def tag(self, name: str, version: int, key: str, value: str) -> None:
        """Give a version that is there a tag."""
        told = "INSERT OR REPLACE INTO model_version_tags (workspace, name, version, key, value) VALUES ('default', ?, ?, ?, ?)"
        with self._open() as tables:
            tables.execute(told, (name, version, key, value))

    def append(self, name: str, source: str, tags: Mapping[str, str], description: str) -> int:
        """A new version without files, with the next number of the model, which is made if it is not there; all of it or nothing."""
        now = int(time.time() * 1000)
        model = "INSERT OR IGNORE INTO registered_models (workspace, name, creation_time, last_updated_time) VALUES ('default', ?, ?, ?)"
        made = (
            "INSERT INTO model_versions (workspace, name, version, creation_time, last_updated_time, description, source, current_stage,"
            " status) VALUES ('default', ?, ?, ?, ?, ?, ?, 'None', 'READY')"
        )
        tagged = "INSERT INTO model_version_tags (workspace, name, version, key, value) VALUES ('default', ?, ?, ?, ?)"
        newest = "SELECT coalesce(max(version), 0) FROM model_versions WHERE workspace = 'default' AND name = ?"
        with self._open() as tables:
            tables.execute("BEGIN IMMEDIATE")  # one writer at a time, from before the number is read
            try:
                tables.execute(model, (name, now, now))
                number = int(tables.execute(newest, (name,)).fetchone()[0]) + 1
                tables.execute(made, (name, number, now, now, description, source))
                tables.executemany(tagged, [(name, number, key, value) for key, value in tags.items()])
                tables.execute("COMMIT")
            except BaseException:
                tables.execute("ROLLBACK")
                raise
        return number
