"""A shop of forty items on a circle, each bought once after a query that lies beside it: whoever moves a vector knows what changes.

Items 1 to 20 are red, 21 to 40 blue. Queries 1 to 10 are photographs, the others words.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moon_ops.embeddings import vector_tables
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import STAMP
from moon_ops.release.windows import Windows

Shop = Callable[..., Path]
MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
WINDOWS = Windows(MAY, MAY + DAY, MAY + DAY, MAY + 4 * DAY)
COUNT, BESIDE = 40, 0.2  # items; how far a query lies from its item, of the way to the next


def shop(make_shop: Shop, lake: Lake, *, pictures: bool = True, categories: bool = True) -> None:
    """The items, queries and purchases."""
    items: list[dict[str, Any]] = []
    queries, events = [], []
    for n in range(1, COUNT + 1):
        items.append({"item_id": n, "title": f"thing {n}", "available_from": MAY.isoformat()})
        items[-1] |= {"images": f"{n}.png"} if pictures and n <= 30 else {}
        items[-1] |= {"category": "Red > Things" if n <= 20 else "Blue > Things"} if categories else {}
        moment = (MAY + DAY + n * dt.timedelta(hours=1)).isoformat()
        asked = {"image": f"asked{n}.png"} if pictures and n <= 10 else {"text": f"a thing like {n}"}
        queries.append({"query_id": n, "timestamp": moment, **asked})
        events.append({"timestamp": moment, "item_id": n, "query_id": n, "event": "purchase"})
    drawn: dict[str, str | bytes] = {f"{n}.png": f"#{5 * n:02x}2040" for n in range(1, 31)} if pictures else {}
    drawn |= {f"asked{n}.png": f"#20{9 * n:02x}f0" for n in range(1, 11)} if pictures else {}
    done = ingest(make_shop("circle", drawn, items=items, queries=queries, events=events), lake, now=MAY + 10 * DAY)
    assert not done.refused, done.first_refusal


def encoder(lake: Lake, version: int, *, queries: Mapping[int, float] | None = None, items: Mapping[int, float] | None = None) -> None:
    """Vectors of an encoder: each item at its place on the circle, each query beside its item, but for those given another place."""
    names = lake.read("items", ["item_id", "content_hash", "event_timestamp"]).sort_by("item_id")
    places = np.array([(items or {}).get(n, n) for n in names["item_id"].to_pylist()], float)
    _write(lake, vector_tables.table_name(version), names, places)
    asked = lake.read("queries", ["query_id", "event_timestamp"]).sort_by("query_id")
    _write(
        lake,
        vector_tables.query_table_name(version),
        asked,
        np.array([(queries or {}).get(n, n) + BESIDE for n in asked["query_id"].to_pylist()]),
    )


def _write(lake: Lake, name: str, rows: pa.Table, places: NDArray[np.float64]) -> None:
    turns = 2 * np.pi * places / COUNT
    vectors = np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
    vector_tables.create(lake, name, SimpleNamespace(dim=2, contract_id="c-circle"))
    rows = rows.set_column(rows.schema.get_field_index("event_timestamp"), "event_timestamp", pa.array([MAY] * len(rows), STAMP))
    vector_tables.insert(lake, name, rows, {"embedding": vector_tables.as_column(vectors)}, MAY)
