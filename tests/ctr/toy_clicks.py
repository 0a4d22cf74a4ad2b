"""Impressions of which nothing is known but the item, the query and the click, and vectors drawn at random."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moon_ops.lake.schemas import STAMP

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
DIM, ITEMS, QUERIES = 8, 1500, 40


def impressions(item_ids: NDArray[np.int64], query_ids: NDArray[np.int64], labels: NDArray[np.bool_]) -> pa.Table:
    """Impressions that differ in nothing but the item, the query and the click."""
    rows = len(labels)
    same = {
        "spu_id": 1,
        "category": "mugs",
        "brand": "Acme",
        "seller_id": 7,
        "price": 5.0,
        "impressions": 100,
        "clicks": 10,
        "purchases": 1,
    }
    columns = {name: [value] * rows for name, value in same.items()}
    columns |= {"item_id": item_ids, "user_id": np.arange(rows) % 10, "query_id": query_ids, "session_id": np.arange(rows)}
    columns |= {"event_timestamp": pa.array([MAY + n * dt.timedelta(seconds=1) for n in range(rows)], STAMP)}
    columns |= {"label": labels.astype(np.int64), "text": [None] * rows, "is_image": [True] * rows}
    history = pa.array([[1, 2]] * rows, pa.list_(pa.int64()))
    return pa.table(columns | {"item_ids": history, "query_ids": history}).set_column(
        list(columns).index("text"), "text", pa.nulls(rows, pa.string())
    )


def unit(rows: int, seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
