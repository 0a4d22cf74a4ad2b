"""A shop of a coat and a hat, which tests bring to a lake, and how they look at what became of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moon_ops.inputs import images
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
TABLES = ("images", "items", "queries", "events", "quarantine")
Shop = Callable[..., Path]

ITEMS = [
    {"item_id": 1, "title": "Wool coat", "category": "Clothes > Coats", "price": 99.5, "images": "a.png|b.png"},
    {"item_id": 2, "title": "Hat", "available_from": "2026-05-01", "attributes": {"colour": "red"}, "images": "a.png"},
]
QUERIES = [
    {"query_id": 1, "timestamp": "2026-05-02T10:00:00", "text": "coat"},
    {"query_id": 2, "timestamp": "2026-05-02T11:00:00", "image": "b.png"},
]
EVENTS = [
    {"timestamp": "2026-05-02T10:00:01", "item_id": 1, "event": "impression", "query_id": 1, "user_id": 7, "position": 0},
    {"timestamp": "2026-05-02T10:00:02", "item_id": 1, "event": "click", "query_id": 1, "user_id": 7, "position": 0},
    {"timestamp": "2026-05-02T10:00:03", "item_id": 2, "event": "purchase"},
]
PICTURES = {"a.png": "red", "b.png": "blue"}
GOOD: dict[str, Any] = {"items": ITEMS, "queries": QUERIES, "events": EVENTS, "pictures": PICTURES}
HAT = {"item_id": 9, "title": "Hat"}
CLICK = {"timestamp": "2026-05-03", "item_id": 1, "event": "click"}


def counts(lake: Lake) -> dict[str, int]:
    return {name: lake.count(name) for name in TABLES}


def versions(lake: Lake) -> dict[str, int]:
    return {name: lake.open(name).version for name in TABLES}


def contents(lake: Lake) -> dict[str, list[str]]:
    """Every row of every table, in an order that does not depend on how it was written."""
    return {name: sorted(str(row) for row in lake.read(name).to_pylist()) for name in TABLES}


def current(lake: Lake, *columns: str, when: dt.datetime = NOW) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in items_as_of(lake, when, columns).to_pylist()]


def image_id(shop: Path, path: str) -> str:
    return images.image_id((shop / path).read_bytes())


def set_aside(lake: Lake) -> list[tuple[str, str, str]]:
    return [(row["source"], row["column"], row["reason"]) for row in lake.read("quarantine").to_pylist()]
