"""`moon check` says what an ingest into an empty lake would do: the same rows refused, the same pictures not read, the same end."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from moon_ops.errors import InputError
from moon_ops.lake import checking
from moon_ops.lake.checking import check
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from tests.lake.coat_and_hat import CLICK, GOOD, NOW, Shop
from tests.lake.test_fuzz import KINDS, SHORT, TABLES, TEXTS, TIMES, write

ITEM = {"item_id": 1, "title": "Coat"}
Rows = dict[str, list[dict[str, Any]]]
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


ITEM_LOST, QUERY_LOST = "is no item of the catalogue", "is no known query"  # what an ingest says, which looks into the lake, too
STATES = st.sampled_from([None, None, "active", "deleted", "draft", "odd"])
ATTRIBUTES = st.sampled_from([None, None, '{"colour": "red"}', "[1", "7"])
PLACED = {"a.jpg": b"", "b.jpg": b"no picture", "d.jpg": b""}  # c.jpg is not there
QUERIES = {
    "query_id": st.integers(1, 4) | st.none(),
    "timestamp": TIMES,
    "text": TEXTS,
    "image": st.sampled_from([None, None, *"abcd"]).map(lambda name: name and f"{name}.jpg"),
}
USERS = {"user_id": st.integers(1, 4) | st.none(), "timestamp": TIMES, "tier": TEXTS}


def widened(tables: Rows, draw: Any) -> Rows:
    """The fuzzer's items and events with states, attributes and queries, which name each other more often than not."""
    items = [row | {"status": draw(STATES), "attributes": draw(ATTRIBUTES)} for row in tables["items"]]
    items[0] |= {"title": "lamp", "status": None, "attributes": None}  # else most catalogues would be empty
    named = st.sampled_from([row["item_id"] for row in items] + [None])
    asked = st.sampled_from([1, 2, 9, None])
    events = [row | {"item_id": draw(named), "query_id": draw(asked)} for row in tables["events"]]
    events += draw(st.lists(st.sampled_from(events), max_size=3))
    drawn = {name: draw(st.lists(st.fixed_dictionaries(kind), max_size=4)) for name, kind in (("queries", QUERIES), ("users", USERS))}
    return {"items": items, "events": events, **{name: rows for name, rows in drawn.items() if rows}}


def fates(place: Path, lake: Lake) -> tuple[Any, Any]:
    """What an ingest into an empty lake does, and what a check says of it, in the same words."""
    try:
        done = ingest(place, lake, now=NOW)
    except InputError as ended:
        with pytest.raises(InputError) as told:
            check(place, now=NOW)
        return str(ended), str(told.value)
    said = check(place, now=NOW)
    new = {name: said.tables.get(name, {}).get("new", 0) for name in ("items", "queries", "events", "users")}
    added = {"items": done.items, "queries": done.queries, "events": done.events, "users": done.users}
    twice, merged = (sum(fate.get(what, 0) for fate in said.tables.values()) for what in ("twice", "merged"))
    set_aside = {f"{row['source']}: {row['reason']}" for row in lake.read("quarantine").to_pylist()}
    reasons = {
        line.replace("is no item of this directory", ITEM_LOST).replace("is no query of this directory", QUERY_LOST)
        for line in said.reasons
    }
    return (
        (added, done.known, done.merged, done.refused, done.unread, done.images, set_aside, done.read, list(done.notes)),
        (new, twice, merged, said.refused, said.unread_rows, said.pictures["found"], reasons, said.read, said.notes),
    )


@SHORT
@given(tables=TABLES, data=st.data(), kind=st.sampled_from(KINDS))
def test_check_and_ingest_agree_on_whatever_the_fuzzer_makes(tables: Rows, data: st.DataObject, kind: str) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(checking, "SHOWN", 10**6)  # reasons: all of them
        place = Path(folder, "shop")
        place.mkdir()
        for number, (name, content) in enumerate(PLACED.items()):
            if content:
                (place / name).write_bytes(content)
            else:
                Image.new("RGB", (4, 3), (number * 50, 0, 0)).save(place / name)
        for name, rows in widened(tables, data.draw).items():
            write(place, name, kind, rows)
        done, said = fates(place, Lake(f"{folder}/lake"))
    assert said == done
