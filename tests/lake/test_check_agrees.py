"""`moon check` says what an ingest into an empty lake would do: the same rows refused, the same pictures not read, the same end."""

from __future__ import annotations

from typing import Any

import pytest

from moon_ops.errors import InputError
from moon_ops.lake.checking import check
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from tests.lake.coat_and_hat import CLICK, GOOD, NOW, Shop

ITEM = {"item_id": 1, "title": "Coat"}
ASKED = {"query_id": 5, "timestamp": "2026-05-01", "image": "gone.png"}
SHOPS: dict[str, dict[str, Any]] = {
    "good": GOOD,
    "a withdrawal of what is not there": {"items": [ITEM, {"item_id": 2, "status": "deleted"}], "events": [{**CLICK, "item_id": 2}]},
    "a query of a lost picture": {"items": [ITEM], "queries": [ASKED], "events": [{**CLICK, "query_id": 5}]},
    "a query of a broken picture": {"items": [ITEM], "queries": [{**ASKED, "image": "b.png"}], "pictures": {"b.png": b"none"}},
    "a broken picture": {"items": [{**ITEM, "images": "b.png|a.png"}], "pictures": {"a.png": "red", "b.png": b"no picture"}},
    "a cut one": {"items": [{**ITEM, "images": "a.png"}], "pictures": {"a.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"}},
    "odd attributes": {"items": [ITEM, {"item_id": 3, "title": "Hat", "attributes": "[1"}]},
    "nothing that can be used": {"items": [{**ITEM, "price": "cheap"}]},
    "events twice": {"items": [ITEM], "events": [CLICK, CLICK, {**CLICK, "event": "wink"}]},
}


@pytest.mark.parametrize("name", SHOPS)
def test_check_and_ingest_agree(make_shop: Shop, empty: Lake, name: str) -> None:
    shop = make_shop(**SHOPS[name])
    if name == "nothing that can be used":
        with pytest.raises(InputError) as ended:
            ingest(shop, empty, now=NOW)
        with pytest.raises(InputError) as told:
            check(shop, now=NOW)
        assert str(told.value) == str(ended.value)
        return
    done, said = ingest(shop, empty, now=NOW), check(shop, now=NOW)
    assert said.refused == done.refused
    assert bool(said.unread) == bool(done.unread)
    assert said.read == done.read
    new = {table: fate["new"] for table, fate in said.tables.items()}
    assert (new["items"], new.get("queries", 0), new.get("events", 0)) == (done.items, done.queries, done.events)
    assert sum(fate["twice"] for fate in said.tables.values()) == done.known
