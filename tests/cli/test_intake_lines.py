"""What `moon ingest` and `moon check` say: sentences, or one object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moon_ops.cli.main import app

ITEMS = [{"item_id": 1, "title": "red mug", "images": ["a.png"]}, {"item_id": 2, "title": "blue mug"}]
QUERIES = [{"query_id": 7, "timestamp": "2026-01-01T10:00:00Z", "text": "mug"}]
EVENTS = [{"timestamp": "2026-01-01T10:00:01Z", "item_id": 1, "query_id": 7, "event": "click"}]
RED = {"a.png": "red"}


def test_ingest_and_check_speak_in_sentences_and_as_one_object(make_shop: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOON_HOME", str(tmp_path / "home"))

    def moon(*arguments: str) -> list[str]:
        return CliRunner().invoke(app, [*arguments]).stdout.splitlines()

    items = [{**ITEMS[0], "images": "a.png"}, {**ITEMS[0], "images": "gone.png"}, {"item_id": 3, "title": "cup", "price": "cheap"}]
    shop = make_shop("shop", RED, items=items, queries=QUERIES, events=EVENTS)
    (shop / "prices.doc").write_text("?")
    lacks = [
        "missing for ctr: no event has a user_id: no click model is trained",
        "missing for gates: no purchases: the encoder is judged by clicks and carts",
        "missing for features: no item has a price",
    ]
    left = ["refused: 1 row (1 x items.jsonl price)", "unread: 1 picture (1 x items.jsonl images)"]
    note = "notes: not read, because no table is called so: prices.doc"
    read = [f"read: {name}.jsonl as JSON lines, UTF-8" for name in ("items", "queries", "events")]
    checked = moon("check", str(shop))
    assert checked[:3] == read
    assert checked[3:8] == [
        "items: 3 rows: 1 new, 0 twice, 1 refused, 1 merged",
        "queries: 1 row: 1 new, 0 twice, 0 refused",
        "events: 1 row: 1 new, 0 twice, 0 refused",
        "pictures: 1 found, 1 missing, 0 addresses",
        "pairs: 1 pair of query and item to learn from",
    ]
    assert [*left, note, *lacks] == [line for line in checked[8:] if not line.startswith(("behaviour: ", "reasons: "))]
    done = moon("ingest", str(shop), "--allow-quarantine")
    counts = ["new: 1 item, 1 picture, 1 query, 1 event, 0 users", "changed: 0 items", "known: 0 rows, in the lake already"]
    assert done == [*read, *counts, "merged: 1 row, each into the item that it continues", *left, note]
    told = json.loads(moon("ingest", str(shop), "--allow-quarantine", "--json")[0])
    assert (told["items"], told["known"], told["unread"]) == (0, 3, {"items.jsonl images": 1})
