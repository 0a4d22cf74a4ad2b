"""The shop as Arrow tables: items, queries and events in the ingest layout, and the oracle beside them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from moon_ops.shops.simulated import titles
from moon_ops.shops.simulated.behaviour import KINDS, Day
from moon_ops.shops.simulated.pictures import item_picture, query_picture
from moon_ops.shops.simulated.products import Item
from moon_ops.shops.simulated.randomness import Stream, generator
from moon_ops.shops.simulated.sessions import Rows
from moon_ops.shops.simulated.vocabulary import CATEGORIES

START = datetime(2026, 1, 1, tzinfo=UTC)
_START_MICROSECONDS = int(START.timestamp()) * 1_000_000
_Columns: TypeAlias = dict[str, Any]
_TIME: pa.DataType = pa.timestamp("us", tz="UTC")


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(columns)


ITEMS = _schema(
    item_id=pa.int64(),
    spu_id=pa.int64(),
    title=pa.string(),
    category=pa.string(),
    brand=pa.string(),
    description=pa.string(),
    attributes=pa.map_(pa.string(), pa.string()),
    seller_id=pa.int64(),
    price=pa.float64(),
    status=pa.string(),
    images=pa.list_(pa.string()),
    available_from=_TIME,
)
QUERIES = _schema(
    query_id=pa.int64(),
    timestamp=_TIME,
    text=pa.string(),
    image=pa.string(),
)
EVENTS = _schema(
    timestamp=_TIME,
    user_id=pa.int64(),
    item_id=pa.int64(),
    query_id=pa.int64(),
    event=pa.string(),
    session_id=pa.int64(),
    position=pa.int32(),
)
ORACLE = _schema(
    timestamp=_TIME,
    session_id=pa.int64(),
    user_id=pa.int64(),
    item_id=pa.int64(),
    position=pa.int32(),
    click_probability=pa.float64(),
    attraction=pa.float64(),
)


def _times(microseconds: Rows) -> pa.Array:
    return pa.array(microseconds + _START_MICROSECONDS, type=pa.int64()).cast(_TIME)


def items_table(items: Sequence[Item]) -> pa.Table:
    """One row per item, in the order of ids."""
    rows = [_item_row(item) for item in items]
    columns = {name: [row[name] for row in rows] for name in ITEMS.names if name != "available_from"}
    available = np.array([item.product.available_from for item in items], dtype=np.int64)
    return pa.table({**columns, "available_from": _times(available)}, schema=ITEMS)


def _item_row(item: Item) -> dict[str, object]:
    return {
        "item_id": item.item_id,
        "spu_id": item.product.spu_id,
        "title": item.title,
        "category": CATEGORIES[item.product.category].path,
        "brand": item.facts.brand,
        "description": item.description,
        "attributes": list(item.attributes.items()),
        "seller_id": item.product.seller_id,
        "price": item.price,
        "status": "active",
        "images": [item_picture(item.item_id, view) for view in range(item.views)],
    }


def queries_table(day: Day, items: Sequence[Item], *, first_id: int, seed: int) -> pa.Table:
    """One query per session of the day, with ids from ``first_id``: a text or the path of a photograph."""
    count = len(day.visits.user)
    ids = first_id + np.arange(count)
    by_image = day.visits.by_image.tolist()
    wanted = zip(ids.tolist(), day.visits.intent.tolist(), by_image, strict=True)
    texts = [
        None if image else titles.query_text(items[row].facts, generator(seed, Stream.QUERY_TEXT, query)) for query, row, image in wanted
    ]
    pictures = [query_picture(query) if image else None for query, image in zip(ids.tolist(), by_image, strict=True)]
    columns: _Columns = {"query_id": ids, "timestamp": _times(day.visits.start), "text": texts, "image": pictures}
    return pa.table(columns, schema=QUERIES)


def events_table(day: Day, *, first_id: int) -> pa.Table:
    """The day's events in order of time; sessions have ids from ``first_id``, the same as their query's."""
    shown = day.events.impression
    session = day.impressions.session[shown]
    columns: _Columns = {
        "timestamp": _times(day.events.timestamp),
        "user_id": day.visits.user[session] + 1,
        "item_id": day.impressions.item[shown] + 1,
        "query_id": session + first_id,
        "event": np.array(KINDS)[day.events.kind],
        "session_id": session + first_id,
        "position": day.impressions.position[shown],
    }
    return pa.table(columns, schema=EVENTS)


def oracle_table(day: Day, *, first_id: int) -> pa.Table:
    """The true probabilities of each impression, in the order in which impressions stand in the events."""
    is_impression = day.events.kind == KINDS.index("impression")
    shown = day.events.impression[is_impression]
    session = day.impressions.session[shown]
    columns: _Columns = {
        "timestamp": _times(day.events.timestamp[is_impression]),
        "session_id": session + first_id,
        "user_id": day.visits.user[session] + 1,
        "item_id": day.impressions.item[shown] + 1,
        "position": day.impressions.position[shown],
        "click_probability": day.click_probability[shown],
        "attraction": day.attraction[shown],
    }
    return pa.table(columns, schema=ORACLE)
