"""Ingest: which rows it sets aside, with the reason, and which directories it refuses whole."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from coat_and_hat import CLICK, DAY, EVENTS, GOOD, HAT, ITEMS, NOW, PICTURES, QUERIES, Shop, counts, current, set_aside, versions

from moon_ops.errors import InputError
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake

# --- what is set aside --------------------------------------------------------------------------------------------------------

ASK = {"query_id": 9, "timestamp": "2026-05-03", "text": "hat"}
BAD_ROWS = [  # table, the row, where, column, what its reason says
    ("items", {**HAT, "title": ""}, "title", "title = '' is empty"),
    ("items", {**HAT, "title": "  "}, "title", "title = '  ' is empty"),
    ("items", {**HAT, "title": None}, "title", "title = None is empty"),
    ("items", {**HAT, "item_id": None}, "item_id", "item_id = None is not an id (a whole number from 0, or a text)"),
    ("items", {**HAT, "item_id": -9}, "item_id", "item_id = -9 is not an id (a whole number from 0, or a text)"),
    ("items", {**HAT, "item_id": 1}, "item_id", "item_id = 1 is there twice: the first row counts"),
    ("items", {**HAT, "price": -0.5}, "price", "price = -0.5 is below zero"),
    ("items", {**HAT, "available_from": "soon"}, "available_from", "available_from = 'soon' is not a time (e.g. "),
    ("items", {**HAT, "status": "sold out"}, "status", "status = 'sold out' is neither active nor deleted"),
    ("queries", {**ASK, "query_id": 1}, "query_id", "query_id = 1 is there twice: the first row counts"),
    ("queries", {**ASK, "timestamp": "2026-13-01"}, "timestamp", "timestamp = '2026-13-01' is not a time (e.g. "),
    ("queries", {**ASK, "text": None}, "text", "text = None and no image either: the query asks for nothing"),
    ("queries", {**ASK, "text": " "}, "text", "text = ' ' and no image either: the query asks for nothing"),
    ("events", {**CLICK, "event": "clik"}, "event", "event = 'clik' is not one of impression, click, cart, purchase"),
    ("events", {**CLICK, "event": None}, "event", "event = None is not one of impression, click, cart, purchase"),
    ("events", {**CLICK, "timestamp": "yesterday"}, "timestamp", "timestamp = 'yesterday' is not a time (e.g. "),
    ("events", {**CLICK, "timestamp": None}, "timestamp", "timestamp = None is not a time (e.g. "),
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
    assert report.first_refusal == (
        "events.jsonl:4: event = 'clik' is not one of impression, click, cart, purchase, cancel, return "
        "(moon.toml may say which of them it means)"
    )


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


def test_an_event_in_the_future_is_set_aside(make_shop: Shop, empty: Lake) -> None:
    times = [NOW + dt.timedelta(hours=23), NOW + dt.timedelta(hours=25)]
    events = [{"timestamp": t.isoformat(), "item_id": 1, "event": "click", "user_id": 1} for t in times]
    report = ingest(make_shop(items=[{"item_id": 1, "title": "Coat"}], events=events), empty, now=NOW)
    assert report.events == 1
    assert report.refused == {"events.jsonl timestamp": 1}
    assert "is in the future (it is 2026-06-01T00:00Z)" in report.first_refusal


# --- a directory that cannot be used ------------------------------------------------------------------------------------------

UNUSABLE = [
    ({"items": []}, r"items\.jsonl has no rows: the catalogue is empty and nothing was ingested → bring at least one item"),
    (
        {"items": [{"item_id": 1}]},
        r"items\.jsonl has no column 'title' \(it has item_id; .*\); nothing was ingested → add the column title",
    ),
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
    with pytest.raises(InputError, match=r"holds items\.csv and items\.jsonl: it is not clear which one counts; .* → remove all but one"):
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
