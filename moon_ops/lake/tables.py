"""The lake's tables: their schemas, and reading and appending to them. Nothing is edited in place.

A table is a Lance dataset under the lake's address (a directory, or an object store). Appends commit atomically, so a reader
sees all rows of a commit or none, and a killed writer leaves nothing behind that a reader could meet.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
from lance.namespace import DirectoryNamespace, ListTablesRequest

from moon_ops.errors import ServiceError, StageError

EVENTS = ("impression", "click", "cart", "purchase")
STAMP = pa.timestamp("us", tz="UTC")
STRINGS = pa.list_(pa.string())
VALIDITY = ("item_id", "event_timestamp", "created", "status")  # of an item version
POLL = 0.05  # seconds between two tries for a lock
PRIMARY = {b"lance-schema:unenforced-primary-key": b"true"}  # Lance compares the keys of commits that overlap; timestamps it does not see


def _schema(*fields: pa.Field[Any]) -> pa.Schema:
    return pa.schema(fields)


SCHEMAS = {  # the tables a shop fills; per-encoder tables are named embeddings/v<N>
    "items": _schema(
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("spu_id", pa.int64(), nullable=False),
        pa.field("source_id", pa.string()),
        pa.field("title", pa.string(), nullable=False),
        pa.field("category", STRINGS),  # root → leaf
        pa.field("brand", pa.string()),
        pa.field("description", pa.string()),
        pa.field("attributes", pa.map_(pa.string(), pa.string())),
        pa.field("seller_id", pa.int64()),
        pa.field("price", pa.float64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("image_ids", STRINGS),
        pa.field("content_hash", pa.string(), nullable=False),  # of all that an encoder reads
        pa.field("event_timestamp", STAMP, nullable=False),  # valid from
        pa.field("created", STAMP, nullable=False),  # learned at
    ),
    "images": _schema(
        pa.field("image_id", pa.string(), nullable=False),  # sha256 of the bytes
        pa.field("bytes", pa.large_binary(), nullable=False),
        pa.field("format", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("phash", pa.string()),
        pa.field("created", STAMP),
    ),
    "queries": _schema(
        pa.field("query_id", pa.int64(), nullable=False),
        pa.field("source_id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("image_id", pa.string()),
        pa.field("event_timestamp", STAMP, nullable=False),
        pa.field("created", STAMP),
    ),
    "events": _schema(
        pa.field("event_timestamp", STAMP, nullable=False),
        pa.field("user_id", pa.int64()),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("query_id", pa.int64()),
        pa.field("event", pa.string(), nullable=False),
        pa.field("session_id", pa.int64()),
        pa.field("position", pa.int32()),
        pa.field("created", STAMP),
    ),
    "quarantine": _schema(
        pa.field("source", pa.string()),  # file and row number
        pa.field("row", pa.string()),  # the refused row, as JSON
        pa.field("column", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("created", STAMP),
    ),
}


def embeddings_schema(dim: int) -> pa.Schema:
    """One row is the vector [dim] of one item version; the encoder is in the table's name, its contract in the metadata."""
    return _schema(
        pa.field("version_id", pa.string(), nullable=False, metadata=PRIMARY),  # of the three that name an item version
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
        pa.field("event_timestamp", STAMP, nullable=False),
        pa.field("created", STAMP, nullable=False),
    )


@dataclass(frozen=True)
class Lake:
    """The address under which the tables lie, e.g. ``.moon/lake`` or ``s3://shop/lake``."""

    uri: str

    def address(self, table: str) -> str:
        """Where ``table`` is, e.g. ``embeddings/v3`` → ``.moon/lake/embeddings/v3.lance``."""
        return f"{self.uri.rstrip('/')}/{table}.lance"

    def exists(self, table: str) -> bool:
        """Whether the table has ever been written; :class:`ServiceError` if the store cannot be asked."""
        return self._dataset(table) is not None

    def _dataset(self, table: str) -> lance.LanceDataset | None:
        """The table, or None if it is not there. A store that does not answer is no missing table: what is known would look new."""
        try:
            return lance.dataset(self.address(table))
        except (ValueError, OSError) as fault:
            if "was not found" in str(fault) or "Not found" in str(fault):
                return None
            raise self._unreadable(fault) from fault

    def _unreadable(self, fault: Exception) -> ServiceError:
        return ServiceError(f"the lake at {self.uri} cannot be read ({str(fault).splitlines()[0]})", action="check the store")

    def open(self, table: str, *, needs: str = "moon ingest DIRECTORY") -> lance.LanceDataset:
        """The table at its newest version; a :class:`StageError` that names the command to run first when there is none."""
        found = self._dataset(table)
        if found is None:
            raise StageError(f"the lake at {self.uri} has no table '{table}' yet", action=f"run `{needs}` first")
        return found

    def under(self, directory: str) -> list[str]:
        """The tables in a directory of the lake, e.g. ``v1``, ``v2`` of ``embeddings``; none if there is no such directory."""
        try:
            return sorted(DirectoryNamespace(root=f"{self.uri.rstrip('/')}/{directory}").list_tables(ListTablesRequest(id=[])).tables)
        except OSError as fault:
            raise self._unreadable(fault) from fault

    def one_writer(self, patience: float | None = None) -> contextlib.AbstractContextManager[None]:
        """Wait until nobody else takes items in or maintains the lake; :class:`ServiceError` after ``patience`` seconds, if given."""
        return self._locked("ingest.lock", patience)

    def erasing(self, *, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Erase an item while nobody writes what was derived from it; whoever does so is in a ``shared`` block of this."""
        return self._locked("erasure.lock", None, shared=shared)

    def deriving(self, table: str) -> contextlib.AbstractContextManager[None]:
        """Wait until nobody else derives ``table``."""
        return self._locked(f"derive-{table.rpartition('/')[2]}.lock", None)

    @contextlib.contextmanager
    def _locked(self, name: str, patience: float | None, *, shared: bool = False) -> Iterator[None]:
        """Hold a lock among the processes of this machine; an object store is not locked."""
        if "://" in self.uri:
            yield
            return
        place, began = Path(self.uri), time.monotonic()
        place.mkdir(parents=True, exist_ok=True)
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if patience is not None else 0)
        with (place / name).open("w") as handle:
            while True:
                try:
                    fcntl.flock(handle, how)
                    break
                except BlockingIOError:
                    if patience is not None and time.monotonic() - began > patience:
                        problem = f"somebody else has been writing to the lake for {patience:g} seconds"
                        raise ServiceError(problem, action="try again later") from None
                    time.sleep(POLL)
            yield

    def append(self, table: str, rows: pa.Table) -> int:
        """Commit ``rows`` atomically and return how many; an empty table still creates the dataset."""
        there = self.exists(table)
        if rows.num_rows or not there:
            lance.write_dataset(rows, self.address(table), mode="append" if there else "create")
        return rows.num_rows

    def read(self, table: str, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
        """All rows in the order they were written; empty, with the right schema, for a shop's table not written yet."""
        if table in SCHEMAS and not self.exists(table):
            schema = SCHEMAS[table]
            return schema.empty_table().select(list(columns) if columns else schema.names)
        return self.open(table).to_table(columns=list(columns) if columns else None, filter=where)

    def count(self, table: str) -> int:
        """Rows of the table, 0 when it has not been written."""
        return self.open(table).count_rows() if self.exists(table) else 0


def items_as_of(lake: Lake, when: dt.datetime, columns: Sequence[str] | None = None) -> pa.Table:
    """The version of each item that is valid at ``when``, active ones only, ordered by item_id."""
    wanted = list(columns) if columns is not None else SCHEMAS["items"].names
    lake.open("items")  # a shop without items is an error here, not an empty catalogue
    return active_as_of(lake.read("items", list(dict.fromkeys([*wanted, *VALIDITY]))), when).select(wanted)


def active_as_of(versions: pa.Table, when: dt.datetime) -> pa.Table:
    """Of versions of items (with the columns of ``VALIDITY``) those valid at ``when`` and active, ordered by item_id.

    Of several versions the one that became valid last is taken, and among those the one learned last.
    """
    table = versions.filter(pc.less_equal(versions["event_timestamp"], pa.scalar(when, STAMP)))
    table = table.append_column("_row", pa.array(range(table.num_rows), pa.int64()))
    descending = [(name, "descending") for name in ("event_timestamp", "created", "_row")]
    table = table.take(pc.sort_indices(table, [("item_id", "ascending"), *descending])).drop_columns("_row")
    ids = table["item_id"].combine_chunks()
    if len(ids):
        table = table.filter(pa.concat_arrays([pa.array([True]), pc.not_equal(ids[1:], ids[:-1])]))
    return table.filter(pc.equal(table["status"], pa.scalar("active")))


def image_bytes(lake: Lake, image_ids: Sequence[str], batch: int = 1024) -> Iterator[tuple[str, bytes]]:
    """``(image_id, bytes)`` of the pictures wanted, each once, ``batch`` in memory at a time; only those rows' bytes are read."""
    wanted = sorted(set(image_ids))
    if not wanted:
        return
    images = lake.open("images")
    for start in range(0, len(wanted), batch):
        where = "image_id IN (" + ", ".join(f"'{i}'" for i in wanted[start : start + batch]) + ")"
        for rows in images.to_batches(columns=["image_id", "bytes"], filter=where, batch_size=batch):
            for image_id, content in zip(rows["image_id"].to_pylist(), rows["bytes"].to_pylist(), strict=True):
                if content is not None:
                    yield image_id, content
