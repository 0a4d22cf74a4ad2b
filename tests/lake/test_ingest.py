"""Ingest: what it adds, what it sets aside, and that neither a second run nor a killed one changes or loses anything."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon_ops.errors import InputError
from moon_ops.inputs import images
from moon_ops.lake.ingest import IngestReport, content_hash, ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import stable_id
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.tables import items_as_of

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
FIRST_EVENT = dt.datetime(2026, 5, 2, 10, 0, 1, tzinfo=dt.UTC)  # of the coat, which has no available_from
TABLES = ("images", "items", "queries", "events", "quarantine")
Shop = Callable[..., Path]

ITEMS = [
    {"item_id": 1, "title": "Wool coat", "category": "Clothes > Coats", "price": 99.5, "images": "a.png|b.png"},
    {"item_id": 2, "title": "Hat", "available_from": "2026-05-01", "attributes": {"colour": "red"}, "images": "a.png"},
]
QUERIES = [
    {"query_id": 1, "timestamp": "2026-05-02T10:00:00", "text": "coat"},
    {"query_id": 2, "timestamp": "2026-05-02T11:00:00", "image": "b.png"},
]
EVENTS = [
    {"timestamp": "2026-05-02T10:00:01", "item_id": 1, "event": "impression", "query_id": 1, "user_id": 7, "position": 0},
    {"timestamp": "2026-05-02T10:00:02", "item_id": 1, "event": "click", "query_id": 1, "user_id": 7, "position": 0},
    {"timestamp": "2026-05-02T10:00:03", "item_id": 2, "event": "purchase"},
]
PICTURES = {"a.png": "red", "b.png": "blue"}
GOOD: dict[str, Any] = {"items": ITEMS, "queries": QUERIES, "events": EVENTS, "pictures": PICTURES}


@pytest.fixture
def empty(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def counts(lake: Lake) -> dict[str, int]:
    return {name: lake.count(name) for name in TABLES}


def versions(lake: Lake) -> dict[str, int]:
    return {name: lake.open(name).version for name in TABLES}


def contents(lake: Lake) -> dict[str, list[str]]:
    """Every row of every table, in an order that does not depend on how it was written."""
    return {name: sorted(str(row) for row in lake.read(name).to_pylist()) for name in TABLES}


def current(lake: Lake, *columns: str, when: dt.datetime = NOW) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in items_as_of(lake, when, columns).to_pylist()]


def image_id(shop: Path, path: str) -> str:
    return images.image_id((shop / path).read_bytes())


def set_aside(lake: Lake) -> list[tuple[str, str, str]]:
    return [(row["source"], row["column"], row["reason"]) for row in lake.read("quarantine").to_pylist()]


# --- what goes in ---------------------------------------------------------------------------------------------------------------


def test_every_cell_arrives(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(**GOOD)
    assert ingest(shop, empty, now=NOW) == IngestReport(str(shop), images=2, items=2, updated=0, queries=2, events=3, known=0)
    a, b = image_id(shop, "a.png"), image_id(shop, "b.png")
    assert [{k: v for k, v in row.items() if k != "content_hash"} for row in empty.read("items").to_pylist()] == [
        {
            **{"item_id": 1, "spu_id": 1, "source_id": "1", "title": "Wool coat", "category": ["Clothes", "Coats"], "brand": None},
            **{"description": None, "attributes": [], "seller_id": None, "price": 99.5, "status": "active"},
            **{"image_ids": [a, b], "event_timestamp": FIRST_EVENT, "created": NOW},
        },
        {
            **{"item_id": 2, "spu_id": 2, "source_id": "2", "title": "Hat", "category": [], "brand": None},
            **{"description": None, "attributes": [("colour", "red")], "seller_id": None, "price": None, "status": "active"},
            **{"image_ids": [a], "event_timestamp": dt.datetime(2026, 5, 1, tzinfo=dt.UTC), "created": NOW},
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
    second, bare = dt.timedelta(seconds=1), {"user_id": None, "query_id": None, "session_id": None, "position": None, "created": NOW}
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
    assert report == IngestReport(str(other), images=0, items=0, updated=0, queries=0, events=0, known=5)
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
    assert again == IngestReport(str(shop), 0, 0, 0, 0, 0, known=5, refused=first.refused, first_refusal=first.first_refusal)
    assert versions(empty) == before
    assert counts(empty) == rows == {"images": 2, "items": 2, "queries": 2, "events": 3, "quarantine": 1}


def test_a_changed_title_is_a_new_version_from_now_on(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(**GOOD), empty, now=NOW)
    report = ingest(make_shop(items=[ITEMS[0], {**ITEMS[1], "title": "Red hat"}]), empty, now=NOW + DAY)
    assert (report.items, report.updated, report.known) == (0, 1, 4)
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


# --- what is set aside --------------------------------------------------------------------------------------------------------

HAT = {"item_id": 9, "title": "Hat"}
ASK = {"query_id": 9, "timestamp": "2026-05-03", "text": "hat"}
CLICK = {"timestamp": "2026-05-03", "item_id": 1, "event": "click"}
BAD_ROWS = [  # table, the row, where, column, what its reason says
    ("items", {**HAT, "title": ""}, "title", "title = '' is empty"),
    ("items", {**HAT, "title": "  "}, "title", "title = '  ' is empty"),
    ("items", {**HAT, "title": None}, "title", "title = None is empty"),
    ("items", {**HAT, "item_id": None}, "item_id", "item_id = None is not an id (a whole number from 0, or a text)"),
    ("items", {**HAT, "item_id": -9}, "item_id", "item_id = -9 is not an id (a whole number from 0, or a text)"),
    ("items", {**HAT, "item_id": 1}, "item_id", "item_id = 1 is there twice: the first row counts"),
    ("items", {**HAT, "price": -0.5}, "price", "price = -0.5 is below zero"),
    ("items", {**HAT, "available_from": "soon"}, "available_from", "available_from = 'soon' is not a time (ISO 8601, e.g. "),
    ("items", {**HAT, "status": "sold out"}, "status", "status = 'sold out' is neither active nor deleted"),
    ("queries", {**ASK, "query_id": 1}, "query_id", "query_id = 1 is there twice: the first row counts"),
    ("queries", {**ASK, "timestamp": "2026-13-01"}, "timestamp", "timestamp = '2026-13-01' is not a time (ISO 8601, e.g. "),
    ("queries", {**ASK, "text": None}, "text", "text = None and no image either: the query asks for nothing"),
    ("queries", {**ASK, "text": " "}, "text", "text = ' ' and no image either: the query asks for nothing"),
    ("events", {**CLICK, "event": "clik"}, "event", "event = 'clik' is not one of impression, click, cart, purchase"),
    ("events", {**CLICK, "event": None}, "event", "event = None is not one of impression, click, cart, purchase"),
    ("events", {**CLICK, "timestamp": "yesterday"}, "timestamp", "timestamp = 'yesterday' is not a time (ISO 8601, e.g. "),
    ("events", {**CLICK, "timestamp": None}, "timestamp", "timestamp = None is not a time (ISO 8601, e.g. "),
    ("events", {**CLICK, "item_id": 99}, "item_id", "item_id = 99 is no item of the catalogue"),
    ("events", {**CLICK, "query_id": 99}, "query_id", "query_id = 99 is no known query"),
    ("events", {**CLICK, "position": 1.5}, "position", "position = 1.5 is not a whole number"),
    ("events", {**CLICK, "user_id": -1}, "user_id", "user_id = -1 is not an id (a whole number from 0, or a text)"),
]


def test_bad_rows_are_set_aside_with_their_reasons_and_the_rest_goes_on(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(items=[{"item_id": 50, "title": "here before"}]), empty, now=NOW - DAY)
    bad = {table: [row for of, row, *_ in BAD_ROWS if of == table] for table in ("items", "queries", "events")}
    shop = make_shop(pictures=PICTURES, **{table: [*GOOD[table], *rows] for table, rows in bad.items()})
    report = ingest(shop, empty, now=NOW)
    assert (report.items, report.queries, report.events) == (2, 2, 3)
    assert counts(empty) == {"images": 2, "items": 3, "queries": 2, "events": 3, "quarantine": len(BAD_ROWS)}
    assert sum(report.refused.values()) == len(BAD_ROWS)
    found = {(row["source"], row["column"]): row for row in empty.read("quarantine").to_pylist()}
    for table, row, column, reason in BAD_ROWS:
        refused = found[f"{table}.jsonl:{len(GOOD[table]) + bad[table].index(row) + 1}", column]
        assert refused["reason"].startswith(reason)
        assert refused["created"] == NOW
        kept = json.loads(refused["row"])
        assert {name: kept[name] for name in row} == row
        assert report.refused[f"{table}.jsonl {column}"] >= 1
    again = ingest(shop, empty, now=NOW + DAY)
    assert (again.refused, again.first_refusal) == (report.refused, report.first_refusal)
    assert empty.count("quarantine") == len(BAD_ROWS)


def test_of_two_rows_with_one_id_the_first_good_one_counts(make_shop: Shop, empty: Lake) -> None:
    items = [{**HAT, "title": ""}, {**HAT, "title": "Hat"}, {**HAT, "title": "Cap"}]
    report = ingest(make_shop(items=items), empty, now=NOW)
    assert current(empty, "title") == [("Hat",)]
    assert report.refused == {"items.jsonl title": 1, "items.jsonl item_id": 1}


def test_the_first_refusal_is_told_with_its_file_and_row(make_shop: Shop, empty: Lake) -> None:
    report = ingest(make_shop(**{**GOOD, "events": [*EVENTS, {**CLICK, "event": "clik"}]}), empty, now=NOW)
    assert report.refused == {"events.jsonl event": 1}
    assert report.first_refusal == "events.jsonl:4: event = 'clik' is not one of impression, click, cart, purchase"


def test_a_word_in_a_column_of_numbers_costs_its_row_only(make_shop: Shop, empty: Lake) -> None:
    report = ingest(make_shop(items=[{**HAT, "price": 9.5}, {"item_id": 10, "title": "Cap", "price": "cheap"}]), empty, now=NOW)
    assert current(empty, "item_id", "price") == [(9, 9.5)]
    assert report.first_refusal == "items.jsonl:2: price = 'cheap' is not a number"


@pytest.mark.parametrize("attributes", ["red", "[1, 2]", 5, ["red"]], ids=str)
def test_attributes_that_are_no_object_cost_their_row(make_shop: Shop, empty: Lake, attributes: Any) -> None:
    report = ingest(make_shop(items=[HAT, {"item_id": 10, "title": "Cap", "attributes": attributes}]), empty, now=NOW)
    assert current(empty, "item_id") == [(9,)]
    assert set_aside(empty) == [("items.jsonl:2", "attributes", f"attributes = {attributes!r} is not an object")]
    assert report.items == 1


def test_attributes_of_different_types_are_all_read(make_shop: Shop, empty: Lake) -> None:
    items = [{**HAT, "attributes": {"size": 42}}, {"item_id": 10, "title": "Cap", "attributes": {"size": "L"}}]
    assert ingest(make_shop(items=items), empty, now=NOW).refused == {}
    assert current(empty, "item_id", "attributes") == [(9, [("size", "42")]), (10, [("size", "L")])]


@pytest.mark.parametrize("brand", [361, None, ""], ids=repr)
def test_a_brand_may_be_a_number_or_nothing(make_shop: Shop, empty: Lake, brand: Any) -> None:
    ingest(make_shop(items=[{**HAT, "brand": brand, "status": None, "category": 12 if brand else None}]), empty, now=NOW)
    assert current(empty, "brand", "status", "category") == [("361" if brand else None, "active", ["12"] if brand else [])]


def test_an_event_of_an_unknown_text_id_names_the_text(make_shop: Shop, empty: Lake) -> None:
    items, events = [{"item_id": "sku-1", "title": "Hat"}], [{**CLICK, "item_id": "sku-2"}, {**CLICK, "item_id": "sku-1"}]
    report = ingest(make_shop(items=items, events=events), empty, now=NOW)
    assert report.first_refusal == "events.jsonl:1: item_id = 'sku-2' is no item of the catalogue"
    assert report.events == 1


def test_an_event_may_name_an_item_and_a_query_of_before(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(**GOOD), empty, now=NOW)
    later = make_shop("later", items=[HAT], events=[{**CLICK, "query_id": 1}, {**CLICK, "item_id": 9}])
    assert ingest(later, empty, now=NOW + DAY).refused == {}
    assert empty.count("events") == 5


def test_a_query_is_never_overwritten(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(**GOOD), empty, now=NOW)
    report = ingest(make_shop(queries=[{**QUERIES[0], "text": "hat"}, QUERIES[1]]), empty, now=NOW + DAY)
    assert report.first_refusal == "queries.jsonl:1: query_id = 1 is in the lake with another content"
    assert [row["text"] for row in empty.read("queries").to_pylist()] == ["coat", None]
    assert json.loads(empty.read("quarantine")["row"][0].as_py())["text"] == "hat"


# --- a directory that cannot be used ------------------------------------------------------------------------------------------

UNUSABLE = [
    ({"items": []}, r"items\.jsonl has no rows: the catalogue is empty and nothing was ingested → bring at least one item"),
    ({"items": [{"item_id": 1}]}, r"items\.jsonl has no column 'title' \(it has item_id\); nothing was ingested → add the column title"),
    ({"items": [{"title": "Hat"}]}, r"items\.jsonl has no column 'item_id'"),
    ({"items": [{**HAT, "title": ["Hat"]}]}, r"items\.jsonl: column 'title' holds list<.*>, not texts; nothing was ingested → write title"),
    ({"items": [{**HAT, "item_id": {"sku": 1}}]}, r"items\.jsonl: column 'item_id' holds struct<.*>, not texts"),
    ({"queries": [{"query_id": 1, "text": "hat"}]}, r"queries\.jsonl has no column 'timestamp'"),
    ({"events": [{"timestamp": "2026-05-01", "event": "click"}]}, r"events\.jsonl has no column 'item_id'"),
    ({"events": [{"timestamp": "2026-05-01", "item_id": 1}]}, r"events\.jsonl has no column 'event'"),
]


@pytest.mark.parametrize(("change", "reason"), UNUSABLE, ids=[u[1][:40] for u in UNUSABLE])
def test_a_directory_that_cannot_be_used_changes_nothing(make_shop: Shop, empty: Lake, change: dict[str, Any], reason: str) -> None:
    ingest(make_shop("before", **GOOD), empty, now=NOW)
    before = versions(empty)
    bad = make_shop("bad", **{**GOOD, "pictures": {"a.png": "green", "b.png": "white"}, **change})
    with pytest.raises(InputError, match=reason):
        ingest(bad, empty, now=NOW + DAY)
    assert versions(empty) == before


def test_two_items_files_are_refused(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(**GOOD)
    (shop / "items.csv").write_text("item_id,title\n1,coat\n")
    with pytest.raises(InputError, match=r"holds items\.jsonl and items\.csv: it is not clear which one counts → remove all but one"):
        ingest(shop, empty, now=NOW)
    assert not Path(empty.uri).exists()


def test_a_directory_without_items_is_refused(make_shop: Shop, empty: Lake, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shop has no items\.parquet, items\.jsonl or items\.csv: nothing to ingest → add the items file"):
        ingest(make_shop(queries=QUERIES, events=EVENTS), empty, now=NOW)
    with pytest.raises(InputError, match=r"DIRECTORY = .*/nowhere is not a directory → name a directory that holds an items file"):
        ingest(tmp_path / "nowhere", empty, now=NOW)
    assert not Path(empty.uri).exists()


def test_a_catalogue_of_which_nothing_can_be_used_is_refused_and_its_rows_are_kept(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(items=[{**HAT, "title": ""}, {"item_id": 10, "title": "Cap", "price": -1}])
    with pytest.raises(
        InputError, match=r"no item could be used \(items\.jsonl:2: price = -1.* is below zero\); the catalogue is empty → mend"
    ):
        ingest(shop, empty, now=NOW)
    assert not empty.exists("items")
    assert sorted(source for source, *_ in set_aside(empty)) == ["items.jsonl:1", "items.jsonl:2"]


def test_later_a_file_of_bad_items_takes_none_away(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(**GOOD), empty, now=NOW)
    report = ingest(make_shop(items=[{**ITEMS[0], "title": ""}]), empty, now=NOW + DAY)
    assert (report.items, report.updated, report.refused) == (0, 0, {"items.jsonl title": 1})
    assert current(empty, "title", when=NOW + DAY) == [("Wool coat",), ("Hat",)]


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
    assert set(SCHEMAS) == set(TABLES)
    named = {name for ids in lake.read("items", ["image_ids"])["image_ids"].to_pylist() for name in ids}
    stored = lake.read("images", ["image_id"])["image_id"].to_pylist()
    assert named <= set(stored)
    assert len(stored) == len(set(stored))


def test_an_item_without_a_date_was_there_at_its_first_event(make_shop: Shop, empty: Lake) -> None:
    events = [{"timestamp": f"2026-05-0{d}T00:00:00Z", "item_id": 1, "event": "click", "user_id": 1} for d in (3, 2)]
    ingest(make_shop(items=[{"item_id": 1, "title": "Coat"}, {"item_id": 2, "title": "Hat"}], events=events), empty, now=NOW)
    found = empty.read("items", ["item_id", "event_timestamp"]).to_pylist()
    assert [(r["item_id"], r["event_timestamp"]) for r in found] == [(1, dt.datetime(2026, 5, 2, tzinfo=dt.UTC)), (2, NOW)]


def test_an_event_in_the_future_is_set_aside(make_shop: Shop, empty: Lake) -> None:
    times = [NOW + dt.timedelta(hours=23), NOW + dt.timedelta(hours=25)]
    events = [{"timestamp": t.isoformat(), "item_id": 1, "event": "click", "user_id": 1} for t in times]
    report = ingest(make_shop(items=[{"item_id": 1, "title": "Coat"}], events=events), empty, now=NOW)
    assert report.events == 1
    assert report.refused == {"events.jsonl timestamp": 1}
    assert "is in the future (it is 2026-06-01T00:00Z)" in report.first_refusal
