"""The registry of an embedded home, read and moved in MLflow's own SQLite file without importing MLflow, which takes six CPU-seconds.

Only what an emergency needs: aliases, tags and places of versions. A file whose schema is another than those tried here is left to
MLflow's client.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

SCHEMAS = ("dc11669786a5",)  # revisions of MLflow's tables that the tests compare with its client: MLflow 3.17
PATIENCE = 30.0  # seconds that somebody else's write may take


class RegistryFile:
    """MLflow's tables in the file ``path``; made by :meth:`known`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def known(cls, uri: str) -> RegistryFile | None:
        """The registry that ``uri`` names; None unless it is a SQLite file with tables that are known here."""
        path = Path(uri.removeprefix("sqlite:///"))
        if not uri.startswith("sqlite:///") or "%" in uri or "?" in uri or not path.is_file():  # SQLAlchemy reads these two otherwise
            return None
        found = cls(path)
        try:
            with found._open() as tables:
                revisions = [revision for (revision,) in tables.execute("SELECT version_num FROM alembic_version")]
        except sqlite3.Error:
            return None
        return found if len(revisions) == 1 and revisions[0] in SCHEMAS else None

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
