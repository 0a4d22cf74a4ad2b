"""Clocks that run ahead or were set back: what is brought last is what holds, and what has happened cannot lie ahead."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from moon_ops.lake import clocks
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from tests.lake.coat_and_hat import CLICK, DAY, HAT, NOW, Shop, current, set_aside

MONTH = 30 * DAY


def brought(make_shop: Shop, lake: Lake, title: str, now: dt.datetime) -> Any:
    return ingest(make_shop(items=[{**HAT, "title": title}]), lake, now=now)


def titles(lake: Lake, now: dt.datetime) -> list[str]:
    """As a reader is shown them now."""
    return [row["title"] for row in items_as_of(lake, clocks.present(lake, now)).to_pylist()]


def test_an_item_that_was_learned_ahead_is_shown_and_so_is_its_correction(make_shop: Shop, empty: Lake) -> None:
    assert brought(make_shop, empty, "Hat", NOW + MONTH).warning == ""
    assert titles(empty, NOW) == ["Hat"]
    report = brought(make_shop, empty, "Red hat", NOW)
    assert report.updated == 1
    assert report.warning == (
        "1 item, 9, was learned at a time that lies ahead of this clock, 2026-07-01T00:00Z at the latest"
        " (it is 2026-06-01T00:00Z here): that clock ran ahead, or this one is behind. It is shown, and so is what replaces it"
    )
    assert titles(empty, NOW) == titles(empty, NOW + MONTH + DAY) == ["Red hat"]
    assert brought(make_shop, empty, "Red hat", NOW).updated == 0, "the same again is nothing new"
    assert brought(make_shop, empty, "Blue hat", NOW + DAY).updated == 1
    assert titles(empty, NOW + DAY) == ["Blue hat"]
    assert empty.count("items") == 3


def test_an_update_with_the_clock_set_back_holds(make_shop: Shop, empty: Lake) -> None:
    brought(make_shop, empty, "Hat", NOW)
    report = brought(make_shop, empty, "Red hat", NOW - MONTH)
    assert (report.updated, "was learned at a time that lies ahead of this clock, 2026-06-01T00:00Z" in report.warning) == (1, True)
    assert titles(empty, NOW - MONTH) == titles(empty, NOW + DAY) == ["Red hat"]
    assert [row[1] for row in current(empty, "title", "event_timestamp", when=NOW + DAY)] == [NOW + clocks.TICK]
    assert brought(make_shop, empty, "Red hat", NOW - MONTH).updated == 0


def test_an_item_to_come_is_changed_where_it_comes_with_the_clock_set_back_too(make_shop: Shop, empty: Lake) -> None:
    coming = {**HAT, "available_from": "2026-07-01"}
    july = dt.datetime(2026, 7, 1, tzinfo=dt.UTC)
    ingest(make_shop(items=[coming]), empty, now=NOW)
    ingest(make_shop(items=[{**coming, "title": "Red hat"}]), empty, now=NOW - DAY)
    assert titles(empty, NOW) == [], "it has not come yet"
    assert current(empty, "title", when=july) == [("Red hat",)]


@pytest.mark.parametrize(("skew", "told"), [(clocks.SKEW, False), (clocks.SKEW + clocks.TICK, True)])
def test_clocks_may_differ_by_an_hour_without_a_word(make_shop: Shop, empty: Lake, skew: dt.timedelta, told: bool) -> None:
    brought(make_shop, empty, "Hat", NOW + skew)
    assert bool(brought(make_shop, empty, "Red hat", NOW).warning) is told
    assert titles(empty, NOW) == ["Red hat"]


def test_what_a_user_says_last_holds_with_the_clock_set_back(make_shop: Shop, empty: Lake) -> None:
    for city, now in (("Oslo", NOW), ("Rome", NOW - MONTH), ("Rome", NOW - MONTH)):
        ingest(make_shop(items=[HAT], users=[{"user_id": 1, "city": city}]), empty, now=now)
    rows = sorted(empty.read("users", ["event_timestamp", "extra"]).to_pylist(), key=lambda row: row["event_timestamp"])
    assert rows == [
        {"event_timestamp": NOW, "extra": '{"city": "Oslo"}'},
        {"event_timestamp": NOW + clocks.TICK, "extra": '{"city": "Rome"}'},
    ]


def test_what_has_happened_cannot_lie_ahead(make_shop: Shop, empty: Lake) -> None:
    inside, beyond = ((NOW + DAY + late).isoformat() for late in (dt.timedelta(0), clocks.TICK))
    shop = make_shop(
        items=[{**HAT, "item_id": 1}],
        queries=[{"query_id": n, "text": "hat", "timestamp": when} for n, when in enumerate((inside, beyond))],
        events=[{**CLICK, "timestamp": when} for when in (inside, beyond)],
        users=[{"user_id": n, "city": "Oslo", "timestamp": when} for n, when in enumerate((inside, beyond))],
    )
    report = ingest(shop, empty, now=NOW)
    assert report.refused == {"events.jsonl timestamp": 1, "queries.jsonl timestamp": 1, "users.jsonl timestamp": 1}
    assert (report.queries, report.events, report.users) == (1, 1, 1)
    reason = f"timestamp = '{beyond}' is in the future (it is 2026-06-01T00:00Z)"
    assert sorted(set_aside(empty)) == [(f"{name}.jsonl:2", "timestamp", reason) for name in ("events", "queries", "users")]
