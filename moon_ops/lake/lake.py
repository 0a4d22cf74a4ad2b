"""The lake itself: an address, the tables under it, and the locks among those who write there.

Arrow and Lance are imported where a table is touched: settings name a lake in commands that never open it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from moon_ops.errors import ServiceError, SettingsError, StageError
from moon_ops.files import TakenError, locked
from moon_ops.locks import among_machines

if TYPE_CHECKING:
    import lance
    import pyarrow as pa


def place(text: str) -> str:
    """What ``MOON_LAKE`` names: an address as it is, e.g. ``s3://shop/lake``, or a directory from the root on.

    Raises :class:`SettingsError` for what begins as an address and names no place, e.g. ``s3:`` or ``s3:/shop``, and would be a directory.
    """
    if re.match(r"[A-Za-z][\w+.-]+://[^/]|file:///", text):
        return text
    if (begun := re.match(r"([A-Za-z][\w+.-]+):(/|$)", text)) is not None:
        problem = f"MOON_LAKE = {text!r} begins like an address and names no place"
        raise SettingsError(problem, action=f"write {begun[1]}://BUCKET/PATH, or of a directory ./{text}")
    return str(Path(text).absolute())


@dataclass(frozen=True)
class Lake:
    """The address under which the tables lie, e.g. ``.moon/lake`` or ``s3://shop/lake``."""

    uri: str
    locks: SecretStr = field(default=SecretStr(""), repr=False, compare=False)  # where machines take turns

    @property
    def remote(self) -> bool:
        """Whether several machines can reach it: an object store, not a directory."""
        return "://" in self.uri

    def address(self, table: str) -> str:
        """Where ``table`` is, e.g. ``embeddings/v3`` → ``.moon/lake/embeddings/v3.lance``."""
        return f"{self.uri.rstrip('/')}/{table}.lance"

    def exists(self, table: str) -> bool:
        """Whether the table has ever been written; :class:`ServiceError` if the store cannot be asked."""
        return self._dataset(table) is not None

    def _dataset(self, table: str) -> lance.LanceDataset | None:
        """The table, or None if it is not there. A store that does not answer is no missing table: what is known would look new."""
        import lance

        try:
            return lance.dataset(self.address(table))
        except (ValueError, OSError) as fault:
            if "was not found" in str(fault) or "Not found" in str(fault):
                return None
            raise self._unreadable(fault) from fault

    def _unreadable(self, fault: Exception) -> ServiceError:
        said = re.sub(r", \S+\.rs:\d+:\d+", "", str(fault).splitlines()[0])  # a place in Lance's own source helps nobody
        return ServiceError(f"the lake at {self.uri} cannot be read ({said})", action="check the store")

    def open(self, table: str, *, needs: str = "moon ingest DIRECTORY") -> lance.LanceDataset:
        """The table at its newest version; a :class:`StageError` that names the command to run first when there is none."""
        found = self._dataset(table)
        if found is None:
            if table != "items" and not self.exists("items"):
                problem = f"the lake at {self.uri} has no table '{table}' yet, and no items"
                raise StageError(problem, action=f"run `{needs}` first; or, if there was a lake, is its disk mounted?")
            raise StageError(f"the lake at {self.uri} has no table '{table}' yet", action=f"run `{needs}` first")
        return found

    def frozen(self, table: str) -> Lake:
        """The lake with ``table`` as it is now, whatever is written to it later."""
        return _Frozen(self.uri, self.locks, table, self._dataset(table))

    def under(self, directory: str) -> list[str]:
        """The tables in a directory of the lake, e.g. ``v1``, ``v2`` of ``embeddings``; none if there is no such directory."""
        from lance.namespace import DirectoryNamespace, ListTablesRequest

        try:
            return sorted(DirectoryNamespace(root=f"{self.uri.rstrip('/')}/{directory}").list_tables(ListTablesRequest(id=[])).tables)
        except OSError as fault:
            raise self._unreadable(fault) from fault

    def one_writer(self, patience: float | None = None) -> contextlib.AbstractContextManager[None]:
        """Wait until nobody else takes items in or maintains the lake; :class:`ServiceError` after ``patience`` seconds, if given."""
        return self._locked("ingest.lock", patience)

    def pushing(self, patience: float) -> contextlib.AbstractContextManager[None]:
        """Wait until nobody else pushes items over HTTP: who changes a part of an item reads the whole first. Like :meth:`one_writer`."""
        return self._locked("pushes.lock", patience)

    def erasing(self, *, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Erase an item while nobody writes what was derived from it; whoever does so is in a ``shared`` block of this."""
        return self._locked("erasure.lock", None, shared=shared)

    def deriving(self, table: str) -> contextlib.AbstractContextManager[None]:
        """Wait until nobody else derives ``table``."""
        return self._locked(f"derive-{table.rpartition('/')[2]}.lock", None)

    def turn(self, name: str, *, shared: bool = False, patience: float | None = None) -> contextlib.AbstractContextManager[None]:
        """Wait until no other machine does what ``name`` says; of one machine alone nothing is held. :class:`TakenError` as in files."""
        return among_machines(self.locks.get_secret_value(), f"{self.uri}/{name}", shared=shared, patience=patience)

    @contextlib.contextmanager
    def _locked(self, name: str, patience: float | None, *, shared: bool = False) -> Iterator[None]:
        """Hold a lock among the processes of this machine, or of all machines if a server of locks is named."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self.turn(name, shared=shared, patience=patience))
                if not self.remote:
                    place = Path(self.uri)
                    place.mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(place / name, shared=shared, patience=patience))
            except TakenError:
                problem = f"somebody else has been writing to the lake for {patience:g} seconds"
                raise ServiceError(problem, action="try again later") from None
            yield

    def append(self, table: str, rows: pa.Table) -> int:
        """Commit ``rows`` atomically and return how many; an empty table still creates the dataset."""
        import lance

        there = self.exists(table)
        if rows.num_rows or not there:
            lance.write_dataset(rows, self.address(table), mode="append" if there else "create")
        return rows.num_rows

    def evolve(self, table: str) -> None:
        """Give a shop's table the columns that have come into its schema since it was made; they are null in the rows that it has."""
        from moon_ops.lake.schemas import SCHEMAS

        there = self._dataset(table)
        if there is not None and (new := [f for f in SCHEMAS[table] if f.name not in there.schema.names]):
            there.add_columns(new)

    def read(self, table: str, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
        """All rows in the order they were written; empty, with the right schema, for a shop's table not written yet.

        A column of the schema that a table of an earlier version does not have yet (:meth:`evolve`) is null.
        """
        from moon_ops.lake.schemas import SCHEMAS

        if table in SCHEMAS and not self.exists(table):
            schema = SCHEMAS[table]
            return schema.empty_table().select(list(columns) if columns else schema.names)
        found = self.open(table)
        names = list(columns) if columns else found.schema.names
        return completed(found.to_table(columns=[n for n in names if n in found.schema.names], filter=where), table, names)

    def count(self, table: str) -> int:
        """Rows of the table, 0 when it has not been written."""
        return self.open(table).count_rows() if self.exists(table) else 0


@dataclass(frozen=True)
class _Frozen(Lake):
    """A lake of which one table stays as it was."""

    table: str = ""
    then: lance.LanceDataset | None = None

    def _dataset(self, table: str) -> lance.LanceDataset | None:
        return self.then if table == self.table else super()._dataset(table)


def completed(rows: pa.Table, table: str, columns: Sequence[str]) -> pa.Table:
    """The ``columns`` of a shop's table; null where ``rows``, of a table that an earlier version has made, do not have one."""
    import pyarrow

    from moon_ops.lake.schemas import SCHEMAS

    for name in (name for name in columns if name not in rows.schema.names):
        rows = rows.append_column(name, pyarrow.nulls(rows.num_rows, SCHEMAS[table].field(name).type))
    return rows.select(list(columns))
