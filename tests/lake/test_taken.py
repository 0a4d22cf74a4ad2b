"""What lies in an inbox is taken in again and again: what came after it stays, item by item and user by user, whatever the clock says."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from moon_ops.errors import InputError
from moon_ops.lake import clocks
from moon_ops.lake.ingest import Feed, IngestReport, ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from tests.lake.coat_and_hat import DAY, HAT, NOW, Shop, current

HOUR = dt.timedelta(hours=1)
COAT = {"item_id": 1, "title": "Coat"}


def pushed(make_shop: Shop, lake: Lake, now: dt.datetime, *items: dict[str, Any]) -> IngestReport:
    """As a request brings items."""
    return ingest(make_shop("pushed", items=list(items)), lake, now=now, feed=Feed(once=True))


def titles(lake: Lake, now: dt.datetime) -> dict[int, str]:
    return {row["item_id"]: row["title"] for row in items_as_of(lake, clocks.present(lake, now)).to_pylist()}


@pytest.mark.parametrize("times", [{}, {"available_from": "2026-05-01", "available_until": "2027-01-01"}], ids=["plain", "times"])
def test_a_task_that_is_run_again_for_an_earlier_time_undoes_nothing(make_shop: Shop, empty: Lake, times: dict[str, str]) -> None:
    inbox = make_shop(items=[{**COAT, **times}, {**HAT, **times}])
    ingest(inbox, empty, now=NOW)
    pushed(make_shop, empty, NOW + 2 * DAY, {**COAT, **times, "title": "Wool coat"})
    rows = empty.count("items")
    for now in (NOW + 3 * DAY, NOW + DAY, NOW, NOW - DAY, NOW + 2 * DAY, NOW + DAY):
        assert (report := ingest(inbox, empty, now=now)).updated == 0
        assert report.notes[0].startswith("1 row of the items file, which was taken in before as it is, is older than what the lake has")
        assert titles(empty, now) == {1: "Wool coat", 9: "Hat"}
    assert empty.count("items") == rows


def test_a_correction_made_with_the_clock_set_back_stays(make_shop: Shop, empty: Lake) -> None:
    inbox = make_shop(items=[COAT], users=[{"user_id": 1, "city": "Oslo"}])
    ingest(inbox, empty, now=NOW + 9 * DAY)
    pushed(make_shop, empty, NOW, {**COAT, "title": "Wool coat"})
    ingest(make_shop("crm", items=[HAT], users=[{"user_id": 1, "city": "Rome"}]), empty, now=NOW)
    for now in (NOW + HOUR, NOW + 20 * DAY):
        report = ingest(inbox, empty, now=now)
        assert (report.updated, report.users, report.known) == (0, 0, 2)
        assert titles(empty, now) == {1: "Wool coat", 9: "Hat"}


def test_a_row_brought_for_an_earlier_time_wins_once(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop("first", items=[COAT]), empty, now=NOW)
    later = make_shop("later", items=[{**COAT, "title": "Wool coat"}])
    assert [ingest(later, empty, now=NOW - DAY).updated for _ in range(3)] == [1, 0, 0]
    assert titles(empty, NOW) == {1: "Wool coat"}
    assert empty.count("items") == 2


def test_of_part_files_only_the_new_one_says_something_new(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(items=[])
    (shop / "items.jsonl").unlink()
    (parts := shop / "items").mkdir()
    for number, row in enumerate((COAT, HAT)):
        (parts / f"part-{number}.jsonl").write_text(json.dumps(row) + "\n")
    assert ingest(shop, empty, now=NOW).items == 2
    pushed(make_shop, empty, NOW + DAY, {**COAT, "title": "Wool coat"}, {**HAT, "title": "Red hat"})
    (parts / "part-2.jsonl").write_text(json.dumps({"item_id": 5, "title": "Scarf"}) + "\n")
    report = ingest(shop, empty, now=NOW + 2 * DAY)
    assert (report.items, report.updated, report.known) == (1, 0, 2)
    assert titles(empty, NOW + 2 * DAY) == {1: "Wool coat", 5: "Scarf", 9: "Red hat"}
    (parts / "part-1.jsonl").write_text(json.dumps({**HAT, "title": "Blue hat"}) + "\n")
    assert ingest(shop, empty, now=NOW + 3 * DAY).updated == 1
    assert titles(empty, NOW + 3 * DAY) == {1: "Wool coat", 5: "Scarf", 9: "Blue hat"}


def test_what_is_told_of_users_stays_too(make_shop: Shop, empty: Lake) -> None:
    inbox = make_shop(items=[HAT], users=[{"user_id": 1, "city": "Oslo"}, {"user_id": 2, "city": "Bergen"}])
    assert ingest(inbox, empty, now=NOW).users == 2
    assert ingest(make_shop("crm", items=[HAT], users=[{"user_id": 1, "city": "Rome"}]), empty, now=NOW + DAY).users == 1
    for now in (NOW + 2 * DAY, NOW + HOUR):
        report = ingest(inbox, empty, now=now)
        assert (report.users, report.known) == (0, 3)
        assert report.notes[0].startswith("1 row of the users file, which was taken in before")
    told = sorted(empty.read("users").to_pylist(), key=lambda row: row["event_timestamp"])
    assert [(row["user_id"], row["extra"]) for row in told if row["user_id"] == 1][-1] == (1, '{"city": "Rome"}')
    assert len(told) == 3


def test_a_full_feed_that_lies_there_withdraws_nothing_that_came_after_it(make_shop: Shop, empty: Lake) -> None:
    feed = make_shop(items=[COAT, HAT])
    ingest(feed, empty, now=NOW, feed=Feed(full=True))
    pushed(make_shop, empty, NOW + DAY, {"item_id": 5, "title": "Scarf"})
    for now in (NOW + 2 * DAY, NOW + HOUR):
        assert ingest(feed, empty, now=now, feed=Feed(full=True, most=1)).withdrawn == 0
    assert titles(empty, NOW + 2 * DAY) == {1: "Coat", 5: "Scarf", 9: "Hat"}
    (feed / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (COAT, {**HAT, "price": 3})))
    assert ingest(feed, empty, now=NOW + 3 * DAY, feed=Feed(full=True, most=1)).withdrawn == 1
    assert [row[0] for row in current(empty, "item_id", when=NOW + 3 * DAY)] == [1, 9]


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"withdraw at most .*: this is no share → give a number from 0 to 1"):
        Feed(full=True, most=share)


def test_a_file_is_known_by_place_time_and_size(tmp_path: Path) -> None:
    from moon_ops.lake import seen

    (place := tmp_path / "items.csv").write_text("item_id,title\n1,Coat\n")
    before = seen.state(place)
    assert seen.state(place) == before
    place.write_text("item_id,title\n1,Coats\n")
    assert seen.state(place) != before
