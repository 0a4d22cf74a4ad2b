"""The quarantine as a tool, and what an ingest would do before it does it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from coat_and_hat import DAY, EVENTS, GOOD, ITEMS, NOW, PICTURES, QUERIES, Shop

from moon_ops.errors import InputError
from moon_ops.lake import quarantine
from moon_ops.lake.checking import check
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake

BAD: dict[str, Any] = {
    "items": [
        *ITEMS,
        {"item_id": 7, "title": "Cap", "price": "cheap", "attributes": {"size": "L"}},
        {"item_id": 8, "title": "Cap, red", "price": "dear"},
        {"item_id": 9, "title": "Scarf", "images": "gone.png"},
    ],
    "queries": QUERIES,
    "events": [*EVENTS, {"timestamp": "now", "item_id": 1, "event": "click"}],
    "pictures": PICTURES,
}


def test_refused_rows_are_counted_by_table_column_and_reason(make_shop: Shop, empty: Lake) -> None:
    assert quarantine.refused(empty) == []
    ingest(make_shop(**BAD), empty, now=NOW)
    found = quarantine.counts(quarantine.refused(empty))
    assert [(line["table"], line["column"], line["rows"]) for line in found] == [
        ("items", "price", 2),
        ("events", "timestamp", 1),
        ("items", "images", 1),
    ]
    assert (found[0]["reason"], found[0]["example"][:14]) == ("is not a number", "items.jsonl:3:"[:14])
    assert quarantine.report(quarantine.refused(empty, "events"))["rows"] == 1
    with pytest.raises(InputError, match="--table 'goods' is no table of a shop"):
        quarantine.refused(empty, "goods")


def test_refused_rows_go_back_as_csv(make_shop: Shop, empty: Lake, tmp_path: Path) -> None:
    ingest(make_shop(**BAD), empty, now=NOW)
    for table in ("items", "events"):
        shop = tmp_path / "mended"
        shop.mkdir(exist_ok=True)
        made = quarantine.write_csv(quarantine.refused(empty, table), shop / f"{table}.csv")
        assert made == [shop / f"{table}.csv"]
        text = made[0].read_text(encoding="utf-8-sig")
        if table == "items":
            reasons = {row["item_id"]: row["_reason"] for row in csv.DictReader(text.splitlines())}
            assert reasons["8"] == "price = 'dear' is not a number"
        made[0].write_text(text.replace("cheap", "5").replace("dear", "6").replace("gone.png", "a.png").replace("now", "2026-05-09"))
    (shop / "a.png").write_bytes((tmp_path / "shop" / "a.png").read_bytes())
    report = ingest(shop, empty, now=NOW + DAY)
    assert (report.items, report.updated, report.events, report.refused) == (2, 1, 1, {})
    assert [row.table for row in quarantine.refused(empty)] == ["events"], "which has no event_id to be known by"
    both = quarantine.write_csv(quarantine.refused(empty, mended=True), tmp_path / "no" / "such" / "all.csv")  # directories are made
    assert sorted(path.name for path in both) == ["all-events.csv", "all-items.csv"]
    with pytest.raises(InputError, match="is a directory → name a file"):
        quarantine.write_csv(quarantine.refused(empty, mended=True), tmp_path)


def test_a_check_says_what_an_ingest_then_does(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(**BAD)
    found, done = check(shop, now=NOW), ingest(shop, empty, now=NOW)
    assert found.tables == {
        "items": {"rows": 5, "new": 3, "twice": 0, "refused": 2},
        "queries": {"rows": 2, "new": 2, "twice": 0, "refused": 0},
        "events": {"rows": 4, "new": 3, "twice": 0, "refused": 1},
    }
    assert [done.items, done.queries, done.events] == [found.tables[name]["new"] for name in ("items", "queries", "events")]
    assert (found.refused, found.read) == (done.refused, done.read)
    assert found.pictures == {"found": 2, "missing": 1, "addresses": 0}
    assert found.pairs == 1
    assert found.lacking == {}
    assert found.reasons[0] == done.first_refusal


def test_a_check_counts_what_is_used_in_part(make_shop: Shop) -> None:
    event = {"item_id": 1, "user_id": 7, "session_id": 1, "query_id": 1, "timestamp": "2026-05-03T10:00:10"}
    events = [event | {"event": "impression"}, event | {"event": "click", "timestamp": "2026-05-03T10:00:08"}]
    events += [event | {"event": "click", "item_id": 2}, event | {"event": "click", "user_id": None}]
    events += [event | {"event": "click", "user_id": None, "session_id": None}]
    events += [event | {"event": "purchase", "user_id": 9}, event | {"event": "refund", "user_id": 9, "timestamp": "2026-05-04"}]
    events += [event | {"event": "cancel", "user_id": 8}]
    events += [event | {"event": "cart", "user_id": 6, "position": n} for n in range(22)]
    found = check(make_shop(**{**GOOD, "events": events}), now=NOW)
    assert found.behaviour == {
        **{"of_no_user": 2, "of_no_session_either": 1, "clicks_before_impression": 1, "clicks_without_impression": 2},
        **{"beyond_visitor_item": 2, "undone": 1, "undoing_nothing": 1},
    }
    assert found.pairs == 2
    assert "no purchases" in found.lacking["gates"], "the one there was came back"


def test_a_check_says_what_is_missing_for_which_stage_and_writes_nothing(make_shop: Shop, tmp_path: Path) -> None:
    shop = make_shop(items=[{"item_id": 1, "title": "Hat"}, {"item_id": 2, "title": None, "status": "deleted"}])
    before = sorted(tmp_path.rglob("*"))
    found = check(shop, now=NOW)
    assert set(found.lacking) == {"train", "ctr", "images", "features"}
    assert found.tables["items"] == {"rows": 2, "new": 1, "twice": 0, "refused": 1}
    make_shop(events=[{"timestamp": "2026-05-01", "item_id": item, "event": "click", "user_id": 1} for item in (1, 1, 5)])
    found = check(shop, now=NOW)
    assert found.tables["events"] == {"rows": 3, "new": 1, "twice": 1, "refused": 1}
    assert found.lacking["ctr"] == "no event is of the kind impression: a click model needs both"
    assert sorted(tmp_path.rglob("*")) == [*before[:1], shop / "events.jsonl", *before[1:]]
    with pytest.raises(InputError, match="is not a directory"):
        check(tmp_path / "nowhere", now=NOW)
