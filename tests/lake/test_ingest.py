"""Ingest: what it adds, and that neither a second run nor a killed one changes or loses anything."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from coat_and_hat import (
    CLICK,
    DAY,
    EVENTS,
    GOOD,
    ITEMS,
    NOW,
    PICTURES,
    QUERIES,
    TABLES,
    Shop,
    contents,
    counts,
    current,
    image_id,
    versions,
)

from moon_ops.lake.ids import stable_id
from moon_ops.lake.ingest import IngestReport, ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.versions import content_hash

FIRST_EVENT = dt.datetime(2026, 5, 2, 10, 0, 1, tzinfo=dt.UTC)  # of the coat, which has no available_from

# --- what goes in ---------------------------------------------------------------------------------------------------------------


def test_every_cell_arrives(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(**GOOD)
    assert ingest(shop, empty, now=NOW) == IngestReport(str(shop), images=2, items=2, updated=0, queries=2, events=3, known=0)
    a, b = image_id(shop, "a.png"), image_id(shop, "b.png")
    assert [{k: v for k, v in row.items() if k != "content_hash"} for row in empty.read("items").to_pylist()] == [
        {
            **{"item_id": 1, "spu_id": 1, "source_id": "1", "title": "Wool coat", "category": ["Clothes", "Coats"], "brand": None},
            **{"description": None, "attributes": [], "seller_id": None, "price": 99.5, "status": "active"},
            **{"image_ids": [a, b], "event_timestamp": FIRST_EVENT, "created": NOW, "extra": None},
            **{"available_until": None, "stated": NOW},
        },
        {
            **{"item_id": 2, "spu_id": 2, "source_id": "2", "title": "Hat", "category": [], "brand": None},
            **{"description": None, "attributes": [("colour", "red")], "seller_id": None, "price": None, "status": "active"},
            **{"image_ids": [a], "event_timestamp": dt.datetime(2026, 5, 1, tzinfo=dt.UTC), "created": NOW, "extra": None},
            **{"available_until": None, "stated": NOW},
        },
    ]
    ten = dt.datetime(2026, 5, 2, 10, tzinfo=dt.UTC)
    assert empty.read("queries").to_pylist() == [
        {"query_id": 1, "source_id": "1", "text": "coat", "image_id": None, "event_timestamp": ten, "created": NOW},
        {
            **{"query_id": 2, "source_id": "2", "text": None, "image_id": b},
            **{"event_timestamp": ten + dt.timedelta(hours=1), "created": NOW},
        },
    ]
    second, bare = (
        dt.timedelta(seconds=1),
        {"user_id": None, "query_id": None, "session_id": None, "position": None, "created": NOW, "extra": None}
        | {"event_id": None, "order_id": None},
    )
    seen = {**bare, "user_id": 7, "item_id": 1, "query_id": 1, "position": 0}
    assert sorted(empty.read("events").to_pylist(), key=lambda row: row["event_timestamp"]) == [
        {**seen, "event_timestamp": ten + second, "event": "impression"},
        {**seen, "event_timestamp": ten + 2 * second, "event": "click"},
        {**bare, "event_timestamp": ten + 3 * second, "item_id": 2, "event": "purchase"},
    ]
    assert empty.count("quarantine") == 0


def test_text_ids_become_numbers_and_are_kept(make_shop: Shop, empty: Lake) -> None:
    items = [{"item_id": "sku-1", "title": "Coat", "spu_id": "coats", "seller_id": "nord"}, {"item_id": "1002", "title": "Hat"}]
    events = [{"timestamp": "2026-05-02", "item_id": item, "event": "click", "user_id": "ann"} for item in ("sku-1", "1002")]
    ingest(make_shop(items=items, events=events), empty, now=NOW)
    ids = {name: stable_id(name) for name in ("sku-1", "coats", "nord", "ann")}
    assert sorted(current(empty, "item_id", "source_id", "spu_id", "seller_id")) == [
        (1002, "1002", 1002, None),
        (ids["sku-1"], "sku-1", ids["coats"], ids["nord"]),
    ]
    clicked = empty.read("events", ["item_id", "user_id"]).to_pylist()
    assert {(row["item_id"], row["user_id"]) for row in clicked} == {(ids["sku-1"], ids["ann"]), (1002, ids["ann"])}
    assert ingest(make_shop("numbers", items=[{"item_id": 1002, "title": "Hat"}]), empty, now=NOW).known == 1


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_same_shop_in_another_format_is_known(make_shop: Shop, empty: Lake, ending: str) -> None:
    ingest(make_shop(**GOOD), empty, now=NOW)
    before, other = versions(empty), make_shop("other", pictures=PICTURES)
    for name, records in (("items", ITEMS), ("queries", QUERIES), ("events", EVENTS)):
        columns = list(dict.fromkeys(c for record in records for c in record))
        cells = {c: [json.dumps(r[c]) if isinstance(r.get(c), dict) else r.get(c) for r in records] for c in columns}
        if ending == "parquet":
            pq.write_table(pa.table(cells), other / f"{name}.parquet")
        else:
            pa.table(cells).to_pandas().to_csv(other / f"{name}.csv", index=False)  # pandas writes whole numbers with gaps as 7.0
    report = ingest(other, empty, now=NOW + DAY)
    assert report == IngestReport(str(other), images=0, items=0, updated=0, queries=0, events=0, known=7)
    assert versions(empty) == before


def test_queries_and_events_are_optional(make_shop: Shop, empty: Lake) -> None:
    report = ingest(make_shop(items=[{"item_id": 1, "title": "Hat"}]), empty, now=NOW)
    assert (report.items, report.queries, report.events) == (1, 0, 0)
    assert all(empty.exists(name) for name in ("items", "queries", "events"))
    assert ingest(make_shop(queries=[], events=[]), empty, now=NOW).known == 1  # files without a row


def test_the_same_event_twice_in_a_file_is_one(make_shop: Shop, empty: Lake) -> None:
    assert ingest(make_shop(items=ITEMS, events=[EVENTS[2], EVENTS[2]]), empty, now=NOW).events == 1


# --- again --------------------------------------------------------------------------------------------------------------------


def test_the_same_directory_twice_changes_nothing(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(**{**GOOD, "events": [*EVENTS, {**EVENTS[0], "item_id": 99}]})
    first = ingest(shop, empty, now=NOW)
    before, rows = versions(empty), counts(empty)
    again = ingest(shop, empty, now=NOW + DAY)
    assert again == IngestReport(str(shop), 0, 0, 0, 0, 0, known=7, refused=first.refused, first_refusal=first.first_refusal)
    assert versions(empty) == before
    assert counts(empty) == rows == {"images": 2, "items": 2, "queries": 2, "events": 3, "quarantine": 1}


def test_a_changed_title_is_a_new_version_from_now_on(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(**GOOD), empty, now=NOW)
    report = ingest(make_shop(items=[ITEMS[0], {**ITEMS[1], "title": "Red hat"}]), empty, now=NOW + DAY)
    assert (report.items, report.updated, report.known) == (0, 1, 6)
    assert empty.count("items") == 3
    assert current(empty, "title", when=NOW + DAY - dt.timedelta(microseconds=1)) == [("Wool coat",), ("Hat",)]
    assert current(empty, "title", "event_timestamp", when=NOW + DAY) == [("Wool coat", FIRST_EVENT), ("Red hat", NOW + DAY)]
    old, new = (row["content_hash"] for row in empty.read("items", ["content_hash"], "item_id = 2").to_pylist())
    assert old != new


@pytest.mark.parametrize("change", [{"price": 5.0}, {"price": None}, {"seller_id": 9}, {"spu_id": 1}], ids=str)
def test_a_change_that_no_encoder_reads_is_a_new_version_with_the_same_hash(make_shop: Shop, empty: Lake, change: dict[str, Any]) -> None:
    hat = {"item_id": 2, "title": "Hat", "price": 9.5}
    ingest(make_shop(items=[hat]), empty, now=NOW)
    assert ingest(make_shop(items=[{**hat, **change}]), empty, now=NOW + DAY).updated == 1
    old, new = empty.read("items").to_pylist()
    assert old["content_hash"] == new["content_hash"]
    ((name, value),) = change.items()
    assert (old[name], new[name]) == ({"price": 9.5, "seller_id": None, "spu_id": 2}[name], value)
    assert (old["event_timestamp"], new["event_timestamp"]) == (NOW, NOW + DAY)
    assert ingest(make_shop(), empty, now=NOW + 2 * DAY).updated == 0


def test_the_hash_is_of_all_that_an_encoder_reads() -> None:
    item = {"title": "Hat", "category": ["A"], "brand": "N", "description": "d", "attributes": [("size", "L")], "image_ids": ["a", "b"]}
    changed: dict[str, Any] = {"title": "Cap", "category": ["A", "B"], "brand": None, "description": None}
    changed |= {"attributes": [("size", "M")], "image_ids": ["b", "a"]}
    hashes = {content_hash({**item, name: value}) for name, value in changed.items()}
    assert len(hashes | {content_hash(item)}) == 7
    assert content_hash({**item, "price": 3}) == content_hash(item) == "887310e2ba10eddaf2a6f64b"


def test_a_deleted_item_ends_now_and_an_item_that_is_not_brought_stays(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(**GOOD), empty, now=NOW)
    assert ingest(make_shop(items=[{**ITEMS[1], "status": "deleted"}]), empty, now=NOW + DAY).updated == 1
    assert current(empty, "item_id", when=NOW) == [(1,), (2,)]
    assert current(empty, "item_id", when=NOW + DAY) == [(1,)]
    assert ingest(make_shop(items=[ITEMS[1]]), empty, now=NOW + 2 * DAY).updated == 1
    assert current(empty, "item_id", when=NOW + 2 * DAY) == [(1,), (2,)]


def test_two_changes_at_one_moment_leave_the_second(make_shop: Shop, empty: Lake) -> None:
    """Several items, because a database breaks ties as it likes."""
    for title in ("Hat", "Cap", "Hat"):
        ingest(make_shop(items=[{"item_id": n, "title": title} for n in range(20)]), empty, now=NOW)
    assert empty.count("items") == 60
    assert current(empty, "title") == [("Hat",)] * 20
    assert ingest(make_shop(), empty, now=NOW).updated == 0


def test_an_item_that_is_to_come_is_changed_where_it_comes(make_shop: Shop, empty: Lake) -> None:
    """A change brings no item forward, and the change is known the next time."""
    coming = {"item_id": 3, "title": "Scarf", "available_from": "2026-07-01"}
    july = dt.datetime(2026, 7, 1, tzinfo=dt.UTC)
    ingest(make_shop(items=[coming]), empty, now=NOW)
    shop = make_shop(items=[{**coming, "title": "Red scarf"}])
    assert ingest(shop, empty, now=NOW + DAY).updated == 1
    assert current(empty, "title", when=july - DAY) == []
    assert current(empty, "title", when=july) == [("Red scarf",)]
    assert ingest(shop, empty, now=NOW + 2 * DAY).updated == 0
    assert empty.count("items") == 2


def test_events_of_a_later_day_are_added_to_those_there(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(**GOOD), empty, now=NOW)
    more = {**EVENTS[1], "timestamp": "2026-05-02T10:00:02.000001"}
    anonymous = {**EVENTS[1], "user_id": None}
    assert ingest(make_shop(events=[*EVENTS, more, anonymous]), empty, now=NOW + DAY).events == 2
    assert empty.count("events") == 5


# --- killed -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_a_killed_ingest_is_finished_by_running_it_again(make_shop: Shop, tmp_path: Path, table: str) -> None:
    shop = make_shop(**{**GOOD, "events": [*EVENTS, {**CLICK, "item_id": 99}]})
    calm, killed = Lake(str(tmp_path / "calm")), Lake(str(tmp_path / "killed"))
    ingest(shop, calm, now=NOW)
    append = Lake.append

    def kill(lake: Lake, name: str, rows: pa.Table) -> int:
        if name == table:
            raise KeyboardInterrupt
        return append(lake, name, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lake, "append", kill)
        with pytest.raises(KeyboardInterrupt):
            ingest(shop, killed, now=NOW)
    assert killed.count(table) == 0
    assert contents(killed) != contents(calm)
    known_items = set(killed.read("items", ["item_id"])["item_id"].to_pylist())
    assert {row["item_id"] for row in killed.read("events", ["item_id"]).to_pylist()} <= known_items
    ingest(shop, killed, now=NOW)
    assert contents(killed) == contents(calm)
    assert counts(killed) == {"images": 2, "items": 2, "queries": 2, "events": 3, "quarantine": 1}


def test_the_simulated_shop_goes_in_whole(lake: Lake, shop: Path) -> None:
    raw = {name: pq.read_table(shop / f"{name}.parquet") for name in ("items", "queries", "events")}
    assert {name: lake.count(name) for name in raw} == {name: table.num_rows for name, table in raw.items()}
    assert lake.count("quarantine") == 0
    assert set(SCHEMAS) == {*TABLES, "users", "fetches", "ids", "erased"}
    assert not lake.exists("ids"), "whole numbers are their own keys"
    assert not lake.exists("users"), "the simulated shop tells nothing of them"
    assert not lake.exists("fetches"), "its pictures are files"
    named = {name for ids in lake.read("items", ["image_ids"])["image_ids"].to_pylist() for name in ids}
    stored = lake.read("images", ["image_id"])["image_id"].to_pylist()
    assert named <= set(stored)
    assert len(stored) == len(set(stored))


def test_an_item_without_a_date_was_there_at_its_first_event(make_shop: Shop, empty: Lake) -> None:
    events = [{"timestamp": f"2026-05-0{d}T00:00:00Z", "item_id": 1, "event": "click", "user_id": 1} for d in (3, 2)]
    ingest(make_shop(items=[{"item_id": 1, "title": "Coat"}, {"item_id": 2, "title": "Hat"}], events=events), empty, now=NOW)
    found = empty.read("items", ["item_id", "event_timestamp"]).to_pylist()
    assert [(r["item_id"], r["event_timestamp"]) for r in found] == [(1, dt.datetime(2026, 5, 2, tzinfo=dt.UTC)), (2, NOW)]
