"""The schemas of the lake's tables."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

UNDOING = ("cancel", "return")  # of a purchase
EVENTS = ("impression", "click", "cart", "purchase", *UNDOING)
STAMP = pa.timestamp("us", tz="UTC")
STRINGS = pa.list_(pa.string())
VALIDITY = ("item_id", "event_timestamp", "created", "status")  # of an item version
EXTRA = pa.field("extra", pa.string())  # the columns of the shop's file that no other column holds, as a JSON object
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
        EXTRA,
        pa.field("available_until", STAMP),  # equal to event_timestamp: an end, see versions.py
        pa.field("stated", STAMP),  # when the file that says so was taken in first, see seen.py
    ),
    "users": _schema(  # only where the shop tells something of them
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("event_timestamp", STAMP, nullable=False),
        pa.field("created", STAMP, nullable=False),
        EXTRA,
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
        EXTRA,
        pa.field("event_id", pa.string()),  # the shop's, as a text; of a lake of before, null
        pa.field("order_id", pa.string()),  # likewise
    ),
    "ids": _schema(  # only where the shop has ids that are no whole numbers
        pa.field("kind", pa.string(), nullable=False),  # item, product, seller, user, query, session
        pa.field("key", pa.int64(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),  # the shop's
        pa.field("created", STAMP, nullable=False),
    ),
    "erased": _schema(  # what does not come back
        pa.field("kind", pa.string(), nullable=False),  # item, user, query, session
        pa.field("key", pa.int64(), nullable=False),
        pa.field("created", STAMP, nullable=False),
    ),
    "fetches": _schema(
        pa.field("address", pa.string(), nullable=False, metadata=PRIMARY),
        pa.field("image_id", pa.string()),  # the picture that came last
        pa.field("etag", pa.string()),
        pa.field("last_modified", pa.string()),
        pa.field("fetched_at", STAMP),
        pa.field("fresh_until", STAMP),  # it is not asked for before
        pa.field("failed_at", STAMP),
        pa.field("reason", pa.string()),
        pa.field("tries", pa.int32()),  # failures in a row
        pa.field("next_try", STAMP),
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
