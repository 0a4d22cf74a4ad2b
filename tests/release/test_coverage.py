"""Completeness and freshness: what is missing from vectors, index and table, and how far vectors lag behind the catalogue."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from moon_ops.embeddings import index, vector_tables
from moon_ops.embeddings.index import ItemIndex
from moon_ops.lake.ingest import ingest
from moon_ops.lake.schemas import STAMP
from moon_ops.lake.tables import items_as_of
from moon_ops.metric_names import catalogue
from moon_ops.publication import places
from moon_ops.release import stages
from moon_ops.release.coverage import of_catalogue
from moon_ops.settings import Settings

NAMES = ("with_vector", "in_index", "in_table")


@pytest.fixture
def end(now: dt.datetime) -> dt.datetime:
    return now - dt.timedelta(days=1)


def shares(found: dict[str, float]) -> tuple[float, ...]:
    return tuple(found[catalogue(name)] for name in NAMES)


def test_a_published_catalogue_is_complete_and_fresh(copied: Settings, end: dt.datetime, now: dt.datetime) -> None:
    found = of_catalogue(copied, 1, end, now=now)
    assert shares(found) == (1.0, 1.0, 1.0)
    assert (found[catalogue("on_sale")], found[catalogue("excused")], found[catalogue("lag_hours")]) == (115.0, 0.0, 0.0)


def test_what_is_missing_is_missed_in_each_place(copied: Settings, end: dt.datetime, now: dt.datetime) -> None:
    ids = items_as_of(copied.lake, end, ["item_id"])["item_id"].to_numpy()
    count = len(ids)
    copied.lake.open(vector_tables.table_name(1)).delete(f"item_id = {ids[0]}")
    assert shares(of_catalogue(copied, 1, end, now=now)) == ((count - 1) / count, 1.0, 1.0)
    place = places.index_place(copied, 1)
    contract = ItemIndex.open(place).header.contract_id
    index.update(place, np.zeros(0, np.int64), np.zeros((0, ItemIndex.open(place).header.dim), np.float32), ids[:3], contract)
    assert ItemIndex.open(place).items().tolist() == sorted(ids[3:].tolist())
    assert shares(of_catalogue(copied, 1, end, now=now)) == ((count - 1) / count, (count - 3) / count, 1.0)


def test_an_item_that_cannot_be_read_is_counted_apart(copied: Settings, end: dt.datetime, now: dt.datetime) -> None:
    ids = items_as_of(copied.lake, end, ["item_id"])["item_id"].to_numpy()
    lost = copied.lake.open(vector_tables.table_name(1)).to_table(filter=f"item_id = {ids[0]}").drop_columns(["embedding"])
    copied.lake.open(vector_tables.table_name(1)).delete(f"item_id = {ids[0]}")
    excused = lost.append_column("reason", pa.array(["no text"] * lost.num_rows))
    copied.lake.append(vector_tables.excused_table_name(1), excused)
    found = of_catalogue(copied, 1, end, now=now)
    assert shares(found) == (1.0, 1.0, 1.0)
    assert found[catalogue("excused")] == 1.0


def test_vectors_lag_behind_what_came_since(copied: Settings, make_shop: Callable[..., Path], end: dt.datetime, now: dt.datetime) -> None:
    newest = max(copied.lake.read(vector_tables.table_name(1), ["event_timestamp"])["event_timestamp"].to_pylist())
    later: dict[str, Any] = {"item_id": 990_001, "title": "a new hat", "category": "hats", "price": 3.0}
    ingest(make_shop(items=[later]), copied.lake, now=now)
    known = items_as_of(copied.lake, now).to_pylist()
    since = next(row["event_timestamp"] for row in known if row["item_id"] == 990_001)
    found = of_catalogue(copied, 1, end, now=now)
    assert found[catalogue("lag_hours")] == pytest.approx((since - newest) / dt.timedelta(hours=1))
    assert found[catalogue("lag_hours")] > 0
    assert shares(found) == (1.0, 1.0, 1.0), "it was not on sale when the window ended"
    assert pa.scalar(since, STAMP).as_py() > end
    assert shares(of_catalogue(copied, 1, now, now=now))[0] == 115 / 116


def test_a_vector_of_what_an_item_said_before_is_none(copied: Settings, make_shop: Callable[..., Path], now: dt.datetime) -> None:
    known = items_as_of(copied.lake, now).to_pylist()[0]
    row = {"item_id": known["item_id"], "title": known["title"] + " of wool", "price": 3.0}

    def share(moment: dt.datetime) -> float:
        return shares(of_catalogue(copied, 1, now, now=moment))[0]

    first, second, third = (now + hours * dt.timedelta(hours=1) for hours in (1, 2, 3))
    ingest(make_shop(items=[row]), copied.lake, now=first)
    assert share(now) == 1.0, "it said so later"
    assert share(first) == 114 / 115
    stages.embed(copied, 1, now=first)
    assert share(first) == 1.0
    ingest(make_shop(items=[{**row, "price": 4.0}]), copied.lake, now=second)
    assert share(second) == 1.0, "a price is nothing that an encoder reads"
    ingest(make_shop(items=[{**row, "title": "a hat"}]), copied.lake, now=third)
    assert share(third) == 114 / 115


def test_an_excuse_for_what_an_item_said_before_is_none(copied: Settings, make_shop: Callable[..., Path], now: dt.datetime) -> None:
    known = items_as_of(copied.lake, now, ["item_id"])["item_id"][0].as_py()
    table = copied.lake.open(vector_tables.table_name(1))
    lost = table.to_table(filter=f"item_id = {known}").drop_columns(["embedding"])
    table.delete(f"item_id = {known}")
    copied.lake.append(vector_tables.excused_table_name(1), lost.append_column("reason", pa.array(["no text"] * lost.num_rows)))
    later = now + dt.timedelta(hours=1)
    ingest(make_shop(items=[{"item_id": known, "title": "a hat"}]), copied.lake, now=later)
    found = of_catalogue(copied, 1, now, now=later)
    assert found[catalogue("excused")] == 0.0
    assert shares(found)[0] == 114 / 115
