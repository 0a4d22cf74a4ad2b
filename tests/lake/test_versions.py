"""An item's life: withdrawn by a word, by a full feed or by a date, and never brought back by a file of before."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import pytest
from coat_and_hat import DAY, NOW, Shop, current

from moon_ops.errors import InputError
from moon_ops.lake.ingest import Feed, IngestReport, ingest
from moon_ops.lake.lake import Lake

THINGS = [{"item_id": n, "title": f"thing {n}"} for n in range(1, 11)]
FULL = Feed(full=True)


def sold(lake: Lake, when: dt.datetime) -> list[int]:
    return [item for (item,) in current(lake, "item_id", when=when)]


@pytest.mark.parametrize("word", ["draft", "archived", "DELETED", "Inactive", "discontinued", "trash"])
def test_a_word_of_state_withdraws_a_known_item(make_shop: Shop, empty: Lake, word: str) -> None:
    ingest(make_shop(items=THINGS[:2]), empty, now=NOW)
    report = ingest(make_shop(items=[{**THINGS[0], "status": word}]), empty, now=NOW + DAY)
    assert (report.updated, report.refused) == (1, {})
    assert (sold(empty, NOW), sold(empty, NOW + DAY)) == ([1, 2], [2])


def test_who_withdraws_an_item_need_not_describe_it(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(items=[{**THINGS[0], "brand": "Nord"}, THINGS[1]]), empty, now=NOW)
    rows = [{"item_id": 1, "title": None, "status": "deleted"}, {"item_id": 99, "title": None, "status": "deleted"}]
    report = ingest(make_shop(items=rows), empty, now=NOW + DAY)
    assert (report.updated, report.refused, sold(empty, NOW + DAY)) == (1, {"items.jsonl title": 1}, [2])
    assert "is empty, and no such item is known that could be withdrawn" in report.first_refusal
    last = max(empty.read("items", where="item_id = 1").to_pylist(), key=lambda row: row["event_timestamp"])
    assert (last["title"], last["brand"], last["status"]) == ("thing 1", "Nord", "deleted")
    assert ingest(make_shop(items=rows), empty, now=NOW + 2 * DAY).updated == 0


def test_a_full_feed_withdraws_what_it_lacks_and_brings_it_back_when_it_has_it(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(items=THINGS), empty, now=NOW)
    less = make_shop(items=THINGS[2:])
    assert ingest(less, empty, now=NOW).withdrawn == 0, "only if it is said to be full"
    report = ingest(less, empty, now=NOW + DAY, feed=FULL)
    assert (report.withdrawn, report.updated, report.known, sold(empty, NOW + DAY)) == (2, 0, 8, list(range(3, 11)))
    assert ingest(less, empty, now=NOW + 2 * DAY, feed=FULL).withdrawn == 0
    report = ingest(make_shop(items=THINGS), empty, now=NOW + 3 * DAY, feed=FULL)
    assert (report.withdrawn, report.updated, sold(empty, NOW + 3 * DAY)) == (0, 2, list(range(1, 11)))


def test_half_a_feed_names_an_item_by_the_shops_id(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(items=[{"item_id": f"SKU/{n}", "title": "Hat"} for n in range(3)]), empty, now=NOW)
    with pytest.raises(InputError, match=r"2 of 3 items in sale are not in it, e\.g\. SKU/[12]: more"):
        ingest(make_shop(items=[{"item_id": "SKU/0", "title": "Hat"}]), empty, now=NOW, feed=FULL)
    assert ingest(make_shop(items=[{"item_id": "SKU/0", "title": "Hat"}]), empty, now=NOW, feed=Feed(full=True, most=0.7)).withdrawn == 2
    assert set(empty.read("items")["source_id"].to_pylist()) == {"SKU/0", "SKU/1", "SKU/2"}


def test_half_a_feed_withdraws_nothing_unless_that_is_said(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(items=THINGS), empty, now=NOW)
    half = make_shop(items=[{"item_id": 77, "title": "new"}, *THINGS[:5]])
    with pytest.raises(
        InputError, match=r"5 of 10 items in sale are not in it, e\.g\. 6: more than 20%, so it may be cut; nothing was ingested"
    ):
        ingest(half, empty, now=NOW + DAY, feed=FULL)
    assert (empty.count("items"), sold(empty, NOW + DAY)) == (10, list(range(1, 11)))
    assert ingest(half, empty, now=NOW + DAY, feed=Feed(full=True, most=0.5)).withdrawn == 5
    assert ingest(make_shop(items=[*THINGS[:5]]), empty, now=NOW + 2 * DAY, feed=Feed(full=True, most=0)).withdrawn == 1, (
        "one may always go"
    )


def test_an_item_whose_row_is_refused_is_not_missing(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(items=THINGS[:5]), empty, now=NOW)
    report = ingest(make_shop(items=[{**THINGS[0], "price": "cheap"}, *THINGS[1:5]]), empty, now=NOW + DAY, feed=FULL)
    assert (report.refused, report.withdrawn, sold(empty, NOW + DAY)) == ({"items.jsonl price": 1}, 0, [1, 2, 3, 4, 5])
    shop = make_shop(items=THINGS[1:5])
    with (shop / "items.jsonl").open("a") as file:
        file.write('{"item_id": 1, "title": "half \\ud83d"}\n')
    with pytest.raises(InputError, match=r"1 of its rows names no item that can be read \(.*half a character.*\); nothing was ingested"):
        ingest(shop, empty, now=NOW + DAY, feed=FULL)


def until(day: int | None, **more: Any) -> dict[str, Any]:
    return {**THINGS[0], "available_until": None if day is None else (NOW + day * DAY).isoformat(), **more}


def days_sold(lake: Lake) -> list[int]:
    return [day for day in range(12) if sold(lake, NOW + day * DAY)]


def test_an_item_is_sold_until_its_date(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(items=[until(3)])
    assert ingest(shop, empty, now=NOW).items == 1
    assert days_sold(empty) == [0, 1, 2]
    for day in (1, 3, 5):
        assert ingest(shop, empty, now=NOW + day * DAY).updated == 0
    assert empty.count("items") == 2, "what it is, and its end"
    assert ingest(make_shop(items=[until(3, title="other")]), empty, now=NOW + DAY).updated == 1
    assert days_sold(empty) == [0, 1, 2]


@pytest.mark.parametrize(
    ("first", "then", "days"),
    [(3, None, range(12)), (3, 6, range(6)), (6, 3, range(3)), (None, 4, range(4)), (9, -1, range(2))],
    ids=str,
)
def test_its_date_may_be_moved(make_shop: Shop, empty: Lake, first: int | None, then: int | None, days: range) -> None:
    ingest(make_shop(items=[until(first)]), empty, now=NOW)
    shop = make_shop(items=[until(then)])
    assert ingest(shop, empty, now=NOW + 2 * DAY).updated == 1
    assert days_sold(empty) == list(days)
    assert ingest(shop, empty, now=NOW + 2 * DAY + dt.timedelta(hours=1)).updated == 0
    title = [{**until(then), "title": "renamed"}]
    assert ingest(make_shop(items=title), empty, now=NOW + 2 * DAY + dt.timedelta(hours=2)).updated == 1
    assert [names for (names,) in current(empty, "title", when=NOW + 11 * DAY)] == (["renamed"] if 11 in days else [])
    assert days_sold(empty) == list(days)


def test_an_item_that_has_ended_is_not_missing_from_a_feed(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(items=[until(1), *THINGS[1:]]), empty, now=NOW)
    assert ingest(make_shop(items=THINGS[1:]), empty, now=NOW + 2 * DAY, feed=FULL).withdrawn == 0


def test_a_file_that_lies_there_undoes_nothing_that_came_after_it(make_shop: Shop, empty: Lake) -> None:
    """An inbox is taken in again and again; a correction comes by request, and a withdrawal from another directory."""
    inbox = make_shop("inbox", items=THINGS[:3])
    ingest(inbox, empty, now=NOW)
    ingest(make_shop("pushed", items=[{**THINGS[0], "title": "corrected"}]), empty, now=NOW + DAY, feed=Feed(once=True))
    ingest(make_shop("other", items=[{**THINGS[1], "status": "deleted"}]), empty, now=NOW + DAY)
    again = ingest(inbox, empty, now=NOW + 2 * DAY)
    assert (again.updated, again.known) == (0, 3)
    assert again.notes[0].startswith("2 rows of the items file, which was taken in before as it is, are older than what the lake has")
    assert current(empty, "item_id", "title", when=NOW + 2 * DAY) == [(1, "corrected"), (3, "thing 3")]
    rewritten(inbox)
    assert ingest(inbox, empty, now=NOW + 3 * DAY).updated == 2
    assert sold(empty, NOW + 3 * DAY) == [1, 2, 3]


def test_yesterdays_file_put_back_as_it_was_undoes_nothing(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(items=[THINGS[0]])
    before, at = (shop / "items.jsonl").read_bytes(), (shop / "items.jsonl").stat()
    ingest(shop, empty, now=NOW)
    ingest(make_shop(items=[{**THINGS[0], "title": "today's"}]), empty, now=NOW + DAY)
    (shop / "items.jsonl").write_bytes(before)
    os.utime(shop / "items.jsonl", ns=(at.st_atime_ns, at.st_mtime_ns))
    assert ingest(shop, empty, now=NOW + 2 * DAY).updated == 0
    assert current(empty, "title", when=NOW + 2 * DAY) == [("today's",)]


def rewritten(shop: Path) -> None:
    at = (shop / "items.jsonl").stat()
    os.utime(shop / "items.jsonl", ns=(at.st_atime_ns, at.st_mtime_ns + 10**9))


def test_the_summary_counts_each_row_once(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(
        pictures={"a.png": "red"},
        items=[{**THINGS[0], "images": "a.png, gone.png"}, {**THINGS[1], "price": "cheap"}, THINGS[2], {**THINGS[2], "title": "again"}],
        queries=[{"query_id": 1, "timestamp": "2026-05-02", "text": "x"}, {"query_id": 2, "timestamp": "2026-05-02", "image": "gone.png"}],
        events=[
            {"timestamp": day, "item_id": 1, "event": "click"} for day in ("2026-05-02", "2026-05-02", "1970-01-01", "2026-07-01", "now")
        ],
        users=[{"user_id": 7, "age": 3}, {"user_id": 7, "age": 4}],
    )
    for now, new in ((NOW, True), (NOW + DAY, False)):
        report = ingest(shop, empty, now=now)
        assert report.refused == {
            **{"items.jsonl price": 1, "items.jsonl item_id": 1, "events.jsonl timestamp": 3},
            **{"queries.jsonl image": 1, "users.jsonl user_id": 1},
        }
        assert report.unread == {"items.jsonl images": 1, "queries.jsonl image": 1}
        assert rows_of(report) + sum(report.refused.values()) == 4 + 2 + 5 + 2
        assert rows_of(report) - report.known == (5 if new else 0)
    assert report.read == dict.fromkeys(("items.jsonl", "queries.jsonl", "events.jsonl", "users.jsonl"), "JSON lines, UTF-8")


def rows_of(report: IngestReport) -> int:
    return report.items + report.updated + report.queries + report.events + report.users + report.known


def test_what_an_ingest_passes_over_is_told(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(items=[{**THINGS[0], "images": "a.png"}], pictures={"a.png": "red", "b.png": "blue"})
    (shop / "Artikel.csv").write_text(json.dumps(THINGS))
    said = ingest(shop, empty, now=NOW).notes
    assert said == ("not read, because no table is called so: Artikel.csv; 1 picture that no row names, e.g. b.png",)
