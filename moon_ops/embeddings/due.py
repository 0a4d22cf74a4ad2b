"""What there is to embed is derived from the lake, never queued: the item versions without a vector under an encoder.

A run reads the versions that were written since the last complete run of that encoder (:mod:`moon_ops.lake.changes`), and of the items
that these touch what is known and embedded already. So it costs in proportion to what is new.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.embeddings.vector_tables import KEY, excused_table_name, query_table_name, table_name
from moon_ops.lake import changes
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import sql
from moon_ops.lake.schemas import STAMP, embeddings_schema

CONTENT = ("title", "category", "brand", "description", "attributes", "image_ids")  # what an encoder reads
HISTORY = (*KEY, "created", "status")
DONE = ("version_id", *KEY, "created")

VERSIONS = """
WITH versions AS (
    SELECT * FROM history QUALIFY row_number() OVER (PARTITION BY item_id, event_timestamp ORDER BY created DESC, number DESC) = 1)"""
DUE_SQL = f"""{VERSIONS},
shown AS (
    SELECT *, lag(content_hash) OVER (PARTITION BY item_id ORDER BY event_timestamp) AS before FROM versions WHERE status = 'active')
SELECT {", ".join(KEY)} FROM shown ANTI JOIN done USING ({", ".join(KEY)})
WHERE content_hash IS DISTINCT FROM before ORDER BY event_timestamp, item_id"""
SUPERSEDED_SQL = f"""{VERSIONS}
SELECT made.version_id FROM made JOIN versions USING (item_id, event_timestamp)
QUALIFY made.created <= max(CASE WHEN made.content_hash = versions.content_hash THEN NULL ELSE made.created END)
    OVER (PARTITION BY item_id, event_timestamp)"""


@dataclass(frozen=True)
class Work:
    """Item versions to embed (the columns of ``KEY``), oldest first."""

    rows: pa.Table
    mark: int  # of the items table: what a complete run has looked at
    looked_at: int  # item versions that were read to find out
    superseded: pa.Array  # version_ids of vectors that give way: of another content than the item has from the same moment on


def due(lake: Lake, version: int, known_by: dt.datetime | None = None) -> Work:
    """The item versions, of those ``known_by`` a time, without a vector under encoder ``version``, and without an excuse.

    A version that changed nothing an encoder reads (a new price) needs no vector of its own, nor does one that was deleted, or corrected
    before it became valid. Where a correction was taken back, the vector of what holds again is made anew, too: readers take the newest.
    """
    since = int(changes.marks(lake, table_name(version)).get("items", changes.NOTHING))  # before the table, which is newer then
    items = lake.open("items")
    touched = changes.newer(items, since, ["item_id"])["item_id"].combine_chunks().unique()
    history = _rows(items, touched, HISTORY, everything=since == changes.NOTHING)
    if known_by is not None:
        history = history.filter(pc.less_equal(history["created"], pa.scalar(known_by, STAMP)))
    history = history.append_column("number", pa.array(range(history.num_rows), pa.int64()))
    made, excused = (_done(lake, name, touched) for name in (table_name(version), excused_table_name(version)))
    superseded = sql(SUPERSEDED_SQL, history=history, made=made)["version_id"].combine_chunks()
    done = pa.concat_tables([made.filter(pc.invert(pc.is_in(made["version_id"], superseded))), excused])
    return Work(sql(DUE_SQL, history=history, done=done), changes.newest(items), history.num_rows, superseded)


def _done(lake: Lake, name: str, touched: pa.Array) -> pa.Table:
    if not lake.exists(name):
        return pa.schema([field for field in embeddings_schema(1) if field.name in DONE]).remove_metadata().empty_table()
    return _rows(lake.open(name), touched, DONE, everything=False).replace_schema_metadata(None)


def _rows(dataset: lance.LanceDataset, touched: pa.Array, columns: tuple[str, ...], *, everything: bool) -> pa.Table:
    return dataset.to_table(columns=list(columns)) if everything else changes.rows_of(dataset, "item_id", touched, columns)


def contents(items: lance.LanceDataset, rows: pa.Table) -> list[dict[str, Any]]:
    """What an encoder reads of the item versions ``rows``, in their order; an empty title of one that is there no more."""
    by_key = _by_key(items, rows, (*KEY, *CONTENT))
    return [by_key.get(key, {"title": ""}) for key in _keys(rows)]


def known(items: lance.LanceDataset, rows: pa.Table) -> list[bool]:
    """Of each of the item versions ``rows`` whether it is in the lake still, or was erased."""
    there = _by_key(items, rows, KEY)
    return [key in there for key in _keys(rows)]


def _by_key(items: lance.LanceDataset, rows: pa.Table, columns: tuple[str, ...]) -> dict[tuple[Any, ...], dict[str, Any]]:
    found = changes.rows_of(items, "item_id", rows["item_id"].combine_chunks().unique(), columns)
    return dict(zip(_keys(found), found.to_pylist(), strict=True))


def _keys(rows: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(rows[name].to_pylist() for name in KEY), strict=True))


def queries_due(lake: Lake, version: int) -> tuple[pa.Table, int]:
    """The queries without a vector under encoder ``version``, and the mark of the queries table. A query never changes."""
    if not lake.exists("queries"):
        return lake.read("queries"), changes.NOTHING
    name = query_table_name(version)
    since = int(changes.marks(lake, name).get("queries", changes.NOTHING))
    queries = lake.open("queries")
    fresh = changes.newer(queries, since, ["query_id", "text", "image_id", "event_timestamp"])
    if not lake.exists(name):
        return fresh, changes.newest(queries)
    done = changes.rows_of(lake.open(name), "query_id", fresh["query_id"].combine_chunks().unique(), ["query_id"])
    return sql("SELECT * FROM fresh ANTI JOIN done USING (query_id)", fresh=fresh, done=done), changes.newest(queries)
