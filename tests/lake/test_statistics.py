"""Statistics as they were known: a history made by hand with every value written out, and a random one counted the obvious way."""

from __future__ import annotations

import datetime as dt
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lance
import pyarrow as pa
import pytest

from moon_ops.errors import StageError
from moon_ops.lake import changes
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.statistics import BEHAVIOR, NO_QUERY, PROFILE, STATS, StatisticsReport, derive

TICK = dt.timedelta(microseconds=1)


def at(day: int, clock: str = "00:00") -> dt.datetime:
    """A moment in May 2026."""
    return dt.datetime.combine(dt.date(2026, 5, day), dt.time.fromisoformat(clock), dt.UTC)


def micros(when: dt.datetime) -> int:
    return (when - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // TICK


def event(when: dt.datetime, item_id: int, kind: str, user_id: int | None = 1, query_id: int | None = None) -> dict[str, Any]:
    row = {"event_timestamp": when, "user_id": user_id, "item_id": item_id, "query_id": query_id, "event": kind}
    return {**row, "created": at(31)}


def item(item_id: int, since: dt.datetime, **more: Any) -> dict[str, Any]:
    plain = {"title": "coat", "spu_id": item_id, "status": "active", "content_hash": "h", "created": at(31)}
    return {"item_id": item_id, "event_timestamp": since, **plain, **more}


def lake_of(place: Path, items: list[dict[str, Any]], events: list[dict[str, Any]]) -> Lake:
    lake = Lake(str(place / "lake"))
    lake.append("items", pa.Table.from_pylist(items, schema=SCHEMAS["items"]))
    lake.append("events", pa.Table.from_pylist(events, schema=SCHEMAS["events"]))
    return lake


COAT, HAT = 10, 20
ITEMS = [
    item(COAT, at(1), category=["Clothes", "Coats"], brand="Nord", seller_id=5, price=9.5, spu_id=7),
    item(HAT, at(1)),
    item(COAT, at(3), category=["Clothes", "Coats"], brand="Nord", seller_id=5, price=8.0, spu_id=7),
]
EVENTS = [
    event(at(1, "10:00"), COAT, "impression", query_id=100),
    event(at(1, "10:01"), COAT, "click", query_id=100),
    event(at(1, "10:02"), COAT, "cart", query_id=100),
    event(at(1, "23:59:59.999999"), COAT, "click", user_id=2),
    event(at(2), HAT, "impression"),  # at midnight: of the day that begins
    event(at(4, "12:00"), COAT, "purchase"),
    event(at(4, "12:00"), HAT, "click", user_id=None),
    event(at(4, "12:00"), HAT, "click", query_id=101),
]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return lake_of(tmp_path, ITEMS, EVENTS)


def test_every_version_of_an_item_is_a_profile_from_when_it_was_valid(lake: Lake) -> None:
    derive(lake)
    coat = {"item_id": COAT, "spu_id": 7, "category": "Coats", "brand": "Nord", "seller_id": 5, "created": at(31)}
    bare = {"item_id": HAT, "spu_id": HAT, "category": "", "brand": "", "seller_id": -1, "price": 0.0, "created": at(31)}
    assert lake.read(PROFILE).drop_columns("profile_id").to_pylist() == [
        {**coat, "price": 9.5, "event_timestamp": at(1)},
        {**bare, "event_timestamp": at(1)},
        {**coat, "price": 8.0, "event_timestamp": at(3)},
    ]


def test_counts_of_a_day_are_known_from_the_next_midnight_and_a_day_without_events_has_no_row(lake: Lake) -> None:
    derive(lake)
    names = ["event_timestamp", "item_id", "impressions", "clicks", "purchases"]
    assert [tuple(row[n] for n in names) for row in lake.read(STATS).to_pylist()] == [
        (at(2), COAT, 1, 2, 0),
        (at(3), HAT, 1, 0, 0),
        (at(5), COAT, 1, 2, 1),
        (at(5), HAT, 1, 2, 0),
    ]
    stats = lake.read(STATS)
    assert stats["created"] == stats["event_timestamp"]


def clicks_of(lake: Lake) -> list[tuple[int, int, int, dt.datetime]]:
    return [(r["user_id"], r["item_id"], r["query_id"], r["event_timestamp"]) for r in lake.read(BEHAVIOR).to_pylist()]


def test_a_click_is_known_only_after_itself(lake: Lake) -> None:
    derive(lake)
    assert clicks_of(lake) == [
        (1, COAT, 100, at(1, "10:01") + TICK),
        (1, HAT, 101, at(4, "12:00") + TICK),
        (2, COAT, NO_QUERY, at(2)),
    ]
    behavior = lake.read(BEHAVIOR)
    assert behavior["created"] == behavior["event_timestamp"]


def test_two_clicks_that_are_alike_are_two(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, ITEMS, [event(at(1), 3, "click", query_id=q) for q in (7, 7, None)])
    assert derive(lake).user_behavior == 3
    lake.append("events", pa.Table.from_pylist([event(at(1), 3, "click", query_id=7)], schema=SCHEMAS["events"]))
    assert derive(lake).user_behavior == 4
    assert len(set(lake.read(BEHAVIOR)["behavior_id"].to_pylist())) == 4


def test_a_table_of_before_with_a_sequence_in_each_row_is_made_anew(lake: Lake) -> None:
    derive(lake)
    expected, mark = clicks_of(lake), changes.marks(lake, BEHAVIOR)
    old = {"user_id": [1], "item_ids": [[COAT]], "query_ids": [[100]], "event_timestamp": pa.array([at(2)]), "behavior_id": ["x"]}
    lance.write_dataset(pa.table(old), lake.address(BEHAVIOR), mode="overwrite")
    changes.mark(lake, BEHAVIOR, **mark)
    assert derive(lake, behaviour=False).user_behavior == 3
    assert clicks_of(lake) == expected


def test_times_are_utc_microseconds_in_every_table(lake: Lake) -> None:
    derive(lake)
    for name in (PROFILE, STATS, BEHAVIOR):
        schema = lake.read(name).schema
        assert {schema.field(f).type for f in ("event_timestamp", "created")} == {pa.timestamp("us", tz="UTC")}


def test_the_tables_follow_the_ledger_and_an_open_one_stays(lake: Lake) -> None:
    assert derive(lake) == StatisticsReport(item_profile=3, item_stats=4, user_behavior=3)
    first = [lake.read(name) for name in (PROFILE, STATS, BEHAVIOR)]
    opened = lake.open(STATS)
    assert derive(lake) == StatisticsReport(item_profile=3, item_stats=4, user_behavior=3)
    assert [lake.read(name) for name in (PROFILE, STATS, BEHAVIOR)] == first
    more = [event(at(6, "08:00"), HAT, "purchase")]
    lake.append("events", pa.Table.from_pylist(more, schema=SCHEMAS["events"]))
    assert derive(lake) == StatisticsReport(item_profile=3, item_stats=5, user_behavior=3)
    assert lake.read(STATS).to_pylist()[-1]["purchases"] == 1
    assert opened.to_table() == first[1]


def test_a_new_version_adds_a_profile_and_a_killed_run_adds_none_twice(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    derive(lake)
    lake.append("items", pa.Table.from_pylist([{**ITEMS[0], "price": 7.0, "event_timestamp": at(9)}], schema=SCHEMAS["items"]))
    with monkeypatch.context() as patch:
        patch.setattr(changes, "mark", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            derive(lake)
    assert derive(lake).item_profile == 4
    assert lake.read(PROFILE)["price"].to_pylist()[-1] == 7.0
    version = lake.open(PROFILE).version
    derive(lake)
    assert lake.open(PROFILE).version == version, "nothing new, nothing written"


def test_new_items_need_no_count_of_behaviour(lake: Lake) -> None:
    """Without ``behaviour`` the tables of events stay, and the next night counts what has come meanwhile."""
    derive(lake)
    lake.append("events", pa.Table.from_pylist([event(at(6, "08:00"), HAT, "purchase")], schema=SCHEMAS["events"]))
    assert derive(lake, behaviour=False).item_stats == 4
    assert derive(lake).item_stats == 5


def test_behaviour_that_grows_night_by_night_is_that_of_one_night(tmp_path: Path) -> None:
    """Events come in any order, some late; each click is written once."""
    rng = random.Random(1)
    seconds = rng.sample(range(9 * 86_400), 300)
    events = [
        event(at(1) + dt.timedelta(seconds=s), rng.randrange(6), rng.choice(("impression", "click")), rng.randrange(1, 9)) for s in seconds
    ]
    grown, whole = lake_of(tmp_path / "a", ITEMS, events[:100]), lake_of(tmp_path / "b", ITEMS, events)
    derive(grown)
    for start in (100, 150, 290):
        more = events[start : {100: 150, 150: 290, 290: 300}[start]]
        grown.append("events", pa.Table.from_pylist(more, schema=SCHEMAS["events"]))
        mark = changes.newest(grown.open(BEHAVIOR))
        derive(grown)
        fresh = changes.newer(grown.open(BEHAVIOR), mark, ["user_id"])["user_id"].to_pylist()
        assert sorted(fresh) == sorted(e["user_id"] for e in more if e["event"] == "click")
    derive(whole)
    both = [lake.read(BEHAVIOR).sort_by("behavior_id").to_pylist() for lake in (grown, whole)]
    assert both[0] == both[1]


def test_behaviour_added_by_a_killed_run_is_not_added_twice(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    derive(lake)
    lake.append("events", pa.Table.from_pylist([event(at(6, "08:00"), HAT, "click")], schema=SCHEMAS["events"]))
    with monkeypatch.context() as patch:
        patch.setattr(changes, "mark", Mock(side_effect=[None, KeyboardInterrupt]))
        with pytest.raises(KeyboardInterrupt):
            derive(lake)
    assert lake.count(BEHAVIOR) == 4
    assert derive(lake).user_behavior == 4


def test_a_shop_without_events_has_profiles_only(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, ITEMS, [])
    assert derive(lake) == StatisticsReport(item_profile=3, item_stats=0, user_behavior=0)
    assert lake.read(STATS).num_rows == lake.read(BEHAVIOR).num_rows == 0


def test_without_items_the_command_to_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no table 'items' yet → run `moon ingest DIRECTORY` first"):
        derive(Lake(str(tmp_path)))


def test_a_random_history_equals_counting_the_obvious_way(tmp_path: Path) -> None:
    rng = random.Random(0)
    kinds = ("impression", "click", "cart", "purchase")
    seconds = rng.sample(range(9 * 86_400), 400)
    events = [event(at(1) + dt.timedelta(seconds=s), rng.randrange(6), rng.choice(kinds), rng.choice([1, 2, 3, None])) for s in seconds]
    lake = lake_of(tmp_path, ITEMS, events)
    derive(lake)
    events.sort(key=lambda e: e["event_timestamp"])
    stats = lake.read(STATS).to_pylist()
    assert len(stats) == len({(e["item_id"], e["event_timestamp"].date()) for e in events})
    for day in range(2, 12):
        before = [e for e in events if e["event_timestamp"] < at(day)]
        for known in {e["item_id"] for e in before}:
            row = max((r for r in stats if r["item_id"] == known and r["event_timestamp"] <= at(day)), key=lambda r: r["event_timestamp"])
            counted = [sum(e["item_id"] == known and e["event"] == kind for e in before) for kind in ("impression", "click", "purchase")]
            assert [row["impressions"], row["clicks"], row["purchases"]] == counted
    clicks = [
        (e["user_id"], e["item_id"], e["event_timestamp"] + TICK) for e in events if e["event"] == "click" and e["user_id"] is not None
    ]
    assert [(user, item, when) for user, item, _, when in clicks_of(lake)] == sorted(clicks, key=lambda c: (c[0], c[2]))


def test_years_in_which_nothing_happens_cost_no_rows(tmp_path: Path) -> None:
    old = [event(dt.datetime(1970 + 10 * n, 1, 1, tzinfo=dt.UTC), COAT, "click") for n in range(6)]
    assert derive(lake_of(tmp_path, ITEMS, [*old, *EVENTS])).item_stats == 6 + 4


def test_two_derivations_at_once_are_one(lake: Lake) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = [run.result() for run in [pool.submit(derive, lake) for _ in range(4)]]
    assert found[-1] == StatisticsReport(item_profile=3, item_stats=4, user_behavior=3)
    assert derive(lake) == found[-1]
