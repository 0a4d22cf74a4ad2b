"""A lake that an earlier version has made, read before anything is taken in again: nobody's upgrade begins with an ingest."""

from __future__ import annotations

import datetime as dt
from typing import Any

import lance
from fastapi.testclient import TestClient

from moon_ops import tasks
from moon_ops.lake import versions
from moon_ops.release.status import status
from moon_ops.serving.app import create_app

LATER = {"items": ["available_until", "stated", "extra"], "events": ["event_id", "order_id", "extra"], "queries": []}


def test_every_stage_reads_a_lake_without_the_columns_that_came_later(copied: Any, monkeypatch: Any) -> None:
    before = status(copied, now=dt.datetime.now(dt.UTC))
    for table, columns in LATER.items():
        if columns:
            lance.dataset(copied.lake.address(table)).drop_columns(columns)
    monkeypatch.setenv("MOON_HOME", str(copied.home))
    now = dt.datetime.now(dt.UTC).isoformat()
    assert status(copied, now=dt.datetime.now(dt.UTC))["items"] == before["items"]
    assert versions.current(copied.lake, ["title"], copied.lake.read("items")["item_id"].combine_chunks()).num_rows >= before["items"]
    encoder = tasks.served_encoder()
    assert encoder is not None
    assert tasks.refresh(encoder, now) == encoder
    assert tasks.require_complete([encoder], now)["items"] == before["items"]
    assert tasks.verify(now) >= 0
    with TestClient(create_app(copied)) as client:
        found = client.post("/v1/search", data={"text": "lamp", "k": "3"}).json()["items"]
        assert len(found) == 3
        assert all(item["title"] for item in found)
        assert client.post("/v1/score", json={"user_id": 1, "item_ids": [found[0]["item_id"]], "text": "lamp"}).status_code == 200
