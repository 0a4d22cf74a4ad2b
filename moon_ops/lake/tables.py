"""The lake's tables: their schemas, and the rows of them that are valid at a time. Nothing is edited in place.

A table is a Lance dataset under the lake's address (a directory, or an object store). Appends commit atomically, so a reader
sees all rows of a commit or none, and a killed writer leaves nothing behind that a reader could meet.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake.lake import Lake

EVENTS = ("impression", "click", "cart", "purchase")
STAMP = pa.timestamp("us", tz="UTC")
STRINGS = pa.list_(pa.string())
VALIDITY = ("item_id", "event_timestamp", "created", "status")  # of an item version
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
