"""Impressions → training batches, through the Feast SDK: features as known before each row's time, vectors gathered by row number.

R rows, S behaviours, W words, D vector dimensions. Rows carry row numbers into the representation tables, never vectors.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from moon_ops.ctr.models import INPUTS
from moon_ops.ctr.vocabulary import Vocabulary, dense, words
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import StageError
from moon_ops.lake.contract import require_same
from moon_ops.lake.tables import Lake

VECTORS = ("target_vector", "query_vector", "behavior_vector", "behavior_query_vector")


@dataclass(frozen=True)
class Tables:
    """The vectors of one contract: of items and of queries; :class:`ContractError` for two contracts."""

    items: RepresentationTable
    queries: RepresentationTable

    def __post_init__(self) -> None:
        require_same(self.items.contract_id, self.queries.contract_id, what="vectors of items and of queries")


@dataclass(frozen=True)
class Rows:
    """R encoded impressions. ``arrays`` are the model's inputs but for the vectors, whose row numbers are in ``vector_rows``."""

    arrays: dict[str, NDArray[Any]]
    vector_rows: dict[str, NDArray[np.int64]]
    labels: NDArray[np.int64]
    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def has_click_sequences(lake: Lake) -> bool:
    """Whether the lake has what a click model learns from: impressions and clicks of known users."""
    found = lake.read("events", ["event"], "user_id IS NOT NULL AND event IN ('impression', 'click')")
    return {"impression", "click"} <= set(found["event"].unique().to_pylist())


def impressions(lake: Lake, start: dt.datetime, end: dt.datetime) -> pa.Table:
    """The entity rows in [start, end): user_id, item_id, query_id, session_id, event_timestamp, label, text, is_image, in time order.

    The label is whether the same user clicked the item in the same session, for the same query, from this moment on and before ``end``:
    what happened later is not known yet. Raises :class:`StageError` if there are no impressions of known users.
    """
    lake.open("events", needs="moon ingest DIRECTORY")
    events = lake.read("events", ["event_timestamp", "user_id", "item_id", "query_id", "session_id", "event"])  # noqa: F841
    queries = lake.read("queries", ["query_id", "text", "image_id"])  # noqa: F841
    query = f"""
    WITH shown AS (
        SELECT * FROM events WHERE event = 'impression' AND user_id IS NOT NULL
        AND event_timestamp >= TIMESTAMPTZ '{start.isoformat()}' AND event_timestamp < TIMESTAMPTZ '{end.isoformat()}'),
    clicked AS (
        SELECT user_id, item_id, coalesce(query_id, -1) AS q, coalesce(session_id, -1) AS s, max(event_timestamp) AS last FROM events
        WHERE event = 'click' AND event_timestamp < TIMESTAMPTZ '{end.isoformat()}' GROUP BY ALL)
    SELECT shown.user_id, shown.item_id, coalesce(shown.query_id, -1) AS query_id, coalesce(shown.session_id, -1) AS session_id,
           shown.event_timestamp, coalesce(clicked.last >= shown.event_timestamp, false)::BIGINT AS label,
           queries.text, queries.image_id IS NOT NULL AS is_image
    FROM shown
    LEFT JOIN clicked ON clicked.user_id = shown.user_id AND clicked.item_id = shown.item_id
        AND clicked.q = coalesce(shown.query_id, -1) AND clicked.s = coalesce(shown.session_id, -1)
    LEFT JOIN queries ON queries.query_id = shown.query_id
    ORDER BY shown.event_timestamp, session_id, shown.item_id"""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.sql(query).to_arrow_table()
    if not rows.num_rows:
        raise StageError(
            f"the lake has no impressions of known users between {start:%Y-%m-%d} and {end:%Y-%m-%d}: a click model cannot be trained",
            action="ingest events with event = impression and click, and user_id",
        )
    return rows


def encode(rows: pa.Table, vocabulary: Vocabulary, tables: Tables, behaviors: int) -> Rows:
    """Encode rows joined with the features of service ``ctr_v<N>`` for a model that reads the last ``behaviors`` clicks."""
    number = {name: _numbers(rows[name]) for name in ("impressions", "clicks", "purchases", "price")}
    ids = {name: _ids(rows[name]) for name in ("item_id", "user_id", "spu_id", "seller_id", "query_id", "session_id")}
    items, queries = (_last(rows[name], behaviors) for name in ("item_ids", "query_ids"))  # [R, S]
    behavior_item = vocabulary.encode("item", items)
    arrays: dict[str, NDArray[Any]] = {
        **{name: vocabulary.encode(name, ids[f"{name}_id"]) for name in ("item", "user", "spu", "seller")},
        **{name: vocabulary.encode(name, np.array(rows[name].to_pylist(), object)) for name in ("category", "brand")},
        "price": vocabulary.price(number["price"]),
        "dense": dense(number["impressions"], number["clicks"], number["purchases"], _numbers(rows["is_image"])),
        "words": words(rows["text"].to_pylist()),
        "behavior_item": behavior_item,
        "behavior_category": vocabulary.category_of(behavior_item),
    }
    vector_rows = {
        "target_vector": tables.items.rows(ids["item_id"]),
        "query_vector": tables.queries.rows(ids["query_id"]),
        "behavior_vector": tables.items.rows(items),
        "behavior_query_vector": tables.queries.rows(queries),
    }
    return Rows(arrays, vector_rows, _ids(rows["label"]), ids["user_id"], ids["item_id"])


def batches(rows: Rows, tables: Tables, size: int, order: NDArray[np.int64]) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Batches of the model's inputs, in the order of :data:`~moon_ops.ctr.models.INPUTS`, and labels [B]."""
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        columns = tuple(torch.from_numpy(array) for array in columns_of(rows, tables, chosen).values())
        yield columns, torch.from_numpy(rows.labels[chosen]).float()


def columns_of(rows: Rows, tables: Tables, chosen: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The model's inputs of some rows, by name and in order; vectors are gathered here and nowhere before."""
    columns: dict[str, NDArray[Any]] = {}
    for name in INPUTS:
        if name in VECTORS:
            table = tables.queries if "query" in name else tables.items
            columns[name] = table.gather(rows.vector_rows[name][chosen])
        else:
            columns[name] = rows.arrays[name][chosen]
    return columns


def _ids(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """int64, -1 for null."""
    return pc.fill_null(column, -1).to_numpy()


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """float64, 0 for null: an item without statistics has been seen 0 times."""
    return pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy()


def _last(column: pa.ChunkedArray, length: int) -> NDArray[np.int64]:
    """The last ``length`` values of each list, newest last: [R, S], filled with -1 from the left."""
    lists = column.combine_chunks()
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    flat = np.append(lists.flatten().to_numpy(zero_copy_only=False), -1).astype(np.int64)  # null lists contribute nothing
    ends = np.cumsum(counts)[:, None]
    at = ends - np.arange(length, 0, -1)[None, :]  # [R, S]
    return np.where(at >= ends - counts[:, None], flat[np.clip(at, 0, len(flat) - 1)], -1)
