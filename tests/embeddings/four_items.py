"""A lake of four items and three queries, which tests have embedded, and what is then due."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moon_ops.embeddings import produce
from moon_ops.embeddings.due import contents, due
from moon_ops.embeddings.produce import EmbedReport
from moon_ops.embeddings.runtime import Runtime
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
ITEMS: list[dict[str, Any]] = [
    {"item_id": 1, "title": "Red dress", "category": "Clothes > Dresses", "images": "red.png|dots.png", "price": 20.0},
    {"item_id": 2, "title": "Blue boots", "category": "Shoes > Boots", "images": "blue.png", "attributes": {"material": "leather"}},
    {"item_id": 3, "title": "Green mug", "brand": "Acme", "description": "Holds half a litre"},
    {"item_id": 4, "title": "<image> Lamp", "images": "red.png"},
]
QUERIES = [
    {"query_id": 1, "timestamp": "2026-05-01T10:00:00", "text": "red dress"},
    {"query_id": 2, "timestamp": "2026-05-01T11:00:00", "image": "blue.png"},
    {"query_id": 3, "timestamp": "2026-05-01T12:00:00", "image": "blue.png", "text": "boots"},
]
PICTURES = {"red.png": "red", "blue.png": "blue", "dots.png": "pink"}
Shop = Callable[..., Path]


def filled(make_shop: Shop, place: Path) -> Lake:
    """Four items and three queries, since May 1."""
    lake = Lake(str(place))
    ingest(make_shop("first", items=ITEMS, queries=QUERIES, pictures=PICTURES), lake, now=MAY)
    return lake


def embed(lake: Lake, runtime: Runtime) -> EmbedReport:
    return produce.embed(lake, runtime, 1, now=MAY + 10 * DAY, workers=1)


def due_titles(lake: Lake) -> list[str]:
    return [item["title"] for item in contents(lake.open("items"), due(lake, 1).rows)]
